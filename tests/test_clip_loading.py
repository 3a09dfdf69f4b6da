"""Files of weights: what is read, what is refused and in which words, and that nothing in them is run."""

from __future__ import annotations

import os
import pickle
import random
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from helpers import SIZES, half, put, randomise, save_archive, tiny_clip, write_archive
from safetensors.torch import save_file
from torch import Tensor, nn

import prompted_clip

StateDict = dict[str, Tensor]
WORDS = "a photo of a cat. a dog"


@pytest.fixture(scope="module")
def small_weights(clip_weights: StateDict) -> StateDict:
    """The same, with an embedding of few words."""
    rows = prompted_clip.tokenize(WORDS)[0].unique().long()
    small = {key: value for key, value in clip_weights.items() if key != "token_embedding.weight"}
    return small | {
        "token_embedding.rows": rows.int(),
        "token_embedding.values": clip_weights["token_embedding.weight"][rows],
    }


def refuses(path: Path, *parts: str, name: str = "ViT-B/16") -> str:
    """Loading fails with one line that names the file and holds `parts`."""
    with pytest.raises(ValueError, match=r"\S") as caught:
        prompted_clip.load_model(name, path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert "weights_only" not in message  # no advice to run what a file holds
    for part in parts:
        assert part in message, message
    return message


def test_writing_into_a_file_of_weights_changes_no_model_that_was_read_from_it(clip_weights, tmp_path):
    path = tmp_path / "clip.safetensors"
    save_file({key: value.float() for key, value in clip_weights.items()}, path)
    model = prompted_clip.load_model("ViT-B/16", path)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with open(path, "rb+") as file:
        file.seek(path.stat().st_size // 2)
        file.write(bytes(path.stat().st_size // 2))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


# --- kinds of files -------------------------------------------------------------------------------------


WRITERS: dict[str, Callable[[StateDict, Path], Any]] = {
    "archive.pt": write_archive,
    "plain.pt": torch.save,
    "old.pt": lambda state_dict, path: torch.save(state_dict, path, _use_new_zipfile_serialization=False),
    "half.pt": lambda state_dict, path: torch.save(half(state_dict) | SIZES, path),
    "wrapped.pt": lambda state_dict, path: torch.save({"epoch": 3, "state_dict": state_dict}, path),
    "parallel.pt": lambda state_dict, path: torch.save(
        {"state_dict": {f"module.{key}": value for key, value in state_dict.items()}}, path
    ),
    "vector.pt": lambda state_dict, path: torch.save(
        state_dict | {"logit_scale": state_dict["logit_scale"].reshape(1)}, path
    ),
    "plain.safetensors": save_file,
    "own_module.safetensors": lambda state_dict, path: save_file(
        {key if key.startswith(("visual", "logit")) else f"text.{key}": v for key, v in state_dict.items()},
        path,
    ),
}


@pytest.mark.parametrize("file", WRITERS)
def test_every_kind_of_file_gives_the_same_model(file, clip_weights, tmp_path):
    """All are of OpenAI's name, and so float16 in their matrices."""
    WRITERS[file](clip_weights, tmp_path / file)
    expected = prompted_clip.build_model(clip_weights).float().state_dict()
    model = prompted_clip.load_model("ViT-B/16", tmp_path / file)
    rounded = file in ("archive.pt", "half.pt")  # all of it is float16 there, embeddings too
    assert not model.training
    assert model.state_dict().keys() == expected.keys()
    for key, tensor in model.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected[key].half().float() if rounded else expected[key]), key


def test_a_traced_resnet(tmp_path):
    """Traced, as OpenAI's are: convolutions, counters of batch norms, buffers at the root."""
    theirs = open_clip.CLIP(
        32,
        {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8},
        {"width": 64, "heads": 1, "layers": 1},
        quick_gelu=True,
    )
    randomise(theirs).eval()
    del theirs.context_length, theirs.vocab_size
    for name, value in SIZES.items():
        theirs.register_buffer(name, value)
    images, text = torch.randn(2, 3, 64, 64), prompted_clip.tokenize(["a cat", "a dog"])
    save_archive(theirs, tmp_path / "RN.pt", (images, text))
    model = prompted_clip.load_model("RN50", tmp_path / "RN.pt")
    assert torch.allclose(model.encode_image(images), theirs.encode_image(images), rtol=0.02, atol=0.02)
    assert torch.allclose(model.encode_text(text), theirs.encode_text(text), rtol=0.02, atol=0.02)


def test_float16_rounding_is_of_openai_s_only(clip_weights, tmp_path, monkeypatch):
    config = {
        "embed_dim": 32,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 128, "patch_size": 16},
        "text_cfg": {"width": 64, "heads": 2, "layers": 1},
    }
    monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, "small", config)
    save_file(clip_weights, tmp_path / "a.safetensors")
    kept = prompted_clip.load_model("open_clip:small/any", tmp_path / "a.safetensors").state_dict()
    assert all(torch.equal(kept[key], clip_weights[key]) for key in clip_weights)
    openai = prompted_clip.load_model("ViT-B/16", tmp_path / "a.safetensors").state_dict()
    changed = {key for key in clip_weights if not torch.equal(openai[key], clip_weights[key])}
    assert {"visual.conv1.weight", "visual.proj", "text_projection"} < changed
    assert {"token_embedding.weight", "positional_embedding", "visual.class_embedding"}.isdisjoint(changed)
    assert all(torch.equal(openai[key], clip_weights[key].half().float()) for key in changed)


# --- files that are none --------------------------------------------------------------------------------


class Call:
    """Pickled, it makes the reader call `os.mkdir(path)`."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def write_calling_archive(content: Any, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps(content, 2))
        archive.writestr("archive/constants.pkl", pickle.dumps((), 2))


@pytest.mark.parametrize(
    "write",
    [
        torch.save,
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
        write_calling_archive,
    ],
    ids=["torch.save", "old torch.save", "archive"],
)
def test_a_file_that_calls_something_is_refused_and_not_run(write, tmp_path):
    write({"state_dict": {}, "call": Call(tmp_path / "called")}, tmp_path / "bad.pt")
    message = refuses(tmp_path / "bad.pt", f"it calls {os.mkdir.__module__}.mkdir, which weights do not need")
    assert "state dict alone" in message
    assert not (tmp_path / "called").exists()


def test_code_in_an_archive_is_not_run(clip_weights, tmp_path):
    """`torch.jit.load` would run `__setstate__`, which writes a file."""
    target = str(tmp_path / "called")

    class Calling(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))
            self.target = target

        @torch.jit.export
        def __getstate__(self) -> tuple[Tensor, str, bool]:
            return self.weight, self.target, self.training

        @torch.jit.export
        def __setstate__(self, state: tuple[Tensor, str, bool]) -> None:
            self.weight, self.target, self.training = state
            self.weight = torch.from_file(self.target, True, 10).fill_(1.0)

    root = nn.Module()
    for key, value in clip_weights.items():
        put(root, key, value)
    root.add_module("calling", Calling())
    save_archive(root, tmp_path / "bad.pt")
    refuses(tmp_path / "bad.pt")
    assert not Path(target).exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.load(tmp_path / "bad.pt")
    assert Path(target).exists()  # so the archive does what it says


def test_other_files_are_refused(tmp_path):
    contents = {
        "empty.pt": (b"", "it is no file of tensors; fetch it again."),
        "empty.safetensors": (b"", "fetch it again."),
        "page.pt": (b"<!DOCTYPE html><html>Not found</html>" * 40, "it is no file of tensors"),
        "page.safetensors": (b"<!DOCTYPE html><html>Not found</html>" * 40, "fetch it again."),
        "noise.pt": (random.Random(0).randbytes(4000), "it is no file of tensors"),
        "pickle.pt": (pickle.dumps({"a": 1}, 4), "cannot be read as CLIP weights"),
    }
    for name, (content, part) in contents.items():
        (tmp_path / name).write_bytes(content)
        refuses(tmp_path / name, part)
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("images/1.jpg", "x")
    refuses(tmp_path / "zip.pt", "fetch it again.")
    with pytest.raises(FileNotFoundError, match=r"no file of CLIP weights at .*/none\.pt; check MODEL"):
        prompted_clip.load_model("ViT-B/16", tmp_path / "none.pt")
    with pytest.raises(FileNotFoundError):
        prompted_clip.load_model("ViT-B/16", tmp_path)


@pytest.mark.parametrize("file", ["archive.pt", "plain.pt", "old.pt", "plain.safetensors"])
def test_a_damaged_file_is_refused_or_harmless(file, small_weights, tmp_path):
    """Cut anywhere it is refused; with bytes changed it is refused, or gives a model all the same."""
    WRITERS[file](small_weights, tmp_path / file)
    whole = (tmp_path / file).read_bytes()
    damaged = tmp_path / f"damaged-{file}"
    draw = random.Random(0)
    for kept in (1, 7, 100, len(whole) // 2, len(whole) - 1000, len(whole) - 1):
        damaged.write_bytes(whole[:kept])
        refuses(damaged)
    outcomes = []
    for k in range(60):
        changed = bytearray(whole)
        # Half of the places in the first and last kilobytes, where a file says what it holds.
        place = draw.randrange(len(whole)) if k % 2 else draw.choice([1, -1]) * draw.randrange(3000)
        changed[place] ^= draw.randrange(1, 256)
        damaged.write_bytes(changed)
        try:
            model = prompted_clip.load_model("ViT-B/16", damaged)
        except ValueError as error:
            outcomes.append(str(error))
        else:
            assert model.encode_text(prompted_clip.tokenize("a")).shape == (1, 32)
    assert outcomes
    assert all(str(damaged) in message and "\n" not in message for message in outcomes)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ([1, 2], "holds a list, not a state dict of CLIP weights."),
        ({1: torch.ones(1)}, "holds a dict, not a state dict"),
        ({"state_dict": {}}, "holds no weights of a CLIP: there is no ln_final.weight."),
        ({"prompt_learner.ctx": torch.ones(2, 64)}, "takes OpenAI's archives, and state dicts in"),
        (torch.ones(3), "holds a Tensor, not a state dict"),
    ],
)
def test_other_contents_are_refused(content, part, tmp_path):
    torch.save(content, tmp_path / "other.pt")
    refuses(tmp_path / "other.pt", part)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"token_embedding.weight": None}, "holds no whole CLIP: token_embedding.weight is missing"),
        ({"text_projection": torch.ones(3)}, "text_projection is missing, or has too few dimensions."),
        ({"visual.proj": None}, "is neither CLIP's ViT nor its ResNet"),
        ({"visual.conv1.weight": None}, "visual.conv1.weight is missing"),
        ({"visual.positional_embedding": torch.ones(6, 128)}, "(1 differences): visual.positional_embedding"),
        ({"transformer.resblocks.0.mlp.c_fc.weight": None}, "transformer.resblocks.0.mlp.c_fc.weight is"),
        (
            {"transformer.resblocks.0.ln_1.bias": None},
            "(1 differences): no transformer.resblocks.0.ln_1.bias.",
        ),
        ({"visual.ln_post.bias": torch.ones(5)}, "visual.ln_post.bias is (5,) and should be (128,)."),
        ({"logit_scale": torch.ones(2)}, "logit_scale is (2,) and should be ()."),
        ({"logit_bias": torch.ones(())}, "logit_bias too many."),
        (
            {"token_embedding.weight": torch.ones(50000, 1)},
            "embeds 50000 words, and CLIP's tokenizer has 49408",
        ),
        ({"ln_final.weight": torch.ones(63)}, "holds encoders that do not divide into heads"),
        ({"ln_final.weight": torch.ones(200)}, "holds encoders that do not divide into heads"),
        (
            {"visual.transformer.resblocks.2.ln_1.bias": torch.ones(128)},
            "differences): no visual.transformer",
        ),
    ],
)
def test_a_state_dict_that_is_not_whole_is_refused(change, part, clip_weights, tmp_path):
    changed = {key: value for key, value in (clip_weights | change).items() if value is not None}
    torch.save(changed, tmp_path / "part.pt")
    refuses(tmp_path / "part.pt", part)
    with pytest.raises(ValueError, match=r"^The state dict (holds|embeds) "):
        prompted_clip.build_model(changed)


def test_a_whole_model_is_no_state_dict(tmp_path):
    torch.save(tiny_clip(1, 1), tmp_path / "model.pt")
    refuses(tmp_path / "model.pt", "it calls prompted_clip.model.CLIP", "save the model's state dict alone")


# --- a small embedding ----------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["plain.safetensors", "half.pt"])
def test_a_small_embedding_is_widened(file, clip_weights, small_weights, tmp_path):
    WRITERS["plain.safetensors"](clip_weights, tmp_path / "whole.safetensors")
    WRITERS[file](small_weights, tmp_path / file)
    whole = prompted_clip.load_model("ViT-B/16", tmp_path / "whole.safetensors")
    small = prompted_clip.load_model("ViT-B/16", tmp_path / file)
    text = prompted_clip.tokenize(WORDS)
    assert small.token_embedding.weight.shape == (49408, 64)
    tolerance = 1e-2 if file == "half.pt" else 0
    assert torch.allclose(small.encode_text(text), whole.encode_text(text), atol=tolerance)
    assert whole.embedded_words is None
    assert int(small.embedded_words.sum()) == len(small_weights["token_embedding.rows"])
    with pytest.raises(ValueError, match=r"no 'german', 'shorthaired'; use other words, or a checkpoint"):
        small.encode_text(prompted_clip.tokenize(["a cat", "a german shorthaired"]))
    assert "embedded_words" not in small.state_dict()


@pytest.mark.parametrize("case", ["beyond", "negative", "fewer", "flat", "none"])
def test_a_small_embedding_that_does_not_fit_is_refused(case, small_weights, tmp_path):
    rows, values = small_weights["token_embedding.rows"].clone(), small_weights["token_embedding.values"]
    rows[0] = {"beyond": 49408, "negative": -1}.get(case, int(rows[0]))
    values = {"fewer": values[1:], "flat": values[:, 0]}.get(case, values)
    changed = small_weights | {"token_embedding.rows": rows, "token_embedding.values": values}
    if case == "none":
        changed.pop("token_embedding.values")
    torch.save(changed, tmp_path / "small.pt")
    refuses(tmp_path / "small.pt", "token_embedding.rows are not the words of token_embedding.values")


@pytest.mark.parametrize("name", ["ViT-Shapes/8", "RN50"])
def test_loading_draws_no_random_numbers(name: str, tmp_path: Path) -> None:
    """What is learned starts from the numbers of the seed, whichever CLIP was loaded before."""
    path = "" if name == "ViT-Shapes/8" else str(tmp_path / "resnet.pt")
    if path:
        options = {"vision_layers": (1, 1, 1, 1), "vision_width": 8, "image_resolution": 64}
        torch.save(tiny_clip(1, 1, torch.float32, **options).state_dict(), path)
    before = torch.get_rng_state()
    prompted_clip.load_model(name, path)
    assert torch.equal(torch.get_rng_state(), before)
