"""Mutated weights and checkpoints, and whole tiny runs with mutated settings."""

from __future__ import annotations

import contextlib
import copy
import functools
import json
import os
import pickle
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import golden_script
from safetensors.torch import save_file

import train
from dassl.config.influence import flat
from dassl.engine import build_trainer
from dassl.utils import resume_from_checkpoint
from experiments.configuration import build_parser, setup_cfg
from prompted_clip import load_model

from .configuration_cases import CONFIG, default, option
from .data_cases import photos
from .mutate import VALUES, mutated, mutated_bytes
from .nonsense import check, check_settings, check_tensors

# Settings that a tiny run reads, and that cannot make it a long one.
SECTIONS = ("INPUT", "DATALOADER", "OPTIM", "TRAIN", "TEST", "TRAINER.MAPLE", "MODEL", "DATASET", "SEED")
NOT_READ = (
    "OPTIM.MAX_EPOCH",
    "DATALOADER.NUM_WORKERS",
    "DATASET.ROOT",
    "MODEL.BACKBONE.PATH",
    "DATASET.NAME",
)


@functools.cache
def weights_of_clip() -> dict[str, torch.Tensor]:
    """The recorded CLIP of the golden tests."""
    state = golden_script.make_state_dict(**golden_script.PRESETS["tiny_public"])
    state["logit_scale"] = state["logit_scale"].reshape(())
    return {key: torch.from_numpy(np.asarray(each)) for key, each in state.items()}


@functools.cache
def kept() -> Path:
    """A folder of this process, with what several cases read: `photos` and `clip.pt`."""
    folder = Path(tempfile.mkdtemp())
    photos(folder / "photos")
    torch.save(weights_of_clip(), folder / "clip.pt")
    return folder


class Attack:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.system, (f"touch {self.marker}",)


def others(value: torch.Tensor) -> list[Any]:
    """Tensors and other things in the place of one."""
    float_ = value.float()
    of_same_shape = [torch.full_like(float_, float(each)) for each in ("nan", "inf", "-inf", "1e30")]
    kinds = [value.to("meta"), value.to_sparse() if value.dim() else value, value.bool(), value.int()]
    kinds += [value.to(torch.complex64), value.half(), value.double()]
    shapes = [value.reshape(-1)[:0], value.reshape(-1)[:1], value[None], value.expand(2, *value.shape)]
    return [*of_same_shape, *kinds, *shapes, None, "x", [], 0]


def weights(rng: random.Random, folder: Path, marker: Path) -> None:
    """A file of CLIP's weights: flipped bits, other tensors, pickles that run code, other forms."""
    path, state = folder / "clip.pt", dict(weights_of_clip())
    key = rng.choice(sorted(state))
    change = rng.choice(("bytes", "bytes", "other", "missing", "more", "attack", "form", "form", "value"))
    if change == "other":
        state[key] = rng.choice(others(state[key]))
    elif change == "missing":
        del state[key]
    elif change == "more":
        state[rng.choice(("x", "", "visual", "logit_scale.x"))] = rng.choice((torch.zeros(2), None, 3))
    elif change == "value":
        state[key] = rng.choice(VALUES)
    content: Any = {**state, "x": Attack(marker)} if change == "attack" else state
    if change == "form":
        form = rng.choice(("module", "half", "state_dict", "open", "clone", "compressed"))
        state = {f"module.{name}": each for name, each in state.items()} if form == "module" else state
        content = {name: each.half() for name, each in state.items()} if form == "half" else state
        content = {"state_dict": state, "epoch": 3} if form == "state_dict" else content
    as_safetensors = rng.random() < 0.3 and all(
        isinstance(each, torch.Tensor) and each.layout == torch.strided and not each.is_meta
        for each in content.values()
    )
    if as_safetensors:
        path = folder / "clip.safetensors"
        save_file({name: each.contiguous().clone() for name, each in content.items()}, path)
    else:
        torch.save(content, path, _use_new_zipfile_serialization=rng.random() < 0.8)
    if change == "bytes":
        path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    loaded = load_model("ViT-B/16", str(path)).state_dict()
    # Files of safetensors, and those of torch before 1.6, have no checksums.
    same = change in ("form", "more") or (change == "bytes" and path.read_bytes()[:2] == b"PK")
    half = change == "form" and content is not state and not isinstance(content.get("state_dict"), dict)
    check_tensors(loaded, weights_of_clip() if same and not half else None)


WORDS = (
    *("--trainer", "MaPLe", "--config-file", str(CONFIG), "--seed", "1"),
    *("DATASET.NAME", "folder", "INPUT.SIZE", "(32, 32)", "TRAINER.MAPLE.PREC", "fp32", "USE_CUDA", "False"),
    *("TRAINER.MAPLE.PROMPT_DEPTH", "2", "DATALOADER.NUM_WORKERS", "0", "OPTIM.MAX_EPOCH", "2"),
    *("OPTIM.WARMUP_EPOCH", "1", "DATASET.NUM_SHOTS", "1", "TRAIN.CHECKPOINT_FREQ", "1"),
)


def tiny_run(output: Path, *options: str) -> list[str]:
    """The words of a run of MaPLe on photos that takes a second."""
    words = [*WORDS, "DATASET.ROOT", str(kept() / "photos"), "MODEL.BACKBONE.PATH", str(kept() / "clip.pt")]
    return [*words, "OUTPUT_DIR", str(output), *options]


