"""Exported networks: the facts in the metadata of a file, and a network in an ONNX file that stands for the model of a run.

An ONNX file is run by ONNX Runtime on the CPU; no code of the model is used. Nothing is imported that a file names.
"""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import nn

from visionattn.backbones import Sizes
from visionattn.config.schema import RunConfig
from visionattn.errors import UserError, lacks_memory
from visionattn.models.weights.folders import Preprocessing
from visionattn.models.weights.load import read_file
from visionattn.tasks import saved_config, saved_target, task_of
from visionattn.tasks.base import Target, Task

MARK = "visionattn"  # key of the metadata of every file that we export; its value is the version of the other keys
VERSION = "1"
LIBRARIES = ("onnx", "onnxscript", "onnxruntime")

# The entries of a model's `pretrained_cfg` that its use needs.
_PREPROCESSING = ("architecture", "input_size", "mean", "std", "interpolation", "crop_pct", "shown")


class _Stated(dict[str, Any]):
    """Preprocessing read from a file; looking up a key that the file lacks raises VA-W005."""

    def __missing__(self, key: str) -> Any:
        raise UserError("VA-W005", f"the metadata of the exported file do not state {key}")


@dataclass(frozen=True)
class Facts:
    """Everything that the use of an exported network needs.

    Attributes:
        config: of the run.
        target: meaning of the outputs: classes, palette.
        preprocessing: as in `pretrained_cfg` of the model.
        sizes: of images that the network computes right.
        licences: of the code and of the weights that it began with.
    """

    config: RunConfig
    target: Target
    preprocessing: dict[str, Any]
    sizes: Sizes
    licences: dict[str, Any]

    @classmethod
    def of(cls, config: RunConfig, target: Target, model: Any, sizes: Sizes, licences: dict[str, Any]) -> Facts:
        cfg = getattr(model, "pretrained_cfg", {})
        return cls(config, target, {key: cfg[key] for key in _PREPROCESSING if key in cfg}, sizes, licences)

    @property
    def task(self) -> Task:
        return task_of(self.config)

    def texts(self) -> dict[str, str]:
        """Metadata of a file: JSON by key; each entry of the target is a key of its own, for other programs."""
        config = self.config.model_dump(mode="json")
        decision = {key: config["eval"][key] for key in ("threshold", "temperature") if key in config.get("eval", {})}
        values = {
            "task": self.config.task,
            "config": config,
            "preprocessing": self.preprocessing,
            "sizes": asdict(self.sizes),
            "thresholds": decision,
            "licences": self.licences,
            "target": list(self.target),
        }
        return {MARK: VERSION} | {key: json.dumps(value) for key, value in {**self.target, **values}.items()}

    @classmethod
    def read(cls, metadata: Mapping[str, str], path: Path) -> Facts:
        """Read the metadata of a file.

        Raises:
            UserError: VA-W003, the file was not exported by this package; VA-W005, damaged; VA-C001, VA-C002, VA-C006 for its config;
                VA-C002, a task whose networks are not exported.
        """
        if metadata.get(MARK) != VERSION:
            what = f"{path.name} was not exported by visionattn" if MARK not in metadata else f"{path.name}: metadata of another version"
            raise UserError("VA-W003", what, where=str(path), fix="export it: visionattn export RUN --format onnx")
        try:
            values, preprocessing, sizes, licences, names = (
                json.loads(metadata[key]) for key in ("config", "preprocessing", "sizes", "licences", "target")
            )
            config = saved_config(values)
            channels = task_of(config).network_input(config)[0]
            target = saved_target(task_of(config), config, {name: json.loads(metadata[name]) for name in names})
            sizes = TypeAdapter(Sizes).validate_python(sizes)
            if min(*sizes.size, sizes.step + 1, sizes.least + 1) < 1:
                raise ValueError(f"sizes: {sizes}")
            return cls(config, target, _preprocessing(preprocessing, channels), sizes, dict(licences))
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:  # the metadata are whatever the file says
            why = f"{type(error).__name__}: {str(error)[:300]}"
            raise UserError("VA-W005", f"the metadata of {path.name} describe no model", where=str(path), why=why) from error


def _preprocessing(stated: Mapping[str, Any], channels: int) -> _Stated:
    """Check the preprocessing in the metadata of a file, for images of `channels` channels.

    Raises:
        ValueError: values that cannot be used to prepare an image.
    """
    found = _Stated(Preprocessing.of(stated))
    if "architecture" in stated:
        found["architecture"] = str(stated["architecture"])
    if "shown" in stated:
        found["shown"] = TypeAdapter(tuple[int, ...]).validate_python(stated["shown"])
    counts = {name: len(found[name]) for name in ("mean", "std") if name in found}
    if set(counts.values()) - {channels} or not all(0 <= place < channels for place in found.get("shown", ())):
        raise ValueError(f"preprocessing is not of {channels} channels")
    return found


