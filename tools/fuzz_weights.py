"""Damage checkpoint files at random and import and load each: it works, or is refused with one line. Anything else is a fault.

python tools/fuzz_weights.py --count 5000
python tools/fuzz_weights.py --seconds 600 --seed 7
python tools/fuzz_weights.py --seed 7 --only 1234        # one file again, with the traceback

Files with faults are kept in `--keep`, named after seed and number, with their traceback beside them.
"""

from __future__ import annotations

import argparse
import io
import json
import logging
import os
import random
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save as save_safetensors

from visionattn.backbones import registry
from visionattn.backbones.registry import Variant, get_variant
from visionattn.errors import UserError
from visionattn.models import create_model, create_segmenter, load_checkpoint
from visionattn.models.weights.importing import import_file

Content = dict[Any, Any]

SECONDS = 30.0  # more for one file is a fault
MEMORY = 4 * 2**30  # so are more bytes of addresses than at the start
# Registered name -> arguments that make it small; the only models while the tool runs.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 4, 8)}),
    "swinv2": ("swinv2_tiny_window8", {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 4, 8)}),
    "dinat": ("dinat_mini", {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 4, 8), "dilations": (1, 1, 1, 1)}),
    "davit": ("davit_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 4, 8)}),
    "van": ("van_b0", {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32)}),
    "biformer": ("biformer_tiny", {"depths": (1, 1, 1, 1), "embed_dim": 16, "num_heads": (1, 2, 4, 8)}),
    "transnext": ("transnext_micro", {"depths": (1, 1, 1, 1), "embed_dim": 8, "num_heads": (1, 2, 4, 8)}),
    "eca": ("eca_resnet18", {"depths": (1, 1, 1, 1), "width": 8}),
}
EXTREMES = (0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63, 2**64 - 1)


class Slow(Exception):
    """A file that took too long."""


@contextmanager
def small_models() -> Iterator[None]:
    """Make small variants the only registered ones: files are small, and recognised in milliseconds."""
    before = dict(registry._VARIANTS)
    small = {}
    for name, (whole, args) in SMALL.items():
        variant = get_variant(whole)
        small[name] = Variant(name, variant.cls, {**variant.args, **args}, variant.cfg)
    registry._VARIANTS.clear()
    registry._VARIANTS.update(small)
    try:
        yield
    finally:
        registry._VARIANTS.clear()
        registry._VARIANTS.update(before)


def originals() -> dict[str, dict[str, torch.Tensor]]:
    """State dicts of a classifier of every small model, of one without classifier, and of segmentation models."""
    torch.manual_seed(0)
    states = {name: create_model(name, num_classes=3).state_dict() for name in SMALL}
    states["headless"] = create_model("eca", num_classes=0).state_dict()
    states["semantic_fpn"] = create_segmenter("van", "semantic_fpn", 2, neck_width=8, width=8).state_dict()
    states["upernet"] = create_segmenter("eca", "upernet", 2, width=8, aux=False).state_dict()
    return states


