"""Modules of one's own, named under `plugins:`."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from tests.config.files import refused, write
from visionattn.attention.registry import ATTENTION
from visionattn.config.read import to_yaml
from visionattn.tasks import TASKS, config_from_dict, guess_task, load_config, register_task
from visionattn.tasks.classification import Classification
from visionattn.tasks.classification.settings import ClassifyConfig

ATTENTION_FILE = """
import visionattn
from torch import nn

visionattn.register_attention("plugin_mix", lambda channels: nn.Conv2d(channels, channels, 1))
"""
TASK_FILE = """
from visionattn.config import RunConfig, Section, setting
from visionattn.tasks import register_task
from visionattn.tasks.classification import Classification


class DepthConfig(Section):
    largest: float = setting(10.0, "Largest depth in metres.", gt=0)


class DepthRun(RunConfig):
    task: str = setting("depth", "Kind of job.")
    loss: DepthConfig = DepthConfig()


class Depth(Classification):
    name = "depth"
    config = DepthRun

    def recognise(self, root):
        return (root / "depths").is_dir()


register_task(Depth())
"""


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    """Afterwards no plugin is loaded."""
    before = dict(sys.modules), list(sys.path), dict(TASKS), dict(ATTENTION)
    yield
    for name in set(sys.modules) - set(before[0]):
        del sys.modules[name]
    sys.path[:] = before[1]
    for table, old in ((TASKS, before[2]), (ATTENTION, before[3])):
        table.clear()
        table.update(old)


def test_a_file_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "my_attention.py", ATTENTION_FILE)
    monkeypatch.chdir(tmp_path)
    config = load_config(None, ["plugins=[my_attention.py]"])
    assert "plugin_mix" in ATTENTION and config.plugins == [str(tmp_path / "my_attention.py")]  # works from any folder
    monkeypatch.chdir("/")
    saved = write(tmp_path / "run.yaml", to_yaml(config.model_dump(mode="json")))
    assert load_config(saved) == config and config_from_dict(yaml.safe_load(saved.read_text())) == config  # imported once


def test_a_module_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "my_package" / "__init__.py", "")
    write(tmp_path / "my_package" / "attention.py", ATTENTION_FILE)
    monkeypatch.syspath_prepend(tmp_path)
    assert load_config(None, ["plugins=[my_package.attention]"]).plugins == ["my_package.attention"] and "plugin_mix" in ATTENTION


def test_a_file_is_found_again_in_other_processes(tmp_path: Path) -> None:
    """Loader processes that are not forked import a module anew, by its name."""
    path = write(tmp_path / "my_values.py", "class Value:\n    pass\n")
    code = f"""
import multiprocessing, sys
from visionattn.tasks import load_config
if __name__ == "__main__":
    load_config(None, ["plugins=[{path}]"])
    value = sys.modules["my_values"].Value
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        print(pool.apply(value).__class__.__module__)
"""
    script = write(tmp_path / "elsewhere" / "main.py", code)
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=120)
    assert done.stdout.strip() == "my_values", done.stderr


def test_a_task_of_ones_own(tmp_path: Path) -> None:
    path = write(tmp_path / "depth.py", TASK_FILE)
    config = load_config(None, [f"plugins=[{path}]", "task=depth", "loss.largest=5"])
    assert config.task == "depth" and config.loss.largest == 5 and TASKS["depth"].config is type(config)
    (tmp_path / "data" / "depths").mkdir(parents=True)
    assert guess_task(tmp_path / "data") == "depth" and guess_task(tmp_path) == "classify"
    what = refused("VA-C002", None, "task=depth", "loss.largest=0").what
    assert what == "command line loss.largest: expected number > 0, got 0"
    assert "belongs to task depth, and this is task classify" in refused("VA-C001", None, "task=classify", "loss.largest=1").what
    assert load_config(None, ["loss.largest=1"]).task == "depth", "no other task has the key"


def test_a_task_name_is_given_once() -> None:
    class Other(Classification):
        config = ClassifyConfig

    with pytest.raises(ValueError, match=r"'classify' is registered already, by visionattn\.tasks\.classification"):
        register_task(Other())


def test_a_missing_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    error = refused("VA-C002", None, "plugins=[mine.py]")
    assert error.what == f'plugins: "{tmp_path}/mine.py" cannot be imported' and error.why == f"no file {tmp_path}/mine.py"
    assert "give the path of the file" in error.fix and str(tmp_path) not in sys.path


def test_a_module_that_is_not_installed() -> None:
    error = refused("VA-C002", None, "plugins=[no_such_module_anywhere]")
    assert 'plugins: "no_such_module_anywhere" cannot be imported' in error.what and "No module named" in error.why
    assert "PYTHONPATH" in error.fix


@pytest.mark.parametrize("name", ["json", "sys", "visionattn"])
def test_a_file_with_the_name_of_another_module(tmp_path: Path, name: str) -> None:
    """It would be that module which is imported, and nothing registered."""
    path = write(tmp_path / f"{name}.py", ATTENTION_FILE)
    error = refused("VA-C002", None, f"plugins=[{path}]")
    assert f"another module is called {name}: " in error.why and "plugin_mix" not in ATTENTION
    assert (name == "sys") == ("a part of Python" in error.why)


def test_two_files_of_one_name(tmp_path: Path) -> None:
    first, second = (write(tmp_path / folder / "my_attention.py", ATTENTION_FILE) for folder in "ab")
    load_config(None, [f"plugins=[{first}]"])
    assert f"another module is called my_attention: {first}" in refused("VA-C002", None, f"plugins=[{second}]").why


def test_an_import_that_fails_inside(tmp_path: Path) -> None:
    path = write(tmp_path / "my_broken.py", "import no_such_module_anywhere\n")
    assert "no_such_module_anywhere" in refused("VA-C002", None, f"plugins=[{path}]").why


def test_a_file_that_is_not_valid_python(tmp_path: Path) -> None:
    path = write(tmp_path / "my_typo.py", "def mine(:\n")
    error = refused("VA-C002", None, f"plugins=[{path}]")
    assert "failed while it was imported" in error.what and error.why.startswith("SyntaxError: ")
