"""Errors that a user can fix, on their way through processes and to the terminal."""

from __future__ import annotations

import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import pytest

from visionattn.data.readers import UnreadableFile
from visionattn.errors import ArgumentError, UserError, lacks_memory


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


@pytest.mark.parametrize(
    ("error", "lacks"),
    [
        (MemoryError(), True),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."),
            True,
        ),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes."), True),
        (RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB."), True),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("std::bad_alloc"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (type("error", (Exception,), {})("OpenCV(4.11.0) alloc.cpp:73: error: (-4:Insufficient memory) Failed to allocate 9 bytes"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (OSError(28, "No space left on device"), False),
    ],
)
def test_a_lack_of_memory_has_many_types(error: Exception, lacks: bool) -> None:
    assert lacks_memory(error) is lacks


def test_an_unreadable_file_survives_pickling() -> None:
    again = pickle.loads(pickle.dumps(UnreadableFile("a.png", "cut off", "VA-D011")))
    assert (again.path, again.reason, again.code, str(again)) == ("a.png", "cut off", "VA-D011", "a.png: cut off")
