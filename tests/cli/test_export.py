"""`visionattn export`, and `predict` and `eval` from the file."""

from __future__ import annotations

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import visionattn as va
from tests.commands import CLASSES, Trained, done, only_run, refused, settings, tree
from visionattn.console import Console
from visionattn.jobs import quantize
from visionattn.runs.load import load_model
from visionattn.runs.shareable import shareable
from visionattn.tasks import CHANGEABLE, change_config

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

EXACT = "train.precision=fp32"  # as the file; a run uses bf16 where the CPU has it


@pytest.fixture(scope="module")
def exported(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "flowers.onnx"
    result = done("export", trained.run, "--out", path, "--verify", "1,3", "eval.threshold=0.4", "--json")
    answer = json.loads(result.stdout)
    assert answer["path"] == str(path) and answer["bytes"] == path.stat().st_size and tree(path.parent).keys() == {"flowers.onnx"}
    assert [(check["batch"], check["size"]) for check in answer["checks"]] == [(1, [32, 32]), (3, [32, 32])]
    assert all(0 <= check["difference"] < 1e-5 for check in answer["checks"])
    assert "dynamic batch, 32x32 px" in result.stderr and "largest relative difference" in result.stderr
    return path


def test_what_the_metadata_say(exported: Path) -> None:
    model = onnx.load(exported)
    facts = {item.key: item.value for item in model.metadata_props}
    assert json.loads(facts["classes"]) == list(CLASSES) and json.loads(facts["task"]) == "classify"
    assert json.loads(facts["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    assert json.loads(facts["thresholds"]) == {"threshold": 0.4, "temperature": 1.0}
    assert json.loads(facts["sizes"]) == {"size": [32, 32], "step": 0, "least": 0}
    assert json.loads(facts["licences"])["visionattn"] == "Apache-2.0"
    (image,) = model.graph.input
    assert image.name == "image" and image.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_predict_and_eval_from_the_file_as_from_the_run(trained: Trained, exported: Path, tmp_path: Path) -> None:
    source = trained.data / "test"
    for name, model in (("run", trained.run), ("file", exported)):
        done("predict", model, "--source", source, "--out", tmp_path / name, "--save", "json,csv,probs", "--threshold", 0.4, EXACT)
    assert tree(tmp_path / "run").keys() == tree(tmp_path / "file").keys()
    for mine, theirs in zip(*(csv.DictReader((tmp_path / name / "predictions.csv").open()) for name in ("run", "file")), strict=True):
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            assert theirs[key] == value or float(theirs[key]) == pytest.approx(float(value), abs=1e-5), key
    where = ("--data", trained.data)
    answers = [json.loads(done("eval", model, *where, "eval.threshold=0.4", EXACT, "--json").stdout) for model in (trained.run, exported)]
    assert answers[0]["metrics"] == pytest.approx(answers[1]["metrics"], abs=1e-5) and answers[0]["count"] == answers[1]["count"] == 12


def test_the_file_says_nothing_of_this_machine(trained: Trained, exported: Path) -> None:
    assert not any(str(folder).encode() in exported.read_bytes() for folder in (trained.data, trained.run.parent, Path(va.__file__).parent))
    assert "has no data" in refused(exported.parent, "VA-D001", 3, "eval", exported)


def test_the_file_needs_no_code_of_the_model(trained: Trained, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.tasks.classification.model.build_classifier", lambda *given: pytest.fail("a model is built"))
    found, _ = va.predict(exported, trained.data / "test" / "rose")
    assert len(found) == 2


def test_other_sizes_are_refused(trained: Trained, exported: Path) -> None:
    text = refused(exported.parent, "VA-M004", 2, "predict", exported, trained.data / "test", "eval.scales=[1.5]")
    assert "32x32 px, got 48x48 px" in text


def test_what_an_exported_file_is_not_for(trained: Trained, exported: Path, tmp_path: Path) -> None:
    refused(exported.parent, "VA-C002", 2, "features", exported, trained.data / "test", "--out", tmp_path / "x.npy")
    assert "exported file already" in refused(exported.parent, "VA-C002", 2, "export", exported)
    refused(exported.parent, "VA-C002", 2, "eval", exported, "--calibrate")
    assert "exists already" in refused(exported.parent, "VA-R007", 7, "export", trained.run, "--out", exported)
    (tmp_path / "program.pt2").write_bytes(b"")
    assert "torch.export.load" in refused(tmp_path, "VA-C002", 2, "predict", tmp_path / "program.pt2", trained.data / "test")


@pytest.mark.parametrize(
    "words",
    [
        ("--format", "onx"),
        ("--dynamic", "size"),
        ("--verify", "0"),
        ("--verify", "one"),
        ("--quantize", "int4"),
        ("--quantize", "int8", "--format", "pt2"),
        ("--out", "model.pt"),
    ],
)
def test_wrong_options(trained: Trained, words: tuple[str, ...]) -> None:
    assert words[0].removeprefix("--") in refused(trained.run, "VA-C002", 2, "export", trained.run, *words).lower()


def test_files_that_are_not_ours(trained: Trained, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model")
    assert "not a readable ONNX file" in refused(tmp_path, "VA-W005", 4, "predict", path, trained.data / "test")
    path.write_bytes(exported.read_bytes()[:-3000])
    refused(tmp_path, "VA-W005", 4, "predict", path, trained.data / "test")
    for key, value, code in (
        ("visionattn", None, "VA-W003"),
        ("visionattn", "2", "VA-W003"),
        ("config", "[", "VA-W005"),
        ("target", '["config", "x"]', "VA-W005"),
        ("sizes", '{"size": 3}', "VA-W005"),
        ("sizes", '{"size": [32, 32], "step": -1, "least": 0}', "VA-W005"),
        ("licences", "5", "VA-W005"),
        ("classes", '["a"]', "VA-W003"),
        ("classes", "[[1], [2], [3]]", "VA-W005"),
        ("preprocessing", "{}", "VA-W005"),
        ("preprocessing", '{"crop_pct": 1e-4}', "VA-W005"),  # an image of 320,000 pixels a side
        ("preprocessing", '{"mean": [0.5], "std": [0.5]}', "VA-W005"),
        ("preprocessing", '{"std": [0, 0, 0]}', "VA-W005"),
    ):
        model = onnx.load(exported)
        facts = {item.key: item.value for item in model.metadata_props}
        onnx.helper.set_model_props(model, {k: v for k, v in {**facts, key: value}.items() if v is not None})
        onnx.save(model, path)
        refused(tmp_path, code, 4, "predict", path, trained.data / "test")


def changed(source: Path, path: Path, **values: object) -> None:
    """A copy with other metadata."""
    model = onnx.load(source)
    facts = {item.key: item.value for item in model.metadata_props} | {key: json.dumps(value) for key, value in values.items()}
    onnx.helper.set_model_props(model, facts)
    onnx.save(model, path)


def test_a_graph_that_is_not_that_of_its_metadata(trained: Trained, exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "any.onnx"
    changed(exported, path, sizes={"size": [32, 32], "step": 1, "least": 0})
    text = refused(tmp_path, "VA-M005", 2, "predict", path, trained.data / "test" / "rose", "eval.scales=[1.5]")
    assert "2 images of 48x48 px" in text
    model = onnx.load(exported)
    model.graph.input[0].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    for node in list(model.graph.node):
        if "image" in node.input:
            node.input[list(node.input).index("image")] = "single"
    model.graph.node.insert(0, onnx.helper.make_node("Cast", ["image"], ["single"], to=onnx.TensorProto.FLOAT))
    onnx.save(model, path)
    assert "tensor(double)" in refused(tmp_path, "VA-W003", 4, "predict", path, trained.data / "test")


def test_calibration_takes_of_every_image(trained: Trained, exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantize, "CALIBRATION_IMAGES", 4)
    monkeypatch.setattr(quantize, "_WINDOWS", 1)
    loaded = load_model(trained.run)
    loaded = replace(loaded, config=change_config(loaded.config, ["eval.flips=horizontal", "eval.batch_size=2"], CHANGEABLE))
    inputs = quantize._training_inputs(exported, loaded, Console(quiet=True))
    assert len(inputs) == 4 and len({image.tobytes() for image in inputs}) == 4


def test_a_file_of_a_folder_lies_where_the_command_was_given(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done("push", trained.run, tmp_path / "flowers")
    monkeypatch.chdir(tmp_path / "flowers")
    done("export", ".", "--format", "safetensors", "--verify", 1)
    done("export", "local-dir:../flowers", "--format", "onnx", "--verify", 1)
    assert {path.name for path in Path.cwd().glob("flowers.*")} == {"flowers.safetensors", "flowers.onnx"}


def test_a_refused_file_leaves_nothing(trained: Trained, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("visionattn.jobs.export.TOLERANCE", -1.0)
    text = refused(trained.run, "VA-M005", 2, "export", trained.run, "--format", "safetensors")
    assert "was not kept" in text


def test_weights_with_everything_in_their_metadata(trained: Trained, tmp_path: Path) -> None:
    done("export", trained.run, "--format", "safetensors", "--out", tmp_path / "flowers.safetensors")
    loaded, run = load_model(tmp_path / "flowers.safetensors"), load_model(trained.run)
    image = torch.randn(2, 3, 32, 32)
    assert torch.equal(loaded.model(image), run.model(image)) and loaded.target == run.target and loaded.config == shareable(run)
    predictions = va.predict(tmp_path / "flowers.safetensors", trained.data / "test")[0]
    assert list(predictions) == list(va.predict(trained.run, trained.data / "test")[0])


def test_programs(trained: Trained, tmp_path: Path) -> None:
    done("export", trained.run, "--format", "pt2", "--out", tmp_path / "flowers.pt2", "--verify", "1,3")
    extra = {"visionattn.json": ""}
    program = torch.export.load(tmp_path / "flowers.pt2", extra_files=extra).module()
    image = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        assert torch.allclose(program(image), load_model(trained.run).model(image), atol=1e-6)
    assert json.loads(json.loads(extra["visionattn.json"])["classes"]) == list(CLASSES)
    assert str(Path(va.__file__).parent).encode() not in (tmp_path / "flowers.pt2").read_bytes()


@pytest.mark.slow
def test_int8(trained: Trained, tmp_path: Path) -> None:
    run = trained.copy(tmp_path)
    answer = json.loads(done("export", run, "--quantize", "int8", "--json").stdout)
    path = run / "export" / "model.int8.onnx"
    assert answer["path"] == str(path) and set(tree(run / "export")) == {"model.int8.onnx"}
    found = answer["quantized"]
    assert found["metric"] == "top1" and found["count"] == 12 and found["calibration"] == 24
    assert abs(found["before"] - found["after"]) <= 0.1
    assert json.loads(done("eval", path, "--data", trained.data, "--json").stdout)["metrics"]["top1"] == found["after"]
    types = {node.op_type for node in onnx.load(path).graph.node}
    assert "QuantizeLinear" in types


def crossings(root: Path) -> None:
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for number in range(2):
            pixels = rng.integers(0, 256, (45 + number, 70, 3), dtype=np.uint8)
            for kind, content in (("images", pixels), ("masks", (pixels[..., 0] > 128).astype(np.uint8))):
                (root / kind / split).mkdir(parents=True, exist_ok=True)
                Image.fromarray(content).save(root / kind / split / f"{number}.png")
    (root / "classes.txt").write_text("ground\nroad\n")


def test_segmentation_of_any_size(tmp_path: Path) -> None:
    crossings(tmp_path / "roads")
    small = settings(tmp_path, "model.head={name: upernet, args: {width: 8}}", "model.img_size=64", "train.batch_size=2")
    done("train", "--data", tmp_path / "roads", *small)
    run, path = only_run(tmp_path), tmp_path / "roads.onnx"
    answer = json.loads(done("export", run, "--out", path, "--verify", "1,3", "--json").stdout)
    assert answer["sizes"] == {"size": [64, 64], "step": 1, "least": 33} and len(answer["checks"]) == 4
    assert json.loads({item.key: item.value for item in onnx.load(path).metadata_props}["palette"])[0]
    for name, model in (("run", run), ("file", path)):
        done(
            "predict", model, "--source", tmp_path / "roads/images/val", "--out", tmp_path / name, "--save", "mask,overlay,json,csv", EXACT
        )
    ours, theirs = tree(tmp_path / "run"), tree(tmp_path / "file")
    assert ours.keys() == theirs.keys() and len([name for name in ours if name.startswith("masks/")]) == 2
    for name in [name for name in ours if name.startswith("masks/")]:
        one, two = (np.asarray(Image.open(tmp_path / kind / name)) for kind in ("run", "file"))
        assert one.shape in ((45, 70), (46, 70)) and (one != two).mean() < 0.01
    metrics = [json.loads(done("eval", model, "--data", tmp_path / "roads", EXACT, "--json").stdout)["metrics"] for model in (run, path)]
    assert metrics[0] == pytest.approx(metrics[1], abs=1e-3)
    shutil.rmtree(run)
    changed(path, path, sizes={"size": [64, 64], "step": 0, "least": 0})
    text = refused(tmp_path, "VA-M004", 2, "predict", path, tmp_path / "roads/images/val")
    assert "64x64 px, got 45x70 px" in text and "predict in windows: eval.mode=slide 'eval.tile=[64, 64]'" in text
    done("predict", path, tmp_path / "roads/images/val", "eval.mode=slide", "eval.tile=[64, 64]")