@functools.cache
def _trained() -> tuple[Any, dict[str, Any], dict[str, Any]]:
    """A trainer after its first epoch, what it saved then, and its own state."""
    words = tiny_run(kept() / "run", "TEST.NO_TEST", "True")
    trainer = build_trainer(setup_cfg(build_parser().parse_args(words)))
    trainer.train()
    (file,) = (kept() / "run").glob("*/model.pth.tar-1")
    return trainer, torch.load(file, weights_only=False), copy.deepcopy(_state(trainer))


def _state(trainer: Any) -> dict[str, Any]:
    return {
        "model": trainer.model.prompt_learner.state_dict(),
        "optimizer": trainer.optim.state_dict(),
        "schedule": trainer.sched.state_dict(),
    }


def _restore(trainer: Any, state: dict[str, Any]) -> None:
    """A case may end with another state, and the next one begins with this one."""
    state = copy.deepcopy(state)
    trainer.model.prompt_learner.load_state_dict(state["model"])
    trainer.optim.load_state_dict(state["optimizer"])
    trainer.sched.load_state_dict(state["schedule"])
    trainer.best_result, trainer.start_epoch = float("-inf"), 0


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def checkpoint(rng: random.Random, folder: Path, marker: Path) -> None:
    """A checkpoint: flipped bits, other parts, pickles that run code; resumed from or loaded."""
    trainer, content, before = _trained()
    _restore(trainer, before)
    content = copy.deepcopy(content)
    change = rng.choice(("bytes", "bytes", "part", "inside", "inside", "tensor", "attack", "pickle", "none"))
    path = folder / trainer.get_model_names()[0] / "model.pth.tar-1"
    path.parent.mkdir()
    if change == "part":
        tensors = (torch.zeros(2), torch.zeros(2, device="meta"))
        content[rng.choice(sorted(content))] = rng.choice((*VALUES, *tensors))
    elif change == "inside":
        part = rng.choice([key for key in sorted(content) if isinstance(content[key], dict)])
        content[part] = mutated(rng, content[part])
    elif change == "tensor":
        holder = rng.choice((content["state_dict"], *content["optimizer"]["state"].values()))
        key = rng.choice([key for key, each in holder.items() if isinstance(each, torch.Tensor)])
        holder[key] = rng.choice(others(holder[key]))
    elif change == "attack":
        content["rng"] = Attack(marker)
    if change == "pickle":
        made = pickle.dumps({"state_dict": {}, "epoch": 1, "x": Attack(marker)}, rng.choice((2, 4)))
        path.write_bytes(mutated_bytes(rng, made))
    else:
        torch.save(content, path)
        if change == "bytes":
            path.write_bytes(mutated_bytes(rng, path.read_bytes()))
    pointer = rng.choice(("model.pth.tar-1\n", "", "\0", "../../outside", "x" * 300, "model.pth.tar-2"))
    (path.parent / "checkpoint").write_text(pointer)
    for _ in range(rng.choice((0, 0, 1))):
        (path.parent / rng.choice(("model.pth.tar-007", "model.pth.tar-" + "9" * 200))).write_bytes(b"")
    with _unless_refused(trainer, before):
        way = rng.choice(("resume", "resume", "load", "function"))
        if way == "resume":
            epoch = trainer.resume_model_if_exist(str(folder))
            check(type(epoch) is int and epoch >= 0, f"epoch {epoch!r}")
            check(trainer.best_result == trainer.best_result < float("inf"), f"best {trainer.best_result}")
        elif way == "load":
            trainer.load_model(str(folder), epoch=1)
        else:
            learner = torch.nn.ParameterDict(
                {key.replace(".", "_"): each for key, each in trainer.model.prompt_learner.named_parameters()}
            )
            resume_from_checkpoint(str(path.parent), learner)
    saved = {key.removeprefix("prompt_learner."): each for key, each in content["state_dict"].items()}
    taken = trainer.model.prompt_learner.state_dict()
    check_tensors(taken, saved if change in ("bytes", "none") and way != "function" else None)
    if way == "resume":
        for number, state in trainer.optim.state_dict()["state"].items():
            check_tensors({f"{key} of {number}": each for key, each in state.items()})
        trainer.optim.step()  # as the next epoch does
        trainer.sched.step()
        check_tensors(trainer.model.prompt_learner.state_dict())


@contextlib.contextmanager
def _unless_refused(trainer: Any, before: dict[str, Any]) -> Iterator[None]:
    """What is refused changes nothing."""
    try:
        yield
    except ValueError:
        check(_equal(_state(trainer), before), "changed, and then refused")
        raise


def settings(rng: random.Random, folder: Path, marker: Path) -> None:
    """A whole run of train.py on three photos with one setting or two changed."""
    keys = [key for key in sorted(flat(default())) if key.startswith(SECTIONS) and key not in NOT_READ]
    options = [word for _ in range(rng.choice((1, 1, 2))) for word in option(rng, keys)]
    args = build_parser().parse_args(tiny_run(folder / "run", "OPTIM.MAX_EPOCH", "1", *options))
    here = os.getcwd()
    os.chdir(folder)
    try:
        train.main(args)
    finally:
        os.chdir(here)
    content = json.loads((folder / "run" / "result.json").read_text())
    check_settings(content["settings"])
    numbers = content["results"].values()
    check(all(0 <= each <= 100 for each in numbers), f"results {content['results']}")
    (file,) = (folder / "run").glob("*/model.pth.tar-1")
    check_tensors(torch.load(file, weights_only=False)["state_dict"])
