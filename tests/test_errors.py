"""Errors that a user can fix, on their way through processes and to the terminal."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from visionattn.data.readers import UnreadableFile
from visionattn.errors import ArgumentError, UserError


@pytest.mark.parametrize("kind", [UserError, ArgumentError])
def test_an_error_survives_pickling(kind: type[UserError]) -> None:
    error = kind("VA-D010", "what", where="a\nb", why="because", fix="do it", exit_code=9)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind and again.__dict__ == error.__dict__ and again.block() == error.block()
    assert (again.code, again.what, again.where, again.why, again.fix, again.exit_code) == (
        "VA-D010",
        "what",
        "a\nb",
        "because",
        "do it",
        9,
    )
    assert pickle.loads(pickle.dumps(kind("VA-R004", "what"))).exit_code == 7


def fail() -> None:
    raise UserError("VA-D020", "too large", fix="raise data.max_bytes")


def test_an_error_comes_whole_out_of_another_process() -> None:
    with ProcessPoolExecutor(1, mp_context=get_context("fork")) as pool, pytest.raises(UserError) as caught:
        pool.submit(fail).result()
    assert caught.value.block() == "error VA-D020: too large\n  fix   raise data.max_bytes" and caught.value.exit_code == 3


def test_an_unreadable_file_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(UnreadableFile("a.png", "cut off", "VA-D011")))
    assert (again.path, again.reason, again.code, str(again)) == ("a.png", "cut off", "VA-D011", "a.png: cut off")