class OnnxNetwork(nn.Module):
    """A network in an ONNX file: images `[B, C, H, W]` to outputs, on the device of the images.

    Attributes:
        pretrained_cfg: preprocessing, in timm's keys.
        num_classes: channels of the output.

    Raises:
        UserError: in `forward`: VA-M004, a size that the file does not hold for; VA-M005, its runtime fails.
    """

    def __init__(self, session: Any, facts: Facts) -> None:
        super().__init__()
        self.session, self.facts, self.pretrained_cfg = session, facts, facts.preprocessing
        self.num_classes: int = session.get_outputs()[0].shape[1]

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        size = (image.shape[2], image.shape[3])
        if not self.facts.sizes.holds(size):
            raise UserError(
                "VA-M004",
                f"the exported network takes images of {self.facts.sizes.text()}, got {size[0]}x{size[1]} px",
                why="at other sizes its graph would compute something else",
                fix=self.facts.task.size_advice(self.facts.sizes.size),
            )
        pixels = image.detach().float().cpu().contiguous().numpy()
        try:
            (output,) = self.session.run(None, {self.session.get_inputs()[0].name: pixels})
        except Exception as error:  # its errors have no common type
            if lacks_memory(error):
                raise
            where, why = f"{len(image)} images of {size[0]}x{size[1]} px", str(error).partition("\n")[0][:300]
            raise UserError("VA-M005", "ONNX Runtime cannot compute the network of the file", where=where, why=why) from error
        return torch.from_numpy(output).to(image.device)


def open_onnx(path: Path) -> tuple[Facts, OnnxNetwork]:
    """The facts and the network of an exported ONNX file.

    Raises:
        UserError: VA-R007, ONNX Runtime is not installed; VA-W003, another network than its metadata describe; VA-W005, not an ONNX
            file; as `Facts.read`.
    """
    require_onnx()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3  # errors
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common type
        why = str(error).partition("\n")[0][:300]
        fix = "export it: visionattn export RUN --format onnx"
        raise UserError("VA-W005", f"{path.name} is not a readable ONNX file", where=str(path), why=why, fix=fix) from error
    facts = Facts.read(session.get_modelmeta().custom_metadata_map, path)
    if wrong := _mismatch(session, facts):
        what = f"the network in {path.name} is not the one that its metadata describe"
        raise UserError("VA-W003", what, where=str(path), why=wrong, fix="export it: visionattn export RUN --format onnx")
    return facts, OnnxNetwork(session, facts)


def _mismatch(session: Any, facts: Facts) -> str:
    """How a graph differs from its metadata; empty if it does not."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    if len(inputs) != 1 or len(outputs) != 1:
        return f"it has {len(inputs)} inputs and {len(outputs)} outputs, not one of each"
    (image,), (output,), channels = inputs, outputs, facts.task.network_input(facts.config)[0]
    if len(image.shape) != 4 or image.shape[1] != channels or len(output.shape) < 2:
        return f"it computes {output.shape} from {image.shape}, and the images have {channels} channels"
    if {image.type, output.type} != {"tensor(float)"}:
        return f"it computes {output.type} from {image.type}, not tensor(float)"
    names = facts.target.get("classes")
    one_of_two = len(output.shape) == 4 and output.shape[1] == 1  # segmentation separates two classes by one logit
    if names is not None and output.shape[1] != len(names) and not (one_of_two and len(names) == 2):
        return f"it has {output.shape[1]} outputs for {len(names)} classes"
    return ""


def open_weights(path: Path) -> tuple[Facts, nn.Module] | None:
    """The facts and the model of an exported file of weights; None for any other .safetensors file.

    Raises:
        UserError: VA-W003, the weights do not fit the model; as `Facts.read`.
    """
    metadata = _metadata(path)
    if MARK not in metadata:
        return None
    facts = Facts.read(metadata, path)
    try:
        model: Any = facts.task.build_model(facts.config, facts.target)
        model.load_state_dict(read_file(path))
    except (KeyError, TypeError, AttributeError, RuntimeError) as error:
        why = "\n".join(line.strip() for line in str(error).splitlines()[:4])
        what = f"the weights in {path.name} do not fit the model of its metadata"
        raise UserError("VA-W003", what, where=str(path), why=why) from error
    model.pretrained_cfg = {**getattr(model, "pretrained_cfg", {}), **facts.preprocessing}
    return facts, model


def require_onnx() -> None:
    """Check that the extra is there, without importing it.

    Raises:
        UserError: VA-R007.
    """
    for name in LIBRARIES:
        if find_spec(name) is None:
            fix = 'pip install "visionattn[onnx]"'
            raise UserError("VA-R007", f"ONNX files need the package {name}, which is not installed", fix=fix)


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep what exporters and quantisers tell their developers off the terminal, and standard output for JSON."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _metadata(path: Path) -> dict[str, str]:
    """Metadata in the header of a .safetensors file; none if it cannot be read, which is reported when its tensors are."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return {}
