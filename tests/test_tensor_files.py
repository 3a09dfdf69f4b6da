"""Files of tensors: damage is found, small files stay small, and CLIP's weights are numbers."""

from __future__ import annotations

import io
import pickle
import shutil
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import half, write_archive
from safetensors.torch import save_file
from torch import Tensor

import prompted_clip
from dassl.utils import load_checkpoint, rng_state, save_checkpoint
from prompted_clip import factory, open_clip_models
from prompted_clip.errors import NotFiniteError, UserError
from prompted_clip.files import sha256_of_file
from prompted_clip.tensor_files import check_pickle

StateDict = dict[str, Tensor]
Read = Callable[[Path], Any]


def read_checkpoint(path: Path) -> Any:
    return load_checkpoint(str(path))


def read_weights(path: Path) -> Any:
    return prompted_clip.load_model("ViT-B/16", path)


READERS = {"checkpoint": read_checkpoint, "weights": read_weights}


def refused(read: Read, path: Path, match: str) -> None:
    with pytest.raises(UserError, match=match) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


# --- damage ---------------------------------------------------------------------------------------------


def write_checkpoint(path: Path) -> None:
    state = {"state_dict": {"ctx": torch.randn(2, 4), "deep": torch.randn(3)}, "epoch": 1, "rng": rng_state()}
    state["optimizer"] = {"state": {0: {"momentum_buffer": torch.randn(2, 4)}}, "param_groups": []}
    save_checkpoint(state, str(path.parent), model_name=path.name)


