"""result.json: the metrics of a run of `train.py`, and all that made them."""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import torch

try:
    import resource
except ImportError:  # on Windows
    resource = None  # type: ignore[assignment]

from dassl.config.influence import flat, influencing, plain
from dassl.data.few_shot_list import shots_of
from dassl.engine.identity import identity_differences, image_root, path_below, sha256_of
from dassl.evaluation import Prediction, write_predictions
from dassl.utils import write_json
from dassl.utils.distributed import get_world_size, is_rank_zero
from dassl.utils.tools import package_versions
from experiments.configuration import setup_cfg
from experiments.methods import config_name
from experiments.run_folder import FORMAT, PREDICTIONS_OF, RESULT_FILE, ROOT, TEST_FILE, read_json
from experiments.tasks import task_of
from prompted_clip.errors import UserError
from prompted_clip.factory import is_published
from prompted_clip.files import sha256_of_file
from trainers.clip_trainer import CLIPPromptTrainer
from trainers.templates import template_of

MOST_LISTED = 6  # differences in a message
PACKAGES = ("torch", "torchvision", "numpy", "open_clip_torch", "Pillow")


class Record:
    """Records the metrics of a trainer from before it trains or tests; `write` writes result.json.

    Any trainer with Dassl's `test()` and `evaluator` will do: both are wrapped, so that the last test counts.

    Args:
        args: the flags of `train.py`.
        command: the words behind `python`.
    """

    def __init__(self, trainer: Any, args: Any, command: Sequence[str]) -> None:
        self.trainer = trainer
        self.args = args
        self.command = list(command)
        self.start = time.monotonic()
        self.commit, self.commit_is_clean = _commit()  # now: a run may take longer than the next commit
        self.backbone_is_published: bool | None = None
        self.identity: dict[str, Any] | None = None
        self.changed: dict[str, Any] = {}
        self.results: dict[str, float] = {}
        self.calibration: dict[str, Any] | None = None
        self.predictions: list[Prediction] | None = None
        self.split = ""
        self.testing = 0.0  # seconds of the last test
        self._watch_tests()

    def _watch_tests(self) -> None:
        trainer = self.trainer
        test, evaluate = trainer.test, getattr(trainer.evaluator, "evaluate", None)

        def timed_test(split: str | None = None, **kwargs: Any) -> Any:
            start = time.monotonic()
            trainer.calibration = trainer.tested_predictions = None  # a test of one's own may not tell
            result = test(split, **kwargs) if split else test(**kwargs)
            self.testing = time.monotonic() - start
            self.calibration, self.predictions = trainer.calibration, trainer.tested_predictions
            chosen = split or trainer.cfg.TEST.SPLIT
            self.split = "val" if chosen == "val" and trainer.val_loader is not None else "test"
            return result

        def recorded_evaluation(*args: Any, **kwargs: Any) -> Any:
            results = evaluate(*args, **kwargs)  # type: ignore[misc]
            if isinstance(results, Mapping):
                metrics = {str(name): float(value) for name, value in results.items()}
                self.results = {name: value for name, value in metrics.items() if math.isfinite(value)}
                if left_out := metrics.keys() - self.results.keys():
                    print(f"Warning: not finite, and not in result.json: {', '.join(sorted(left_out))}")
            return results

        trainer.test = timed_test
        if evaluate is not None:
            trainer.evaluator.evaluate = recorded_evaluation

    def write(self) -> None:
        """Writes the file beside the log, whole or not at all; of several processes rank zero does."""
        if not is_rank_zero():
            return
        path = self._path()
        predictions = path.with_name(PREDICTIONS_OF[path.name])
        predictions.unlink(missing_ok=True)  # those of another test
        if self.predictions is not None:
            dataset = self.trainer.dm.dataset
            root = image_root(self.trainer.cfg, dataset)
            rows = [row._replace(image=path_below(root, row.image)) for row in self.predictions]
            write_predictions(rows, predictions)
            print(f"Predictions are saved to {predictions}")
        content = self.content()
        content["task"] = task_of(content)
        content["predictions_sha256"] = sha256_of_file(predictions) if self.predictions is not None else ""
        write_json(sealed(content), str(path))
        print(f"Result is saved to {path}")

    def _path(self) -> Path:
        folder = Path(self.trainer.cfg.OUTPUT_DIR)
        of_a_training = self.args.eval_only and _is_of_a_training(folder / RESULT_FILE)
        return folder / (TEST_FILE if of_a_training else RESULT_FILE)

    def identify(self) -> None:
        """Hashes what decides the number of the run, after what is tested was loaded, before any step.

        Raises:
            ValueError: the folder holds the result of another run.
        """
        backbone = self.trainer.cfg.MODEL.BACKBONE
        self.backbone_is_published = is_published(backbone.NAME, backbone.get("PATH", ""))
        identity = getattr(self.trainer, "run_identity", None)
        if identity is None:  # a trainer on the engine's lowest base
            return
        self.changed = self._changed()
        self.identity = identity(tests_only=bool(self.args.eval_only and self.trainer.get_model_names()))
        path = self._path()
        found = result_differences(path, self.identity)
        if found:
            raise UserError(
                f"{path} is the result of another run: {'; '.join(found[:MOST_LISTED])}. Give another "
                "--output-dir, or remove that folder."
            )

    def _changed(self) -> dict[str, Any]:
        """Settings that flags and options changed in what the configuration files say, as [file's, run's]."""
        flags = {**vars(self.args), "trainer": self.trainer.cfg.TRAINER.NAME, "opts": [], "transforms": None}
        files = setup_cfg(argparse.Namespace(**flags))
        here, there = (influencing(each, trains=True) for each in (self.trainer.cfg, files))
        return {key: [there[key], value] for key, value in here.items() if there.get(key, value) != value}

    def content(self) -> dict[str, Any]:
        """The fields of the file; docs/results.md explains each."""
        trainer, cfg, args = self.trainer, self.trainer.cfg, self.args
        seconds = time.monotonic() - self.start
        per_class = self._per_class()
        total = sum(each["total"] for each in per_class)
        cuda = trainer.device.type == "cuda"
        return {
            "format": FORMAT,
            "finished": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "trainer": cfg.TRAINER.NAME,
            "config": config_name(args.config_file, cfg.TRAINER.NAME),
            "per_dataset": is_per_dataset(args.config_file),
            "oracle": trainer.oracle(cfg) if isinstance(trainer, CLIPPromptTrainer) else "",
            "selected_on": self._selected_on(),
            "dataset": cfg.DATASET.NAME,
            "dataset_config": Path(args.dataset_config_file).stem,
            "classes": cfg.DATASET.SUBSAMPLE_CLASSES,
            "classnames": list(getattr(trainer.dm.dataset, "classnames", [])),
            "template": template_of(trainer.dm.dataset),
            "split": self.split,
            "shots": shots_of(cfg, trainer.dm.dataset),
            "seed": cfg.SEED,
            "backbone": cfg.MODEL.BACKBONE.NAME,
            "backbone_is_published": self.backbone_is_published,
            "eval_only": args.eval_only,
            "model_dir": args.model_dir,
            "trained_on": self._trained_on(),
            "sample_sha256": getattr(getattr(trainer.dm.dataset, "sample", None), "sha256", ""),
            "results": self.results,
            **({} if self.calibration is None else {"calibration": self.calibration}),
            "total": total,
            "correct": sum(each["correct"] for each in per_class),
            "per_class": per_class,
            "learned_parameters": self._learned_parameters(),
            "epochs": 0 if args.eval_only or not trainer.get_model_names() else trainer.max_epoch,
            "resumed_from_epoch": trainer.start_epoch,
            "seconds": {
                "total": round(seconds, 3),
                "training": 0.0 if args.eval_only else round(seconds - self.testing, 3),
                "testing": round(self.testing, 3),
            },
            "images_per_second": round(total / self.testing, 1) if self.testing else None,
            "peak_memory_bytes": {
                "process": _peak_of_process(),
                "device": torch.cuda.max_memory_allocated(trainer.device) if cuda else None,
            },
            "device": torch.cuda.get_device_name(trainer.device) if cuda else "cpu",
            "processes": get_world_size(),
            "versions": package_versions(PACKAGES),
            "commit": self.commit,
            "commit_is_clean": self.commit_is_clean,
            "command": self.command,
            "identity": self.identity,
            "changed": self.changed,
            "settings": plain(cfg),
        }

    def _selected_on(self) -> str:
        """`val` where what is tested was chosen by the accuracy on val images; else ""."""
        trainer, here = self.trainer, self.trainer.cfg
        if not trainer.get_model_names():
            return ""
        there = (trainer.loaded_training or {}).get("settings") if self.args.eval_only else flat(plain(here))
        settings = dict(there or {})
        if self.args.eval_only and self.args.load_epoch is not None:
            settings["TEST.FINAL_MODEL"] = "last_step"  # an epoch that was asked for
        method = trainer if isinstance(trainer, CLIPPromptTrainer) else CLIPPromptTrainer
        return method.selected_on(settings)

    def _per_class(self) -> list[dict[str, Any]]:
        """Images and hits by label, where the evaluator keeps labels and guesses as Dassl's does."""
        true = getattr(self.trainer.evaluator, "_y_true", None)
        guessed = getattr(self.trainer.evaluator, "_y_pred", None)
        if not true or guessed is None or len(true) != len(guessed):
            return []
        totals = Counter(int(label) for label in true)
        hits = Counter(int(label) for label, guess in zip(true, guessed, strict=True) if label == guess)
        names = self.trainer.lab2cname
        return [
            {"label": label, "name": names.get(label, ""), "total": totals[label], "correct": hits[label]}
            for label in sorted(totals)
        ]

    def _trained_on(self) -> dict[str, Any] | None:
        """The data of the training; None where nothing was trained, or its checkpoint does not tell."""
        learner = getattr(getattr(self.trainer, "model", None), "prompt_learner", None)
        if not self.trainer.get_model_names() or learner is None:
            return None
        of_run = "loaded_identity" if self.args.eval_only else "identity"
        identity = getattr(learner, of_run, {})  # a learner of older code has neither
        data = identity.get("data")
        if not data:
            return None
        keys = {
            "dataset": "DATASET.NAME",
            "classes": "DATASET.SUBSAMPLE_CLASSES",
            "shots": "DATASET.NUM_SHOTS",
            "seed": "SEED",
            "sample_sha256": "sample_sha256",
        }
        training = self.trainer.loaded_training if self.args.eval_only else self.identity
        return {
            **{name: data.get(key) for name, key in keys.items()},
            "own_path": identity.get("own_path", ""),
            "settings": (training or {}).get("settings"),
        }

    def _learned_parameters(self) -> int:
        models = [self.trainer._models[name] for name in self.trainer.get_model_names()]
        learned = {id(each): each for model in models for each in model.parameters() if each.requires_grad}
        return sum(each.numel() for each in learned.values())


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a result.json with `sha256`, which is over all others."""
    others = {key: value for key, value in content.items() if key != "sha256"}
    return {**others, "sha256": sha256_of(others)}


def is_per_dataset(config_file: str) -> bool:
    """Whether a configuration is one dataset's own: in a folder `per_dataset`, or `per_dataset_few_shot`."""
    return Path(config_file).parent.name.startswith("per_dataset")


def result_differences(path: Path, identity: Mapping[str, Any]) -> list[str]:
    """In words where the result in a file is of another run; [] if there is none, or it is the same run.

    A result of an earlier version has no identity: its settings are compared, as far as both know them.
    """
    try:
        content = read_json(path)
        earlier = content.get("identity") or {"settings": flat(content.get("settings") or {})}
        return identity_differences(earlier, identity)
    except (OSError, UserError, AttributeError):  # nothing that could be taken for a result
        return []


def _is_of_a_training(path: Path) -> bool:
    try:
        return read_json(path).get("eval_only") is False
    except (OSError, UserError):
        return False


def _peak_of_process() -> int | None:
    """The largest resident set that this process has had, in bytes; None on Windows."""
    if resource is None:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _commit() -> tuple[str, bool | None]:
    """The commit of this code and whether it is unchanged; empty and None outside of git."""
    try:
        commit, changes = (
            subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout
            for words in (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
        )
    except (OSError, subprocess.CalledProcessError):
        return "", None
    return commit.strip(), not changes.strip()