def damaged(rng: random.Random, states: dict[str, dict[str, torch.Tensor]]) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a damaged file."""
    content: Content = dict(states[rng.choice(list(states))])
    kind = rng.choice(("archive", "legacy", "safetensors"))
    inside, outside = rng.choice(((1, 0), (2, 0), (0, 1), (1, 1), (3, 2)))
    for _ in range(inside):
        with suppress(RuntimeError):  # not possible after the change before
            rng.choice(TENSOR_CHANGES)(rng, content)
    if kind == "safetensors":
        plain = {str(key): value.contiguous().clone() for key, value in content.items() if _storable(value)}
        data, suffix = save_safetensors(plain), ".safetensors"
        changes: list[Change] = [_edit_header, _edit_header, *BYTE_CHANGES]
    else:
        for _ in range(rng.choice((0, 1, 1, 2))):
            content = rng.choice(CONTAINER_CHANGES)(rng, content)
        if rng.random() < 0.1:
            content = _attribute(rng, content)
        buffer = io.BytesIO()
        torch.save(content, buffer, _use_new_zipfile_serialization=kind == "archive")
        data, suffix = buffer.getvalue(), ".pth"
        changes = [_edit_archive, _edit_archive, *BYTE_CHANGES] if kind == "archive" else [_edit_start, *BYTE_CHANGES]
    for _ in range(outside):
        data = rng.choice(changes)(rng, data)
    return suffix, data


# ---------------------------------------------------------------- tensors and containers


def _pick(rng: random.Random, content: Content) -> Any:
    keys = [key for key, value in content.items() if isinstance(value, torch.Tensor)]
    return rng.choice(keys) if keys else None


def _rename(rng: random.Random, content: Content) -> None:
    key = _pick(rng, content)
    if key is None:
        return
    parts = str(key).split(".")
    place = rng.randrange(len(parts))
    parts[place] = rng.choice(("", "0", "99", "head", "backbone", "a" * 600, "\x1b[31m", "\u00e9", parts[0] * 3, "-1"))
    content[".".join(parts)] = content.pop(key)


def _remove(rng: random.Random, content: Content) -> None:
    for _ in range(rng.choice((1, 1, 3, 20))):
        content.pop(_pick(rng, content), None)


def _swap(rng: random.Random, content: Content) -> None:
    first, second = _pick(rng, content), _pick(rng, content)
    if first is not None:
        content[first], content[second] = content[second], content[first]


def _retype(rng: random.Random, content: Content) -> None:
    kinds = (torch.float64, torch.float16, torch.bfloat16, torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn)
    kind, every = rng.choice(kinds), rng.random() < 0.3
    for key in list(content) if every else [_pick(rng, content)]:
        if isinstance(content.get(key), torch.Tensor):
            content[key] = content[key].to(kind)


def _reshape(rng: random.Random, content: Content) -> None:
    key = _pick(rng, content)
    if key is None:
        return
    value = content[key]
    content[key] = rng.choice(
        (
            value.flatten(),
            value.flatten()[:0],
            value.flatten()[:1].reshape(()) if value.numel() else value,
            value[None],
            value.mT if value.dim() > 1 else value[:, None] if value.dim() else value,
            torch.cat([value, value]) if value.dim() else value,
            torch.zeros(*value.shape[:-1], 0) if value.dim() else torch.zeros(0),
            torch.zeros([1] * 9),
            value.expand(2, *value.shape),
            torch.zeros(()).expand(value.shape),
        )
    )


def _poison(rng: random.Random, content: Content) -> None:
    key = _pick(rng, content)
    if key is not None and content[key].is_floating_point():
        content[key] = torch.full_like(content[key], rng.choice((float("nan"), float("inf"), 0.0, 1e30)))


def _replace(rng: random.Random, content: Content) -> None:
    key = _pick(rng, content)
    if key is None:
        return
    value = content[key]
    content[key] = rng.choice(
        (
            None,
            7,
            "text",
            [value],
            {"weight": value},
            torch.nn.Parameter(value) if value.is_floating_point() else value,
            value.to_sparse() if value.dim() and value.dtype == torch.float32 else value,
            value.to("meta"),
            torch.quantize_per_tensor(value, 0.1, 0, torch.qint8) if value.dtype == torch.float32 else value,
        )
    )


def _add(rng: random.Random, content: Content) -> None:
    key = _pick(rng, content)
    content[rng.choice(("n_averaged", "extra.weight", "epoch", 3, None, ("a", 1), f"{key}.more", "auxiliary_head.conv_seg.weight"))] = (
        rng.choice((torch.zeros(2, 3), torch.tensor(5), torch.zeros(0), 7))
    )


def _prefix(rng: random.Random, content: Content) -> None:
    prefix = rng.choice(("module.", "_orig_mod.", "model.", "net.", "backbone.", "encoder.", "decode_head.", "ema_model.", "."))
    share = rng.choice((1.0, 1.0, 0.5))
    for key in [key for key in content if isinstance(key, str) and rng.random() < share]:
        content[prefix + key] = content.pop(key)


def _contain(rng: random.Random, content: Content) -> Content:
    names = ("state_dict", "model", "model_ema", "ema", "module", "net", "model_state_dict", "meta", "other")
    extra: Content = {rng.choice(names): rng.choice((content, {}, 3, [content], OrderedDict(content)))} if rng.random() < 0.5 else {}
    return {**extra, rng.choice(names): content, "epoch": 3, "args": argparse.Namespace(lr=0.1, get=3)}


def _nest(rng: random.Random, content: Content) -> Content:
    for _ in range(rng.choice((2, 6, 200))):
        content = {rng.choice(("model", "state_dict")): content}
    return content


def _cycle(rng: random.Random, content: Content) -> Content:
    content[rng.choice(("model", "state_dict", "ema"))] = content
    return content


def _attribute(rng: random.Random, content: Content) -> Content:
    made: Any = OrderedDict(content)
    setattr(made, rng.choice(("_metadata", "get", "keys", "values")), OrderedDict())
    return made  # type: ignore[no-any-return]


TENSOR_CHANGES: list[Callable[[random.Random, Content], None]] = [
    _rename,
    _remove,
    _swap,
    _retype,
    _reshape,
    _reshape,
    _poison,
    _replace,
    _add,
    _prefix,
]
CONTAINER_CHANGES: list[Callable[[random.Random, Content], Content]] = [_contain, _contain, _nest, _cycle]

# ---------------------------------------------------------------- bytes

Change = Callable[[random.Random, bytes], bytes]


def _flip(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 3, 50))):
        if made:
            made[rng.randrange(len(made))] = rng.randrange(256)
    return bytes(made)


def _cut(rng: random.Random, data: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    return rng.choice((data[:start], data[start:], data[:start] + data[end:], data[:start] + data[start:end] * 2 + data[end:]))


def _number(rng: random.Random, data: bytes) -> bytes:
    kind = rng.choice(("<I", "<Q"))
    value = struct.pack(kind, rng.choice(EXTREMES) % 2 ** (8 * struct.calcsize(kind)))
    place = rng.choice((rng.randrange(len(data) + 1), max(len(data) - rng.randrange(1, 120), 0), rng.randrange(min(len(data), 200) + 1)))
    return data[:place] + value + data[place + len(value) :]


BYTE_CHANGES: list[Change] = [_flip, _cut, _number]


def _edit_start(rng: random.Random, data: bytes) -> bytes:
    """Damage the pickles at the start of a file."""
    length = min(len(data), 20_000)
    return rng.choice(BYTE_CHANGES)(rng, data[:length]) + data[length:]


def _edit_archive(rng: random.Random, data: bytes) -> bytes:
    """Damage the records of an archive and write it again, so that its sums and sizes are right."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            records = [[name, archive.read(name)] for name in archive.namelist()]
    except Exception:  # it was damaged before
        return data
    pickles = [record for record in records if str(record[0]).endswith("data.pkl")]
    record = rng.choice(pickles or records) if rng.random() < 0.6 else rng.choice(records)
    other: list[Any] = rng.choice(records)
    options: dict[str, Any] = {}
    change = rng.randrange(6)
    if change <= 1:
        record[1] = rng.choice(BYTE_CHANGES)(rng, record[1])  # type: ignore[arg-type]
    elif change == 2:
        record[1], other[1] = other[1], record[1]
    elif change == 3:
        record[0] = rng.choice((f"{record[0]}x", str(record[0]).upper(), "other/data.pkl", "\u00e9", "a" * 300, other[0]))
    elif change == 4:
        records.remove(record)
    else:
        options["compression"] = zipfile.ZIP_DEFLATED
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", **options) as archive:
        for name, content in records:
            archive.writestr(str(name), content)  # type: ignore[arg-type]  # bytes
    return buffer.getvalue()


