"""A trainer with what a run has learned, made of the run's folder."""

from __future__ import annotations

import contextlib
import io
import json
import sys
from pathlib import Path
from typing import Any

from dassl.config import get_cfg_default
from dassl.data.transforms import build_transform
from dassl.engine import build_trainer
from experiments.configuration import build_parser, extend_cfg, load_plugin
from experiments.results.result_file import RESULT_FILE, TEST_FILE


def read_result(folder: Path) -> dict[str, Any]:
    """What `result.json` of a run holds.

    Raises:
        FileNotFoundError: there is no such folder, or no result in it.
        ValueError: the file is damaged.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: there is no such folder.")
    places = [folder / RESULT_FILE, folder / TEST_FILE]
    path = next((place for place in places if place.is_file()), None)
    if path is None:
        raise FileNotFoundError(
            f"{folder} holds no {RESULT_FILE}, so that its settings are not known; give the folder of a "
            "finished run of train.py."
        )
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        result["settings"]["TRAINER"]["NAME"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no result of a run ({error!r}); run train.py again.") from error
    return result


def load_trainer(folder: Path, root: str = "", epoch: int | None = None) -> Any:
    """Builds the trainer of a finished run with its own settings, and loads what it has learned.

    A run that only tested gets what it tested. What building prints is kept from the terminal.

    Args:
        root: folder of the datasets, where it is another than the run's.
        epoch: the one to load; by default the best or the last.

    Raises:
        FileNotFoundError: no result, no checkpoint, or no data.
        ValueError: the settings or the checkpoint do not fit this version.
    """
    result = read_result(folder)
    plugins = build_parser().parse_known_args(result.get("command", [])[1:])[0].plugin
    for plugin in plugins:
        if Path(plugin).stem not in sys.modules and plugin not in sys.modules:
            load_plugin(plugin)
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
                    raise FileNotFoundError(
                        f"{folder} tested what lay in {place}, and there is no such folder from here; start "
                        "where the run was started, or give the folder of the training."
                    )
            trainer.load_model(str(place), epoch=epoch)
        trainer.set_model_mode("eval")
    return trainer


def eval_transform(trainer: Any) -> Any:
    """What a test does to a PIL image: a tensor `(3 height width)` comes of it."""
    with contextlib.redirect_stdout(io.StringIO()):
        return build_transform(trainer.cfg, is_train=False)
