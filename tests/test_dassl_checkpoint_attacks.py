"""Reading a checkpoint runs nothing in it: files that leave a mark on the disk in Python's own pickle."""

from __future__ import annotations

import copyreg
import os
import pickle
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from dassl.utils import load_checkpoint
from dassl.utils.safe_load import Placeholder


def as_zip(
    path: Path, content: bytes, storages: dict[str, bytes] | None = None, compression: int = 0
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for key, storage in (storages or {}).items():
            archive.writestr(f"archive/data/{key}", storage)


def as_legacy(path: Path, content: bytes, storages: dict[str, bytes] | None = None) -> None:
    system = {"little_endian": True, "protocol_version": 1001, "type_sizes": {}}
    parts = [pickle.dumps(head, 2) for head in (0x1950A86A20F9469CFC6C, 1001, system)]
    parts += [content, pickle.dumps(list(storages or {}), 2)]
    parts += [struct.pack("<q", len(storage) // 4) + storage for storage in (storages or {}).values()]
    path.write_bytes(b"".join(parts))


def as_pickle(path: Path, content: bytes) -> None:
    path.write_bytes(content)


# A little assembler: each piece leaves one object on the stack.


def text(string: str) -> bytes:
    return b"X" + struct.pack("<I", len(string)) + string.encode()


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def called(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def in_a_dict(piece: bytes) -> bytes:
    return b"\x80\x02}" + text("a") + piece + b"s."


MKDIR = named("posix", "mkdir")
GETATTR = named("builtins", "getattr")
OS = called(GETATTR, named("os", "path"), text("os"))


def attacks(mark: str) -> dict[str, bytes]:
    """Pieces that make the folder `mark`."""
    a, python = text(mark), f"__import__('os').mkdir({mark!r})"
    legacy_bytes = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    legacy_bytes += called(MKDIR, a) + b"." + pickle.dumps([], 2)
    in_a_list = b"(" + a + b"l"
    rebuild_from_type = named("torch._tensor", "_rebuild_from_type_v2")
    load_from_bytes = named("torch.storage", "_load_from_bytes")
    return {
        "function": called(MKDIR, a),
        "shell": called(named("os", "system"), text(f"mkdir {mark}")),
        "subprocess": called(named("subprocess", "call"), b"(" + text("mkdir") + a + b"l"),
        "eval": called(named("builtins", "eval"), text(python)),
        "exec, Python 2": called(named("__builtin__", "exec"), text(python)),
        "import": called(named("builtins", "__import__"), text("leaves_a_mark")),
        "getattr": called(called(GETATTR, OS, text("mkdir")), a),
        "dotted name": called(b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93", a),
        "INST": b"(" + a + b"iposix\nmkdir\n",
        "OBJ": b"(" + MKDIR + a + b"o",
        "memo": MKDIR + b"q\x070" + called(b"h\x07", a),
        "under marks": b"((11" + called(MKDIR, a),
        "partial": called(called(named("functools", "partial"), MKDIR, a)),
        "allowed around": called(
            named("builtins", "set"), called(named("builtins", "map"), MKDIR, in_a_list)
        ),
        "tensor around": called(rebuild_from_type, MKDIR, named("torch", "Tensor"), b"(" + a + b"t", b"}"),
        "loader around": called(load_from_bytes, b"B" + struct.pack("<I", len(legacy_bytes)) + legacy_bytes),
        # An object is made without a call, is given a __setstate__, and then a state.
        "__setstate__": (
            named("types", "SimpleNamespace") + b")\x81}" + text("__setstate__") + MKDIR + b"sb" + a + b"b"
        ),
        "module": named("leaves_a_mark", "anything"),
    }


LABELS = list(attacks(""))


@pytest.fixture
def mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that only an attack makes; importing the module `leaves_a_mark` makes it too."""
    folder = tmp_path / "mark"
    (tmp_path / "leaves_a_mark.py").write_text(f"import os; os.mkdir({str(folder)!r})\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield folder
    sys.modules.pop("leaves_a_mark", None)


@pytest.mark.parametrize("label", LABELS)
def test_the_attacks_work_where_pickles_are_trusted(label: str, mark: Path) -> None:
    with suppress(Exception):  # some fail once the harm is done
        pickle.loads(in_a_dict(attacks(str(mark))[label]))
    assert mark.exists()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("write", [as_zip, as_legacy, as_pickle])
def test_nothing_in_a_checkpoint_is_run(
    write: Callable[[Path, bytes], None], label: str, mark: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.pth.tar"
    write(path, in_a_dict(attacks(str(mark))[label]))
    try:
        content = load_checkpoint(str(path))
    except ValueError as error:
        message = str(error)
        assert message.startswith(f"{path} is damaged or not a checkpoint, and was not loaded: ")
        assert "\n" not in message
    else:
        assert write is as_zip
        assert isinstance(content["a"], (Placeholder, type))
    assert not mark.exists()
    assert "leaves_a_mark" not in sys.modules


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_is_called_in_any_protocol(protocol: int, mark: Path, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return os.mkdir, (str(mark),)

    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": {}, "epoch": 1, "bad": Call()}, path, pickle_protocol=protocol)
    with pytest.raises(ValueError, match="was not loaded"):
        load_checkpoint(str(path))
    assert not mark.exists()


def test_what_a_file_calls_becomes_a_placeholder(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    call = called(named("subprocess", "call"), text("x"))
    as_zip(path, in_a_dict(call + b"}(" + text("__class__") + named("a", "B") + text("class_name") + b"Nub"))
    found = load_checkpoint(str(path))["a"]
    assert type(found).__mro__[1] is Placeholder
    assert repr(found) == "<placeholder of 'subprocess.call'>"  # attributes in the file do not become its own
    assert set(found) == {"__class__", "class_name"}


def test_the_allowed_names_are_forgotten_again(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    as_zip(path, in_a_dict(named("a", "Class") + b")\x81"))
    before = torch.serialization.get_safe_globals()
    load_checkpoint(str(path))
    assert torch.serialization.get_safe_globals() == before
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)


STORAGE = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
HOOKS = called(named("collections", "OrderedDict"))
SCALAR, DTYPE = named("numpy._core.multiarray", "scalar"), named("numpy", "dtype")


def tensor(offset: bytes, size: bytes, stride: bytes) -> bytes:
    return called(REBUILD, STORAGE, offset, size, stride, b"\x89", HOOKS)


@pytest.mark.parametrize(
    "piece",
    {
        "size": tensor(b"K\x00", b"K\x05\x85", b"K\x01\x85"),
        "offset": tensor(b"K\x04", b"K\x01\x85", b"K\x01\x85"),
        "stride": tensor(b"K\x00", b"K\x02\x85", b"K\x04\x85"),
        "negative offset": tensor(b"J\xff\xff\xff\xff", b"K\x01\x85", b"K\x01\x85"),
        "negative size": tensor(b"K\x00", b"J\xff\xff\xff\xff\x85", b"K\x01\x85"),
        "no storage": called(REBUILD, b"N", b"K\x00", b"K\x01\x85", b"K\x01\x85", b"\x89", HOOKS),
        "missing storage": tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85").replace(text("0"), text("1")),
        "huge storage": tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85").replace(
            b"K\x04tQ", b"J\xff\xff\xff\x7ftQ"
        ),
        "number of objects": called(SCALAR, called(DTYPE, text("O8")), text("12345678")),
        "short number": called(SCALAR, called(DTYPE, text("f8")), text("1234")),
        "extension registry": b"\x82\x07",
        "empty stack": b"000000",
    }.items(),
    ids=lambda item: item[0],
)
def test_what_does_not_fit_is_an_error(piece: tuple[str, bytes], tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    copyreg.add_extension("posix", "mkdir", 7)
    try:
        as_zip(path, in_a_dict(piece[1]), {"0": bytes(16)})
        with pytest.raises(ValueError, match=r"model\.pth\.tar") as caught:
            load_checkpoint(str(path))
    finally:
        copyreg.remove_extension("posix", "mkdir", 7)
    assert "\n" not in str(caught.value)


def test_the_same_bytes_without_the_fault_are_read(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    number = called(
        SCALAR, called(DTYPE, text("f8")), called(named("_codecs", "encode"), text("\0" * 8), text("latin1"))
    )
    pieces = tensor(b"K\x01", b"K\x02\x85", b"K\x02\x85") + number + named("a", "Class") + b")\x81"
    as_zip(path, in_a_dict(b"(" + pieces + b"t"), {"0": struct.pack("<4f", 0, 1, 2, 3)})
    values, number, placeholder = load_checkpoint(str(path))["a"]
    assert values.tolist() == [1, 3]
    assert number == 0.0
    assert placeholder.class_name == "a.Class"


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    as_zip(path, in_a_dict(b"N"), {"0": bytes(16)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed"):
        load_checkpoint(str(path))
