"""Files made to spoil: each is refused with one line, without the time and memory it asks for."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from visionattn.errors import UserError
from visionattn.models.weights import scan as scanning
from visionattn.models.weights.load import read_file

STATE = {"a": torch.arange(16.0), "b": torch.ones(2, 3)}


def refused(path: Path, code: str = "VA-W005") -> UserError:
    with pytest.raises(UserError) as caught:
        read_file(path)
    assert caught.value.code == code and caught.value.exit_code == 4
    return caught.value


@pytest.fixture(autouse=True)
def little_memory() -> Iterator[None]:
    """Refuse an allocation of a gigabyte or more, where the system can."""
    resource = pytest.importorskip("resource")
    pages = Path("/proc/self/statm")
    used = int(pages.read_text().split()[0]) * resource.getpagesize() if pages.exists() else 0
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + 2**30 if used else before[0], before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def rewrite(path: Path, change: Callable[[str, bytes], bytes], **options: Any) -> None:
    """Write an archive of torch again, with each record changed."""
    with zipfile.ZipFile(path) as archive:
        records = [(name, archive.read(name)) for name in archive.namelist()]
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in records:
            archive.writestr(name, change(name, content))


def archive_of(path: Path, body: bytes) -> Path:
    """An archive as of torch whose pickle has these opcodes; it has one record of 64 bytes, `0`."""
    torch.save({"a": torch.arange(16.0)}, path)
    rewrite(path, lambda name, content: b"\x80\x02" + body + b"." if name.endswith("data.pkl") else content)
    return path


def word(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text)) + text.encode()


def storage(count: bytes, key: str = "0") -> bytes:
    return b"(" + word("storage") + b"ctorch\nFloatStorage\n" + word(key) + word("cpu") + count + b"tQ"


def tensor(stored: bytes, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """Opcodes of `{"a": tensor}`."""
    numbers = b"".join(b"(" + b"".join(_long(number) for number in values) + b"t" for values in (size, stride))
    rebuilt = b"ctorch._utils\n_rebuild_tensor_v2\n(" + stored + _long(offset) + numbers + b"\x89ccollections\nOrderedDict\n)RtR"
    return b"}" + word("a") + rebuilt + b"s"


def _long(value: int) -> bytes:
    digits = pickle.encode_long(value)
    return b"\x8a" + bytes([len(digits)]) + digits


# ---------------------------------------------------------------- what is loaded


@pytest.mark.parametrize("legacy", [False, True])
def test_what_training_code_saves_passes(legacy: bool, tmp_path: Path) -> None:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [3])
    content = {
        "state_dict": OrderedDict(layer.state_dict()),
        "parameters": dict(layer.named_parameters()),
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "rest": [torch.Size([2]), torch.device("cpu"), {1, 2}, (0.9, None), torch.zeros(3, 2).t(), torch.zeros(4)[1:3], torch.zeros(0)],
    }
    torch.save(content, tmp_path / "file.pth", _use_new_zipfile_serialization=not legacy)
    found = read_file(tmp_path / "file.pth")
    assert torch.equal(found["state_dict"]["weight"], layer.weight) and found["rest"][0] == torch.Size([2])
    archive_of(tmp_path / "own.pth", tensor(storage(b"K\x10"), 4, (3, 4), (4, 1)))
    assert torch.equal(read_file(tmp_path / "own.pth")["a"], torch.arange(4.0, 16).view(3, 4))


def test_kinds_of_numbers(tmp_path: Path) -> None:
    kinds = (torch.float64, torch.bfloat16, torch.float8_e4m3fn, torch.int8, torch.uint16, torch.bool, torch.complex64)
    torch.save({str(kind): torch.ones(3).to(kind) for kind in kinds}, tmp_path / "file.pth")
    assert [value.dtype for value in read_file(tmp_path / "file.pth").values()] == list(kinds)


# ---------------------------------------------------------------- archives


def test_a_compressed_record(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "bomb.pth")
    rewrite(tmp_path / "bomb.pth", lambda name, content: bytes(2**24) if name.endswith("/0") else content, compression=zipfile.ZIP_DEFLATED)
    assert (tmp_path / "bomb.pth").stat().st_size < 2**20 and "compressed" in refused(tmp_path / "bomb.pth").why


def test_a_record_of_another_size_than_its_tensor(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "short.pth")
    rewrite(tmp_path / "short.pth", lambda name, content: content[:8] if name.endswith("/0") else content)
    assert "64 bytes of a tensor are not in the file" in refused(tmp_path / "short.pth").why


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", ["twice/data/0", "twice/DATA/0"])  # torch ignores case
def test_two_records_of_one_name(name: str, tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "twice.pth")
    with zipfile.ZipFile(tmp_path / "twice.pth", "a") as archive:
        archive.writestr(name, bytes(64))
    assert "same name" in refused(tmp_path / "twice.pth").why


def test_records_that_share_their_bytes(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "shared.pth")
    with zipfile.ZipFile(tmp_path / "shared.pth", "a") as archive:
        first = archive.infolist()[0]
        for number in range(10):
            twin = zipfile.ZipInfo(f"shared/data/{number + 2}")
            twin.header_offset, twin.CRC, twin.file_size, twin.compress_size = (
                first.header_offset,
                first.CRC,
                first.file_size,
                first.file_size,
            )
            archive.filelist.append(twin)
        archive._didModify = True  # type: ignore[attr-defined]
    assert "overlap" in refused(tmp_path / "shared.pth").why


@pytest.mark.parametrize("kind", ["comment", "second", "cut", "elsewhere"])
def test_another_table_of_contents(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pth"
    torch.save(STATE, path)
    content = path.read_bytes()
    if kind == "comment":
        content = content[:-2] + b"\x04\0evil"
    elif kind == "second":
        content += content
    elif kind == "cut":
        content = content[:-1]
    else:  # readers differ in whether they follow this address
        content = content[:-34] + struct.pack("<Q", 7) + content[-26:]
    path.write_bytes(content)
    assert "archive" in refused(path).why


def test_many_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MAX_DIRECTORY", 10_000)
    with zipfile.ZipFile(tmp_path / "file.pth", "w") as archive:
        for number in range(300):
            archive.writestr(f"file/{number}", b"")
    assert "table of contents has" in refused(tmp_path / "file.pth").why


# ---------------------------------------------------------------- pickles


# Name -> part of the reason, opcodes.
BOMBS = {
    "more values than the record has": ("not in the file", tensor(storage(_long(10**9)), 0, (10**9,), (1,))),
    "a tensor larger than its values": ("larger than the values", tensor(storage(b"K\x10"), 0, (10**9,), (1,))),
    "a tensor beyond its values": ("larger than the values", tensor(storage(b"K\x10"), 10, (7,), (1,))),
    "one value many times": ("larger than the values", tensor(storage(b"K\x10"), 0, (10**6, 10**6), (0, 0))),
    "sizes that overflow": ("larger than the values", tensor(storage(b"K\x10"), 0, (2**62, 4), (1, 1))),
    "negative sizes": ("neither", tensor(storage(b"K\x10"), 0, (-1, -1), (1, 1))),
    "values described twice": ("two ways", b"(" + storage(b"K\x01") + tensor(storage(b"K\x10"), 0, (16,), (1,)) + b"t"),
    "values that are absent": ("not in the file", tensor(storage(b"K\x10", "7"), 0, (16,), (1,))),
    "lists in lists": ("too many", b"]" * 6_000 + b"a" * 5_999),
    "many lists": ("too many", b"(" + b"]" * 6_000 + b"t"),
    "text joined over and over": ("too many", b"cpathlib\nPosixPath\n(" + word("a" * 10_000) + b"q\x00" + b"h\x00" * 2_000 + b"tR"),
    "a key that takes for ever to hash": ("too many", b"}" + b")q\x00" + b"h\x00h\x00\x86q\x00" * 64 + b"Ns"),
    "methods of a dict": ("replaces methods", b"ccollections\nOrderedDict\n)R}" + word("get") + b"K\x01sb"),
    "no pickle": ("neither", b"\xff"),
}
OBJECTS = {
    "bytes of a length": b"cbuiltins\nbytearray\n" + _long(2**40) + b"\x85R",
    "a codec": b"c_codecs\nencode\n" + word("a") + word("hex") + b"\x86R",
    "an old constructor": b"ctorch.storage\nUntypedStorage\n" + _long(2**40) + b"\x85R",
    "a tensor without values": b"ctorch._utils\n_rebuild_meta_tensor_no_storage\n.",
    "code": b"cos\nsystem\n" + word("true") + b"\x85R",
}


@pytest.mark.parametrize("name", BOMBS)
def test_pickles_that_ask_for_too_much(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MAX_WORK", 20_000)
    reason, body = BOMBS[name]
    assert reason in refused(archive_of(tmp_path / "bomb.pth", body)).why


@pytest.mark.parametrize("name", OBJECTS)
def test_pickles_with_other_objects(name: str, tmp_path: Path) -> None:
    assert refused(archive_of(tmp_path / "bomb.pth", OBJECTS[name]), "VA-W004").why.startswith("it asks for ")


def test_a_file_before_archives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "MAX_WORK", 20_000)
    path = tmp_path / "old.pth"
    torch.save(STATE, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    many = content.replace(b"K\x10N", b"J\xff\xff\xff\x7fN")  # 2**31 - 1 values of tensor a
    assert many != content
    path.write_bytes(many)
    assert "its tensors need" in refused(path).why
    path.write_bytes(content[:-4])
    refused(path)
    path.write_bytes(content[:15] + b"\x80\x02" + b"]" * 6_000)
    assert "too many" in refused(path).why


# ---------------------------------------------------------------- others


@pytest.mark.parametrize(
    "header",
    [
        '{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,16]}}',
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,1000000000]}}',
        '{"a":{"dtype":"F32","shape":[4],"data_offsets":[0,16]},"b":{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        '{"a":' + "[" * 100_000,
    ],
)
def test_safetensors_headers(header: str, tmp_path: Path) -> None:
    path = tmp_path / "file.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(16))
    refused(path)
    path.write_bytes(struct.pack("<Q", 2**40) + header.encode() + bytes(16))
    assert "header" in refused(path).why


def test_a_safetensors_header_of_gigabytes(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "file.safetensors")
    with (tmp_path / "file.safetensors").open("r+b") as file:
        file.write(struct.pack("<Q", 2**31))
        file.truncate(2**32)  # a hole
    assert "header" in refused(tmp_path / "file.safetensors").why


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_is_not_a_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "device.pth").symlink_to("/dev/zero")
    for name in ("pipe.pth", "folder.pth", "device.pth"):
        assert "is not a file" in refused(tmp_path / name, "VA-W006").what
    assert "not found" in refused(tmp_path / ("a" * 300), "VA-W006").what