def _edit_header(rng: random.Random, data: bytes) -> bytes:
    """Damage the header of a safetensors file."""
    try:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        name = rng.choice([name for name in header if name != "__metadata__"])
        entry = header[name]
    except Exception:  # it was damaged before, or is empty
        return data
    change = rng.randrange(6)
    if change == 0:
        entry["dtype"] = rng.choice(("F64", "F16", "I64", "U8", "BOOL", "C64", "F4", "F8_E5M2", "X", None, 3))
    elif change == 1:
        entry["shape"] = rng.choice(([], [0], [-1], [2**62, 4], entry["shape"][::-1], "1", [1.5], None, [1] * 100))
    elif change == 2:
        entry["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [8, 0], [-4, 0], [0], "ab", None))
    elif change == 3:
        header[rng.choice(("copy", "", "\x00", "__metadata__"))] = entry
    elif change == 4:
        header["__metadata__"] = rng.choice(({"a": 3}, [], "text", {"a": "b" * 10_000}))
    else:
        del header[name]
    text = json.dumps(header).encode()
    size = rng.choice((len(text), len(text), *EXTREMES))
    return struct.pack("<Q", size) + text + data[8 + length :]


def _storable(value: Any) -> bool:
    plain = isinstance(value, torch.Tensor) and value.layout is torch.strided and not value.is_quantized and not value.is_meta
    return plain and value.dtype != torch.complex64


# ---------------------------------------------------------------- the run


def outcome(path: Path) -> str:
    """Import a file and load it into a model; return `imported`, or the code of the refusal."""
    started = time.monotonic()
    try:
        try:
            import_file(path, report=lambda text: None)
            result = "imported"
        except UserError as error:
            result = error.code
        with suppress(UserError):
            load_checkpoint(create_model("eca", num_classes=5), path)
        return result
    finally:
        if time.monotonic() - started > SECONDS:
            raise Slow(f"{time.monotonic() - started:.0f} s")


def fuzz(seed: int, numbers: Iterator[int], seconds: float, keep: Path) -> tuple[Counter[str], list[str]]:
    """Damage and load files; return how many came to what, and the names of those kept for their faults."""
    outcomes: Counter[str] = Counter()
    faults = []
    started = time.monotonic()
    with small_models(), tempfile.TemporaryDirectory() as folder, _environment(folder), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        states = originals()
        for number in numbers:
            if time.monotonic() - started > seconds:
                break
            suffix, data = damaged(random.Random(f"{seed} {number}"), states)
            path = Path(folder, f"eca{suffix}")
            path.write_bytes(data)
            try:
                outcomes[outcome(path)] += 1
            except Exception:
                outcomes["fault"] += 1
                name = f"{seed}-{number}{suffix}"
                faults.append(name)
                keep.mkdir(parents=True, exist_ok=True)
                (keep / name).write_bytes(data)
                (keep / f"{name}.txt").write_text(traceback.format_exc(), encoding="utf-8")
    return outcomes, faults


@contextmanager
def _environment(folder: str) -> Iterator[None]:
    """A cache of its own, no log."""
    before = os.environ.get("VISIONATTN_CACHE")
    os.environ["VISIONATTN_CACHE"] = str(Path(folder, "cache"))
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
        os.environ.pop("VISIONATTN_CACHE")
        if before is not None:
            os.environ["VISIONATTN_CACHE"] = before


def _limit_memory() -> None:
    pages = Path("/proc/self/statm")
    if pages.exists():
        import resource

        used = int(pages.read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, resource.RLIM_INFINITY))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop after this time")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="the number of one file")
    parser.add_argument("--keep", type=Path, default=Path("fuzz_weights"), help="folder for files with faults")
    args = parser.parse_args()
    torch.set_num_threads(1)
    _limit_memory()
    numbers = iter(range(args.count)) if args.only is None else iter([args.only])
    outcomes, faults = fuzz(args.seed, numbers, args.seconds, args.keep)
    print(
        f"{sum(outcomes.values()):,} files, seed {args.seed}: " + ", ".join(f"{name} {count:,}" for name, count in outcomes.most_common())
    )
    for name in faults[:20]:
        print(f"fault {name}: {(args.keep / f'{name}.txt').read_text(encoding='utf-8').strip().splitlines()[-1]}")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
