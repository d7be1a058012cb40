"""What holds for any input, tried on inputs that hypothesis makes up and shrinks."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from visionattn.config.read import to_yaml
from visionattn.data.images.labels import load_data
from visionattn.data.images.settings import LabelDataConfig
from visionattn.data.masks.layouts import find_mask_layout, read_pairs
from visionattn.data.masks.settings import MaskDataConfig
from visionattn.data.tables import read_csv
from visionattn.errors import UserError
from visionattn.files import csv_text
from visionattn.kernels import neighborhood_attention, window_attention
from visionattn.names import file_name, shown
from visionattn.runs.checkpoint import read_checkpoint, save_checkpoint
from visionattn.tasks import load_config

LIMITED = settings(max_examples=40, deadline=None, derandomize=True)
TEXT = st.text(max_size=30)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=8,
)
# Paths that a person may give a file or folder, of a few parts, so that they collide often.
PART = st.sampled_from(
    ["a", "b", "images", "masks", "image", "mask", "train", "val", "x.png", "y.jpg", "x_mask.png", "train.csv", ".hidden"]
)


@LIMITED
@given(st.dictionaries(st.sampled_from(["task", "model", "data", "train", "optim", "loss", "seed", "base"]), PLAIN, max_size=3))
def test_a_config_of_anything_is_read_or_refused(values: dict[str, object]) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, "config.yaml")
        try:
            file.write_text(to_yaml(values), encoding="utf-8")
            config = load_config(file)
            file.write_text(to_yaml(config.model_dump(mode="json")), encoding="utf-8")
            assert load_config(file) == config
        except UserError as error:
            assert str(error)


@LIMITED
@given(st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=5))
def test_what_is_written_as_csv_is_read_back_as_it_is_shown(rows: list[tuple[str, str]]) -> None:
    read = list(csv.reader(io.StringIO(csv_text(["path", "label"], rows), newline="")))[1:]
    assert [[cell.lstrip("'") for cell in row] for row in read] == [[shown(cell).lstrip("'") for cell in row] for row in rows]


@LIMITED
@given(st.binary(max_size=200) | st.text(alphabet='path,label;\t"\n\r\0aé', max_size=200).map(str.encode))
def test_a_list_of_anything_is_read_or_refused(content: bytes) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, "train.csv")
        for head in (b"", b"path,label\n"):
            file.write_bytes(head + content)
            try:
                table = read_csv(file, ("path", "label"))
            except UserError as error:
                assert error.code == "VA-D002"
            else:
                assert table.rows and all(row.keys() == set(table.columns) for row in table.rows)


@LIMITED
@given(st.lists(st.lists(PART, min_size=1, max_size=4).map("/".join), max_size=12))
def test_a_folder_of_anything_is_read_or_refused(paths: list[str]) -> None:
    with TemporaryDirectory() as folder:
        for path in paths:
            place = Path(folder, path)
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                place.write_bytes(b"")
            except (FileExistsError, NotADirectoryError, IsADirectoryError):
                continue
        try:
            data = load_data(LabelDataConfig(root=folder, val_fraction=0.5), seed=0, in_chans=3)
            assert all(not set(one.ids) & set(other.ids) for one in data.sets for other in data.sets if one is not other)
        except UserError as error:
            assert error.code[3] in "DC"
        try:
            given = MaskDataConfig(root=folder)
            pairs = read_pairs(find_mask_layout(given), given)
            assert all(pair.path != pair.mask_path for part in pairs.parts.values() for pair in part)
        except UserError as error:
            assert error.code[3] in "DC"


@LIMITED
@given(st.text())
def test_a_file_can_be_named_after_anything(name: str) -> None:
    safe = file_name(name, ".png")
    assert 4 < len(safe.encode()) <= 255 and Path(safe).name == safe and shown(safe) == safe


@LIMITED
@given(st.dictionaries(st.text(min_size=1, max_size=8), st.lists(st.integers(0, 3), max_size=3), min_size=1, max_size=4), st.integers(0, 9))
def test_a_checkpoint_of_any_tensors_is_read_back(shapes: dict[str, list[int]], step: int) -> None:
    model = {name: torch.arange(float(torch.Size(shape).numel())).view(shape) for name, shape in shapes.items()}
    with TemporaryDirectory() as folder:
        save_checkpoint(Path(folder), model=model, ema=None, state={"step": step}, meta={"step": step})
        read, _, state = read_checkpoint(Path(folder, "last"))
    assert state == {"step": step} and read.keys() == model.keys() and all(torch.equal(read[name], model[name]) for name in model)


@LIMITED
@given(st.data())
def test_neighborhood_attention_of_any_size_is_its_definition(data: st.DataObject) -> None:
    kernel = data.draw(st.tuples(st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 5])))
    dilation = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    height, width = (size * steps + data.draw(st.integers(0, 5)) for size, steps in zip(kernel, dilation, strict=True))
    batch, heads, dim = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5)))
    border = data.draw(st.sampled_from(["shift", "mask"]))
    q, k, v = torch.randn(3, batch, height, width, heads, dim, dtype=torch.float64)
    fast, exact = (neighborhood_attention(q, k, v, kernel, dilation, border=border, backend=name) for name in ("torch", "reference"))
    assert torch.allclose(fast, exact, rtol=0, atol=1e-12)


@LIMITED
@given(st.data())
def test_window_attention_of_any_size_is_its_definition(data: st.DataObject) -> None:
    window = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    shift = tuple(data.draw(st.integers(0, side - 1)) for side in window)
    height, width = (side * data.draw(st.integers(1, 4)) for side in window)
    batch, heads, dim = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 3), st.integers(1, 5)))
    q, k, v = torch.randn(3, batch, height, width, heads, dim, dtype=torch.float64)
    fast, exact = (window_attention(q, k, v, window_size=window, shift=shift, backend=name) for name in ("torch", "reference"))
    assert torch.allclose(fast, exact, rtol=0, atol=1e-12)
