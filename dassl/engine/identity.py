"""What decides the number of a run: its settings, its model, its data; as hashes.

Two runs with the same `run` hash are the same run. Runs with the same `cell` hash differ in the seed, and in
what it draws, alone: their mean is a cell of a table.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from dassl.config.influence import DRAWN, differences, influencing, is_among
from dassl.data.content import content_sha256

# What each part is, for messages about runs that differ in it.
PARTS = {
    "model": "the weights of the frozen model",
    "init_weights": "the file MODEL.INIT_WEIGHTS",
    "classes": "the class names",
    "sentences": "the sentences of the classes",
    "descriptions": "the descriptions of the classes",
    "trained_images": "the images trained on",
    "searched_images": "the val images that settings were chosen on",
    "tested_images": "the images tested",
    "tested_model": "what is tested (its checkpoint)",
    "tested_training": "how the tested model was trained",
}
DRAWN_PARTS = ("trained_images", "searched_images", "tested_model")  # differ from seed to seed of one cell


def sha256_of(content: Any) -> str:
    """Of lists, dicts, strings and numbers."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def sha256_of_tensors(tensors: Mapping[str, Any]) -> str:
    """Of tensors by their names, as float32 where they are floats; other values are left out."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        if isinstance(tensor, torch.Tensor):
            value = tensor.detach().cpu()
            value = value.float() if value.is_floating_point() else value
            digest.update(f"{name}{tuple(value.shape)}".encode())
            digest.update(value.contiguous().numpy())  # type: ignore[arg-type]
    return digest.hexdigest()


def sha256_of_images(items: Sequence[Any], root: str, open_images: bool = True) -> str | None:
    """Of images: each one's path below `root`, label and content, in their order.

    Args:
        items: of a dataset, with `impath` and `label`.
        open_images: whether images may be read whose content is not known from earlier runs.

    Returns:
        None where such an image may not be read.
    """
    paths = [item.impath for item in items]
    contents = content_sha256(paths, root, hash_missing=open_images)
    digest = hashlib.sha256()
    for path, item in zip(paths, items, strict=True):
        if path not in contents and not open_images:
            return None
        line = f"{path_below(root, path)}\n{item.label}\n{contents.get(path, '')}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def image_root(cfg: Any, dataset: Any) -> str:
    """The folder that paths of images are told from."""
    return getattr(dataset, "dataset_dir", "") or os.path.abspath(os.path.expanduser(cfg.DATASET.ROOT))


def path_below(root: str, path: str) -> str:
    return os.path.relpath(path, root) if os.path.isabs(path) else path


def data_parts(cfg: Any, dataset: Any, trains: bool, open_images: bool = True) -> dict[str, str | None]:
    """The parts of an identity that are of a dataset; None for what is not known without opening images.

    Args:
        trains: whether the run draws training images.
    """
    root = image_root(cfg, dataset)
    split = cfg.TEST.SPLIT if getattr(dataset, "val", None) else "test"
    tested = getattr(dataset, split, None) or []
    parts: dict[str, str | None] = {
        "classes": sha256_of(list(getattr(dataset, "classnames", []))),
        "tested_images": sha256_of_images(tested, root, open_images),
    }
    if trains:
        names = ["train_x", "train_u", *(["val"] if cfg.TEST.FINAL_MODEL == "best_val" else [])]
        images = [item for name in names for item in getattr(dataset, name, None) or []]
        parts["trained_images"] = sha256_of_images(images, root, open_images)
    return parts


def tested_parts(checkpoints: Mapping[str, Mapping[str, Any]], epoch: int | None) -> dict[str, str]:
    """The parts of an identity that are of a tested model.

    They are of checkpoints as they were saved: a method may load more or less of one, by what is tested.

    Args:
        checkpoints: by the name of each model.
        epoch: the one that was asked for; None for the best or the last.
    """
    tensors = {
        f"{name}.{key}": tensor
        for name, checkpoint in checkpoints.items()
        for key, tensor in checkpoint.get("state_dict", {}).items()
    }
    cells = [(checkpoint.get("identity") or {}).get("cell", "") for checkpoint in checkpoints.values()]
    return {"tested_model": sha256_of_tensors(tensors), "tested_training": sha256_of([cells, epoch])}


def identity_of(settings: Mapping[str, Any], parts: Mapping[str, str | None]) -> dict[str, Any]:
    """A run's identity: `run`, `cell`, and all that they are of.

    Args:
        settings: those that can change the number, as `influencing` gives them.
        parts: hashes, by the names of PARTS; empty ones are left out.
    """
    known = {name: value for name, value in parts.items() if value}
    cell_settings = {key: value for key, value in settings.items() if not is_among(key, DRAWN)}
    cell_parts = {name: value for name, value in known.items() if name not in DRAWN_PARTS}
    return {
        "run": sha256_of([dict(settings), known]),
        "cell": sha256_of([cell_settings, cell_parts]),
        "parts": known,
        "settings": dict(settings),
    }


def identity_differences(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """In words where two identities differ, as far as both know; [] for the same run."""
    if there.get("run") == here.get("run"):
        return []
    found = differences(there.get("settings") or {}, here.get("settings") or {})
    theirs, ours = there.get("parts") or {}, here.get("parts") or {}
    found += [
        f"{PARTS.get(name, name)} differ" for name in theirs if name in ours and theirs[name] != ours[name]
    ]
    return found


def settings_of(trainer: type, cfg: Any, trains: bool) -> dict[str, Any]:
    """The influencing settings of a trainer's class."""
    key = getattr(trainer, "settings_key", None)
    return influencing(cfg, trains, key() if callable(key) else None)
