"""Rebuilds the trainer of a finished run from the run's folder."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer
from experiments.results.result_file import content_of
from prompted_clip.errors import MissingFileError, UserError
from trainers.configuration import extend_cfg, load_plugins_of


def load_trainer(folder: Path, root: str = "", epoch: int | None = None) -> Any:
    """The trainer of a finished run, with its own settings and its learned parameters.

    A run that only tested gets the parameters that it tested. Nothing is printed.

    Args:
        root: folder of the datasets, where it is another than the run's.
        epoch: the one to load; by default the best or the last.

    Raises:
        FileNotFoundError: no result, no checkpoint, or no data.
        ValueError: the settings or the checkpoint do not fit this version.
    """
    result = content_of(folder)
    if not result.get("settings"):
        raise UserError(f"{folder}: its result.json holds no settings; run train.py again.")
    load_plugins_of(result.get("command") or [])
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.merge_from_other_cfg(result["settings"])
    if root:
        cfg.DATASET.ROOT = root
    cfg.RESUME = ""
    cfg.freeze()
    with contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg)
        if trainer.get_model_names():
            place = folder
            if result["eval_only"]:
                place = Path(result["model_dir"])
                if not place.is_dir():
                    raise MissingFileError(
                        f"{folder} tested what lay in {place}, and there is no such folder from here; start "
                        "where the run was started, or give the folder of the training."
                    )
            trainer.load_model(str(place), epoch=epoch)
        trainer.set_model_mode("eval")
    return trainer


def eval_transform(trainer: Any) -> Any:
    """The transform of a test: from a PIL image to a tensor `(3 height width)`."""
    with contextlib.redirect_stdout(io.StringIO()):
        return build_transform(trainer.cfg, is_train=False)


def labels_of(folders: Sequence[Path]) -> list[str]:
    """Trainer, configuration and seed, as folders name them; and what else of the paths tells runs apart."""
    paths = [folder.resolve().parts[::-1] for folder in folders]
    usual = 3 if all(re.fullmatch(r"seed\d+", parts[0]) for parts in paths) else 1
    labels = [parts[:usual] for parts in paths]
    for place in range(usual, min(map(len, paths))):
        differs = len({parts[place] for parts in paths}) > 1
        if differs and len(set(labels)) < len(set(paths)):
            labels = [(*label, parts[place]) for label, parts in zip(labels, paths, strict=True)]
    return [" ".join(label[::-1]) for label in labels]
