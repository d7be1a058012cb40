"""The wheel, built from the source distribution, in fresh environments. Run by `make test-wheel`.

An environment holds links to installed distributions: those that the wheel requires, directly or not, and no others. That takes a second
where an installation takes a minute and gigabytes; `make test-lowest` and `make test-newest` install.
"""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections.abc import Iterable
from importlib.metadata import Distribution, distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.release.build import build, run

# What networks, their weights and the registry of timm need; the rest is for data, training and the command line.
LEAST = ("torch", "timm", "pydantic", "platformdirs", "requests", "rich")

MODELS = """
import torch, visionattn, visionattn.kernels
from visionattn.integrations.timm import register
model = visionattn.create_model("nat_mini", num_classes=3, depths=(1, 1, 1), embed_dim=8, num_heads=(1, 2, 4), dilations=(1, 1, 1)).eval()
assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 3)
visionattn.load_checkpoint(model, model.state_dict())
segmenter = visionattn.create_segmenter("eca_resnet18", "upernet", num_classes=2, backbone_args={"width": 8}, width=8).eval()
assert segmenter(torch.zeros(1, 3, 64, 64)).shape[-2:] == (64, 64)
assert len(register()) == len(visionattn.list_models()) > 100
print(visionattn.__file__)
"""

# Modules that need an extra, with what they import; each is imported by a command only where it is used.
EXTRA = {"visionattn.integrations.mmseg": "mmengine"}
EVERY_MODULE = f"""
import importlib, pkgutil, visionattn
from visionattn.errors import UserError
for module in pkgutil.walk_packages(visionattn.__path__, "visionattn."):
    if module.name == "visionattn.__main__":
        continue
    try:
        importlib.import_module(module.name)
    except UserError as error:
        missing = {EXTRA!r}[module.name]
        assert error.code == "VA-R007" and missing in str(error), error
    except ModuleNotFoundError as error:
        # Imported by `serve` only, after it has looked for the extra.
        assert module.name == "visionattn.jobs.serve_app" and error.name == "uvicorn", error
print(visionattn.__version__)
"""

USER = """
import visionattn
from visionattn import create_model, load_checkpoint

model = create_model("swin_tiny", num_classes=5)
classes: int = model.num_classes
names: list[str] = visionattn.list_models("swin*")
run = visionattn.train("quickstart")
score: float | None = visionattn.evaluate(run.run, split="test").metrics["top1"]
# What mypy does not object to here is an error: strict mode reports comments that are not needed.
load_checkpoint(model, "weights.pth", strict="yes")  # type: ignore[call-arg]
create_model(5)  # type: ignore[call-overload]
visionattn.list_models(5)  # type: ignore[arg-type]
wrong: int = visionattn.__version__  # type: ignore[assignment]
"""
MYPY = """
[mypy]
strict = true
[mypy-torch.*,torchvision.*,timm.*,numpy.*,PIL.*,matplotlib.*,sklearn.*,scipy.*,pydantic.*]
follow_imports = skip
follow_imports_for_stubs = true
"""


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return build(tmp_path_factory.mktemp("build"))


