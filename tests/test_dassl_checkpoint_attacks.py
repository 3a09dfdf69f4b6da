"""Reading a checkpoint runs nothing in it: files that leave a mark on the disk in Python's own pickle."""

from __future__ import annotations

import copyreg
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
from dassl.utils.inert_pickle import Placeholder


def as_zip(
    path: Path, content: bytes, storages: dict[str, bytes] | None = None, compression: int = 0
) -> None:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
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


def attacks(mark: str) -> dict[str, tuple[bytes, str]]:
    """Pieces that make the folder `mark`, and the name that the refusal gives ("": no need to refuse)."""
    a, python = text(mark), f"__import__('os').mkdir({mark!r})"
    legacy_bytes = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({}, 2)
    legacy_bytes += called(MKDIR, a) + b"." + pickle.dumps([], 2)
    return {
        "function": (called(MKDIR, a), "posix.mkdir"),
        "shell": (called(named("os", "system"), text(f"mkdir {mark}")), "os.system"),
        "subprocess": (
            called(named("subprocess", "call"), b"(" + text("mkdir") + a + b"l"),
            "subprocess.call",
        ),
        "eval": (called(named("builtins", "eval"), text(python)), "builtins.eval"),
        "exec, Python 2": (called(named("__builtin__", "exec"), text(python)), "builtins.exec"),
        "import": (called(named("builtins", "__import__"), text("leaves_a_mark")), "builtins.__import__"),
        "getattr": (called(called(GETATTR, OS, text("mkdir")), a), "builtins.getattr"),
        "dotted name": (
            called(b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93", a),
            "os.path.os.mkdir",
        ),
        "INST": (b"(" + a + b"iposix\nmkdir\n", "posix.mkdir"),
        "OBJ": (b"(" + MKDIR + a + b"o", "posix.mkdir"),
        "memo": (MKDIR + b"q\x070" + called(b"h\x07", a), "posix.mkdir"),
        "under marks": (b"((11" + called(MKDIR, a), "posix.mkdir"),
        "partial": (called(called(named("functools", "partial"), MKDIR, a)), "functools.partial"),
        "allowed around": (
            called(named("builtins", "set"), called(named("builtins", "map"), MKDIR, b"(" + a + b"l")),
            "builtins.map",
        ),
        "tensor around": (
            called(
                named("torch._tensor", "_rebuild_from_type_v2"),
                MKDIR,
                named("torch", "Tensor"),
                b"(" + a + b"t",
                b"}",
            ),
            "posix.mkdir",
        ),
        "loader around": (
            called(
                named("torch.storage", "_load_from_bytes"),
                b"B" + struct.pack("<I", len(legacy_bytes)) + legacy_bytes,
            ),
            "torch.storage._load_from_bytes",
        ),
        # An object is made without a call, is given a __setstate__, and then a state.
        "__setstate__": (
            named("types", "SimpleNamespace") + b")\x81}" + text("__setstate__") + MKDIR + b"sb" + a + b"b",
            "",
        ),
        "module": (named("leaves_a_mark", "anything"), ""),
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
    piece, _ = attacks(str(mark))[label]
    with suppress(Exception):  # some fail once the harm is done
        pickle.loads(in_a_dict(piece))
    assert mark.exists()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("write", [as_zip, as_legacy, as_pickle])
def test_nothing_in_a_checkpoint_is_run(
    write: Callable[[Path, bytes], None], label: str, mark: Path, tmp_path: Path
) -> None:
    piece, refused = attacks(str(mark))[label]
    path = tmp_path / "model.pth.tar"
    write(path, in_a_dict(piece))
    if refused:
        with pytest.raises(ValueError, match="it was not loaded") as caught:
            load_checkpoint(str(path))
        assert f"calls '{refused}'" in str(caught.value)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)
    elif write is not as_pickle:
        load_checkpoint(str(path))
    assert not mark.exists()
    assert "leaves_a_mark" not in sys.modules


@pytest.mark.parametrize("protocol", range(6))
def test_calls_are_refused_in_every_protocol(protocol: int, mark: Path, tmp_path: Path) -> None:
    class Call:
        def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
            return Path(mark).mkdir.__func__.__globals__["os"].mkdir, (str(mark),)

    path = tmp_path / "model.pth.tar"
    torch.save({"state_dict": {}, "epoch": 1, "bad": Call()}, path, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r"calls 'posix\.mkdir'"):
        load_checkpoint(str(path))
    assert not mark.exists()


@pytest.mark.parametrize(
    "piece",
    [
        MKDIR + text("x") + b"\x85\x81",  # NEWOBJ
        MKDIR + text("x") + b"\x85}\x92",  # NEWOBJ_EX
        called(named("copyreg", "_reconstructor"), MKDIR, named("builtins", "object"), b"N"),
        called(named("copyreg", "__newobj__"), MKDIR, text("x")),
    ],
)
def test_a_function_posing_as_a_class_becomes_a_placeholder(piece: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    as_zip(path, in_a_dict(piece + b"}(" + text("__class__") + MKDIR + text("args") + b"Nub"))
    found = load_checkpoint(str(path))["a"]
    assert type(found) is Placeholder
    assert found.class_name == "posix.mkdir"
    assert not callable(found["__class__"])
    assert found.args in ((), ("x",), (("x",), {}), ("x", {}))  # attributes in the file do not become its own


STORAGE = b"(" + text("storage") + named("torch", "FloatStorage") + text("0") + text("cpu") + b"K\x04tQ"
REBUILD = named("torch._utils", "_rebuild_tensor_v2")
HOOKS = called(named("collections", "OrderedDict"))
SCALAR, DTYPE = named("numpy._core.multiarray", "scalar"), named("numpy", "dtype")
ARRAY = called(
    named("numpy._core.multiarray", "_reconstruct"), named("numpy", "ndarray"), b"K\x00\x85", text("b")
)


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
        "array of objects": called(SCALAR, called(DTYPE, text("O8")), b"C\x08" + bytes(8)),
        "short scalar": called(SCALAR, called(DTYPE, text("f8")), b"C\x04" + bytes(4)),
        "long array": ARRAY
        + b"(K\x01K\x09\x85"
        + called(DTYPE, text("f8"))
        + b"\x89C\x08"
        + bytes(8)
        + b"tb",
        "state of a class": named("collections", "OrderedDict") + b"N}" + text("update") + b"Ns\x86b",
        "state of a tensor": tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85") + b"}b",
        "extension registry": b"\x82\x07",
        "empty stack": b"000000",
    }.items(),
    ids=lambda item: item[0],
)
@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_what_does_not_fit_is_an_error(
    write: Callable[..., None], piece: tuple[str, bytes], tmp_path: Path
) -> None:
    path = tmp_path / "model.pth.tar"
    copyreg.add_extension("posix", "mkdir", 7)
    try:
        write(path, in_a_dict(piece[1]), {"0": bytes(16)})
        with pytest.raises(ValueError, match=r"model\.pth\.tar") as caught:
            load_checkpoint(str(path))
    finally:
        copyreg.remove_extension("posix", "mkdir", 7)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_the_same_bytes_without_the_fault_are_read(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    other = named("a", "Class") + b")\x81"  # keeps torch's own reader out
    array = (
        ARRAY + b"(K\x01K\x01\x85" + called(DTYPE, text("f8")) + b"\x89C\x08" + struct.pack("<d", 2.5) + b"tb"
    )
    pieces = tensor(b"K\x01", b"K\x02\x85", b"K\x02\x85") + array + other
    write(path, in_a_dict(b"(" + pieces + b"t"), {"0": struct.pack("<4f", 0, 1, 2, 3)})
    values, numbers, placeholder = load_checkpoint(str(path))["a"]
    assert values.tolist() == [1, 3]
    assert numbers.tolist() == [2.5]
    assert placeholder.class_name == "a.Class"


@pytest.mark.parametrize("write", [as_zip, as_legacy])
def test_no_more_memory_is_taken_than_the_file_is_long(write: Callable[..., None], tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    huge = tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85").replace(b"K\x04tQ", b"J\xff\xff\xff\x7ftQ")
    write(path, in_a_dict(huge), {"0": bytes(16)})
    with pytest.raises(ValueError, match="storages larger than the file"):
        load_checkpoint(str(path))


def test_memory_that_the_file_does_not_fill_is_not_handed_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    as_legacy(path, in_a_dict(tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85")), {})
    with pytest.raises(ValueError, match="storages are missing"):
        load_checkpoint(str(path))


def test_an_unknown_factory_of_a_defaultdict_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    as_zip(path, in_a_dict(called(named("collections", "defaultdict"), MKDIR)))
    assert load_checkpoint(str(path))["a"].default_factory is None


def test_a_zip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.pth.tar"
    as_zip(
        path, in_a_dict(tensor(b"K\x00", b"K\x01\x85", b"K\x01\x85")), {"0": bytes(16)}, zipfile.ZIP_DEFLATED
    )
    with pytest.raises(ValueError, match="compressed"):
        load_checkpoint(str(path))