@pytest.mark.parametrize("kind", ["checkpoint", "plain", "archive"])
def test_a_flipped_bit_in_any_part_is_found(kind: str, clip_weights: StateDict, tmp_path: Path) -> None:
    path, damaged = tmp_path / "file.pt", tmp_path / "damaged.pt"
    if kind == "checkpoint":
        write_checkpoint(path)
    else:
        few = {key: value for key, value in clip_weights.items() if key != "token_embedding.weight"}
        (torch.save if kind == "plain" else write_archive)(few, path)
    content = path.read_bytes()
    with zipfile.ZipFile(path) as archive:
        parts = [entry for entry in archive.infolist() if entry.file_size and "/data" in entry.filename]
    assert len(parts) > 3
    for part in parts:
        name_length = int.from_bytes(content[part.header_offset + 26 : part.header_offset + 28], "little")
        extra = int.from_bytes(content[part.header_offset + 28 : part.header_offset + 30], "little")
        changed = bytearray(content)
        changed[part.header_offset + 30 + name_length + extra + part.file_size // 2] ^= 64
        damaged.write_bytes(changed)
        read = read_checkpoint if kind == "checkpoint" else read_weights
        refused(read, damaged, f"{part.filename} does not have its checksum")


def test_a_flipped_bit_in_the_embedded_weights_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "embedded.safetensors"
    content = bytearray(factory.EMBEDDED["ViT-Shapes/8"].read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    monkeypatch.setitem(factory.EMBEDDED, "ViT-Shapes/8", path)
    refused(lambda _: prompted_clip.load_model("ViT-Shapes/8"), path, "is damaged: its sha256 is not c6e4b6")


def test_a_flipped_bit_in_the_hub_s_cache_is_found(
    clip_weights: StateDict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file(clip_weights, tmp_path / "whole")
    blob = tmp_path / sha256_of_file(tmp_path / "whole")
    shutil.move(tmp_path / "whole", blob)
    link = tmp_path / "model.safetensors"
    link.symlink_to(blob)
    monkeypatch.setattr(open_clip_models, "fetch_weights", lambda name: link)
    monkeypatch.setattr(open_clip_models, "check_widths", lambda *words: None)
    name = "open_clip:ViT-B-16/laion2b_s34b_b88k"
    with pytest.raises(UserError, match=r"differences|heads"):  # whole: only its widths are not that model's
        prompted_clip.load_model(name)
    content = bytearray(blob.read_bytes())
    content[-1] ^= 64
    blob.write_bytes(content)
    refused(lambda _: prompted_clip.load_model(name), blob, "is damaged: its sha256 is not")


@pytest.mark.parametrize("kind", READERS)
def test_an_entry_that_is_there_twice_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    torch.save({"state_dict": {"w": torch.ones(2)}, "epoch": 1}, path)
    with zipfile.ZipFile(path, "a") as archive:
        name = next(name for name in archive.namelist() if name.endswith("/data/0"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # zipfile says it, too
            archive.writestr(name, bytes(8))
    refused(READERS[kind], path, "several entries of one name")


# --- bounds ---------------------------------------------------------------------------------------------


def compressed(content: Any, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as target:
        for name in source.namelist():
            target.writestr(name, source.read(name))


KEY_OF_POWERS = b"\x80\x02})" + b"2\x86" * 40 + b"K\x01s."
BOMBS: dict[str, Callable[[Path], Any]] = {
    "compressed": lambda path: compressed({"state_dict": {"w": torch.zeros(1 << 22)}}, path),
    "a key of 2 to the 40 tuples": lambda path: path.write_bytes(KEY_OF_POWERS),
    "the same by memo": lambda path: path.write_bytes(
        b"\x80\x02})" + b"".join(b"q%ch%c\x86" % (k, k) for k in range(40)) + b"K\x01s."
    ),
    "the same in a set": lambda path: path.write_bytes(
        b"\x80\x02cbuiltins\nset\n])" + b"2\x86" * 40 + b"a\x85R."
    ),
    "a key a million deep": lambda path: path.write_bytes(b"\x80\x02})" + b"\x85" * 1_000_000 + b"K\x01s."),
    "an object of number 2 to the 31": lambda path: path.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f."),
    "lists that share": lambda path: torch.save({"state_dict": shared_lists()}, path),
    "a large view of one number": lambda path: torch.save(
        {"state_dict": {"w": torch.zeros(1).expand(1 << 30)}}, path
    ),
}


def shared_lists(depth: int = 40) -> list[Any]:
    value: list[Any] = []
    for _ in range(depth):
        value = [value, value]
    return value


@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_is_refused_before_it_grows(bomb: str, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "file.pt"
    BOMBS[bomb](path)
    start = time.monotonic()
    refused(READERS[kind], path, "compressed|more parts|more objects|more values|larger than the file")
    assert time.monotonic() - start < 15


@pytest.mark.parametrize("names", ["ab", "a"])
def test_modules_that_hold_one_twice_or_themselves_are_counted(names: str, tmp_path: Path) -> None:
    made = b"c__torch__\nModule\n)\x81"
    if names == "ab":  # 2 to the 40 paths to the innermost
        content = made + b"q\x00" + (b"0" + made + b"}(X\x01\0\0\0ah\x00X\x01\0\0\0bh\x00ubq\x00") * 40
    else:
        content = made + b"q\x00}X\x01\0\0\0ah\x00sb"
    with zipfile.ZipFile(tmp_path / "file.pt", "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02" + content + b".")
        archive.writestr("archive/constants.pkl", pickle.dumps((), 2))
    refused(read_weights, tmp_path / "file.pt", "its modules hold each other too often")


def test_what_shares_a_little_is_read(tmp_path: Path) -> None:
    betas, words = (0.9, 0.999), ["a", "b"]
    state = {"state_dict": {"w": torch.arange(3.0).expand(4, 3)}, "groups": [{"betas": betas}] * 50}
    torch.save({**state, (1, (2, (3,))): words, "again": words, "set": {betas}}, tmp_path / "file")
    loaded = load_checkpoint(str(tmp_path / "file"))
    assert loaded["groups"] == state["groups"]
    assert loaded["state_dict"]["w"].shape == (4, 3)
    for protocol in range(6):
        check_pickle(
            io.BytesIO(pickle.dumps([state["groups"], {betas: frozenset(words)}, rng_state], protocol))
        )


# --- numbers --------------------------------------------------------------------------------------------

BAD = {"NaN": torch.nan, "infinity": torch.inf, "minus infinity": -torch.inf}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("visual.proj", "NaN"),
        ("logit_scale", "infinity"),
        ("transformer.resblocks.0.ln_1.bias", "minus infinity"),
        ("token_embedding.weight", "NaN"),
    ],
)
def test_weights_that_are_no_numbers_are_refused(
    key: str, value: str, clip_weights: StateDict, tmp_path: Path
) -> None:
    changed = clip_weights[key].clone()
    changed.view(-1)[-1] = BAD[value]
    save_file(clip_weights | {key: changed}, tmp_path / "file.safetensors")
    refused(read_weights, tmp_path / "file.safetensors", f"{key} has a NaN, an infinity")
    with pytest.raises(NotFiniteError, match=f"The state dict: {key} has a NaN"):
        prompted_clip.build_model(clip_weights | {key: changed})


def test_weights_beyond_float16_are_refused_where_they_are_rounded(
    clip_weights: StateDict, tmp_path: Path
) -> None:
    large = clip_weights | {"visual.proj": torch.full_like(clip_weights["visual.proj"], 1e5)}
    torch.save(large, tmp_path / "file.pt")
    refused(read_weights, tmp_path / "file.pt", r"visual\.proj has a NaN, an infinity, or a number too large")
    beyond = clip_weights | {"ln_final.bias": torch.full((64,), 1e300, dtype=torch.float64)}
    torch.save(beyond, tmp_path / "file.pt")
    refused(read_weights, tmp_path / "file.pt", r"ln_final\.bias has a NaN")


KINDS: dict[str, Callable[[Tensor], Tensor]] = {
    "meta": lambda tensor: tensor.to("meta"),
    "sparse": lambda tensor: tensor.to_sparse(),
    "torch.bool": lambda tensor: tensor > 0,
    "torch.int32": lambda tensor: tensor.int(),
    "torch.complex64": lambda tensor: tensor.to(torch.complex64),
    "torch.float8_e4m3fn": lambda tensor: tensor.to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_another_kind_are_refused(kind: str, clip_weights: StateDict, tmp_path: Path) -> None:
    key = "visual.proj"
    torch.save(clip_weights | {key: KINDS[kind](clip_weights[key])}, tmp_path / "file.pt")
    refused(read_weights, tmp_path / "file.pt", f"{key}.* {kind}")


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
def test_prefixes_of_wrappers_are_taken_off(prefix: str, clip_weights: StateDict, tmp_path: Path) -> None:
    torch.save(half({prefix + key: value for key, value in clip_weights.items()}), tmp_path / "file.pt")
    model = read_weights(tmp_path / "file.pt")
    assert torch.equal(model.ln_final.bias, clip_weights["ln_final.bias"].half().float())
    torch.save({**clip_weights, "module.visual.proj": clip_weights["visual.proj"]}, tmp_path / "file.pt")
    refused(read_weights, tmp_path / "file.pt", r"visual\.proj twice")


def test_an_encoder_without_width_is_refused(clip_weights: StateDict, tmp_path: Path) -> None:
    empty = {key: value[..., :0] if value.dim() else value for key, value in clip_weights.items()}
    torch.save(empty, tmp_path / "file.pt")
    refused(read_weights, tmp_path / "file.pt", "holds ")


@pytest.mark.parametrize("kind", ["meta", "sparse"])
def test_a_scale_of_another_kind_is_refused(kind: str, clip_weights: StateDict, tmp_path: Path) -> None:
    changed = clip_weights | {"logit_scale": KINDS[kind](clip_weights["logit_scale"].reshape(1))}
    torch.save(changed, tmp_path / "file.pt")
    refused(read_weights, tmp_path / "file.pt", f"logit_scale as a tensor that is {kind}")
    with pytest.raises(UserError, match=f"The state dict holds logit_scale as a tensor that is {kind}"):
        prompted_clip.build_model(changed)
