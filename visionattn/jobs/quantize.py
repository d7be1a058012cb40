"""Weights and activations of 8 bits for an exported network, with the metrics that they cost."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from visionattn.console import Console
from visionattn.data.loading import eval_loader
from visionattn.engine.devices import inference_settings
from visionattn.errors import UserError
from visionattn.jobs.evaluate import measure
from visionattn.runs.exported import Facts, open_onnx, quiet_libraries
from visionattn.runs.load import LoadedModel
from visionattn.tasks.base import Evaluation

CALIBRATION_IMAGES = 128  # spread over the training split
_WINDOWS = 4  # inputs of an image: windows and flips of large images are many


@dataclass(frozen=True)
class Quantized:
    """What quantisation costs on the validation split.

    Attributes:
        metric: the one that chooses the best checkpoint.
        before, after: its values with float32 and with int8.
        count: images of the split.
        calibration: training images that the ranges of the activations come from.
    """

    metric: str
    before: float | None
    after: float | None
    count: int
    calibration: int


class _Recorder(nn.Module):
    """Keeps the inputs of a network, as evaluation makes them."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network, self.pretrained_cfg, self.num_classes = network, network.pretrained_cfg, network.num_classes
        self.inputs: list[np.ndarray] = []

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        self.inputs += list(image.float().cpu().numpy()[:, None])
        output: torch.Tensor = self.network(image)
        return output


class _Part(torch.utils.data.Dataset[Any]):
    """Some samples of a dataset."""

    def __init__(self, dataset: Any, indices: list[int]) -> None:
        self.dataset, self.indices, self.collate = dataset, indices, dataset.collate
        self.ids = [dataset.ids[index] for index in indices]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, key: int) -> Any:
        return self.dataset[self.indices[key]]


def quantize_static(path: Path, loaded: LoadedModel, facts: Facts, console: Console) -> Quantized:
    """Replace an ONNX file by its quantised form: int8 weights per channel, uint8 activations with fixed ranges.

    The ranges are calibrated on training images, prepared as in evaluation. The metrics before and after are those of the validation
    split of the run; they are printed.

    Args:
        path: the file.
        loaded: the model in it, with the config that says where its data are.
        facts: the metadata of the file.
        console: where the metrics are printed.

    Raises:
        UserError: VA-C002, the model has no data; VA-D001 to VA-D005, its data cannot be read.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType
    from onnxruntime.quantization import quantize_static as quantize

    if not loaded.config.data.has_source:
        why = "the ranges of the activations come from training images"
        raise UserError("VA-C002", "--quantize: the model has no data", why=why, fix="train a run first, and export it")
    inputs = _training_inputs(path, loaded, console)
    before = _evaluation(path, loaded)
    quantized = path.with_name(f"{path.stem}-int8{path.suffix}")
    try:
        with quiet_libraries():
            quantize(
                str(path),
                str(quantized),
                _Reader(inputs),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                weight_type=QuantType.QInt8,
                activation_type=QuantType.QUInt8,
                calibrate_method=CalibrationMethod.MinMax,
                op_types_to_quantize=["Conv", "Gemm", "MatMul"],
                nodes_to_exclude=_products(path),
            )
        _with_metadata(quantized, facts)
        quantized.replace(path)
    finally:
        quantized.unlink(missing_ok=True)
    after = _evaluation(path, loaded)
    metric = loaded.task.monitor(loaded.config)
    result = Quantized(metric, before.metrics[metric], after.metrics[metric], after.count, len(inputs))
    display = loaded.task.display
    name, (old, new) = display.metric_name(metric), (display.text(metric, value, 2) for value in (result.before, result.after))
    console.field("int8", f"{name} {old} -> {new} on val ({result.count} {loaded.task.unit}s), calibrated on {result.calibration} inputs")
    return result


def _products(path: Path) -> list[str]:
    """Names of the products of two activations, as of queries and keys, which stay in float32: without weights they gain little."""
    import onnx

    graph = onnx.load(path).graph
    constants = {tensor.name for tensor in graph.initializer}
    products = []
    for node in graph.node:
        if constants.issuperset(node.input):
            constants.update(node.output)
        elif node.op_type == "MatMul" and not constants.intersection(node.input):
            products.append(node.name)
    return products


def _evaluation(path: Path, loaded: LoadedModel) -> Evaluation:
    """Evaluate the network in a file on the validation split."""
    return measure([replace(loaded, model=open_onnx(path)[1])], path.name, None, "val", None, (), Console(quiet=True))[0]


class _Reader:
    """The calibration data as ONNX Runtime asks for them."""

    def __init__(self, inputs: list[np.ndarray]) -> None:
        self._inputs: Iterator[np.ndarray] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        image = next(self._inputs, None)
        return None if image is None else {"image": image}


def _training_inputs(path: Path, loaded: LoadedModel, console: Console) -> list[np.ndarray]:
    """Inputs of the network, `[1, C, H, W]` each, for images of the training split."""
    recorder = _Recorder(open_onnx(path)[1])
    train = inference_settings(loaded.config.train, console.warn)
    config = loaded.config.model_copy(update={"train": train, "data": loaded.config.data.read_once()})
    task, target = loaded.task, loaded.target
    dataset = task.eval_dataset(config, recorder, task.read_split(config, "train", target))
    predictor = task.predictor(config, target, recorder, torch.device("cpu"))
    inputs: list[np.ndarray] = []
    for batch in eval_loader(_Part(dataset, _spread(len(dataset), CALIBRATION_IMAGES)), task.eval_batch_size(config), 0):
        if len(batch):
            with torch.inference_mode():
                predictor(batch)
            inputs += [recorder.inputs[index] for index in _spread(len(recorder.inputs), _WINDOWS * len(batch))]
            recorder.inputs.clear()
    return inputs


def _spread(count: int, most: int) -> list[int]:
    """At most `most` of the numbers below `count`, evenly spread."""
    return np.linspace(0, count - 1, min(most, count)).round().astype(int).tolist()


def _with_metadata(path: Path, facts: Facts) -> None:
    """Give a file the metadata of the one it was made from."""
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, facts.texts())
    onnx.save(model, path)