@pytest.fixture(scope="session")
def core(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of an environment with the wheel, and what it requires."""
    return install(tmp_path_factory.mktemp("core") / "env", built[1], distribution("visionattn").requires or [])


@pytest.fixture(scope="session")
def least(built: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return install(tmp_path_factory.mktemp("least") / "env", built[1], LEAST, "--no-deps")


def required(requirements: Iterable[str]) -> dict[str, Distribution]:
    """Installed distributions that these requirements lead to."""
    found: dict[str, Distribution] = {}
    seen, wanted = set(), [(Requirement(text), "") for text in requirements]
    while wanted:
        need, extra = wanted.pop()
        if need.marker is not None and not need.marker.evaluate({"extra": extra}):
            continue
        name = canonicalize_name(need.name)
        found[name] = distribution(name)
        for asked in ("", *need.extras):
            if (name, asked) not in seen:
                seen.add((name, asked))
                wanted += [(Requirement(text), asked) for text in found[name].requires or []]
    return found


def install(folder: Path, wheel: Path, requirements: Iterable[str], *options: str) -> Path:
    """Make an environment of links, and let pip install the wheel; it fails if a requirement is missing or of another version."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    site = Path(run([str(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]).strip())
    for dist in required(requirements).values():
        for top in {file.parts[0] for file in dist.files or ()} - {"..", "__pycache__"}:
            if not (site / top).exists():
                (site / top).symlink_to(Path(str(dist.locate_file(top))).resolve())
    run([sys.executable, "-m", "pip", "--python", str(python), "install", "--no-index", *options, str(wheel)], env=clean(), cwd=folder)
    return python.parent


def clean(**more: str) -> dict[str, str]:
    """The environment of this process without what leads to the checkout."""
    return {**{key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}, "OMP_NUM_THREADS": "1", **more}


def test_requirements_are_those_of_the_checkout(built: tuple[Path, Path], core: Path) -> None:
    """`core` was made from the metadata of the installed checkout, which is old if pyproject.toml has changed since."""
    text = run([str(core / "python"), "-c", "import importlib.metadata as m; print('\\n'.join(m.requires('visionattn')))"], env=clean())
    assert text.splitlines() == list(distribution("visionattn").requires or []), "install the checkout again: make install"


def test_nothing_else_is_there(core: Path) -> None:
    for name in ("pytest", "onnx", "monai", "h5py", "pytorch_grad_cam", "datasets"):
        done = subprocess.run([str(core / "python"), "-c", f"import {name}"], capture_output=True, text=True, env=clean())
        assert "ModuleNotFoundError" in done.stderr, name


def test_every_module_is_imported_without_extras(core: Path, tmp_path: Path) -> None:
    version = run([str(core / "python"), "-c", EVERY_MODULE], env=clean(), cwd=tmp_path)
    assert run([str(core / "visionattn"), "--version"], env=clean(), cwd=tmp_path) == version


def test_it_trains_evaluates_and_predicts(core: Path, tmp_path: Path) -> None:
    env = clean(VISIONATTN_CACHE=str(tmp_path / "cache"))
    command = [str(core / "visionattn")]
    small = ["train.epochs=1", "data.workers=0", "model.args.depths=[1,1,1]", "model.args.embed_dim=16", "model.args.num_heads=[1,2,4]"]
    run([*command, "train", "--config", "quickstart", *small], env=env, cwd=tmp_path)
    (folder,) = (tmp_path / "runs/quickstart").glob("0*")
    assert (folder / "report.html").is_file()
    assert "top1" in run([*command, "eval", str(folder), "--split", "test", "--json"], env=env, cwd=tmp_path)
    from PIL import Image

    Image.new("L", (8, 8), 128).save(tmp_path / "digit.png")
    run([*command, "predict", str(folder), "--source", "digit.png", "--out", "predictions"], env=env, cwd=tmp_path)
    assert (tmp_path / "predictions/predictions.csv").is_file()


def test_networks_need_little(least: Path, tmp_path: Path) -> None:
    place = run([str(least / "python"), "-c", MODELS], env=clean(), cwd=tmp_path).strip()
    assert Path(place).is_relative_to(least.parent)
    for name in ("albumentations", "typer", "omegaconf", "accelerate"):
        done = subprocess.run([str(least / "python"), "-c", f"import {name}"], capture_output=True, text=True, env=clean())
        assert "ModuleNotFoundError" in done.stderr, name


def test_a_users_file_is_type_checked(core: Path, tmp_path: Path) -> None:
    """Against the installed package: that it has types (py.typed) is not enough, its names have to have them too."""
    (tmp_path / "user.py").write_text(USER, encoding="utf-8")
    (tmp_path / "mypy.ini").write_text(MYPY, encoding="utf-8")
    command = [sys.executable, "-m", "mypy", "--python-executable", str(core / "python"), "user.py"]
    done = subprocess.run(command, capture_output=True, text=True, env=clean(), cwd=tmp_path)
    assert done.stdout == "Success: no issues found in 1 source file\n", done.stdout + done.stderr
