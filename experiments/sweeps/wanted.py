"""The identity that a planned run will have. Images are opened only where no earlier run has read them."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

from dassl.config.influence import DRAWN, flat, is_among, plain
from dassl.data.datasets import build_dataset
from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoints import file_to_load
from dassl.engine.identity import data_parts, identity_of, settings_of, tested_parts
from dassl.utils import load_checkpoint
from dassl.utils.checkpoint_parts import check_parts
from experiments.sweeps.job import Job
from prompted_clip import load_model
from prompted_clip.files import sha256_of_file
from trainers.checkpoints import fingerprint
from trainers.clip_trainer import CLIPPromptTrainer


class Wanted:
    """Identities of planned runs; each dataset, model and checkpoint is read once."""

    def __init__(self) -> None:
        self._known: dict[Any, dict[str, Any]] = {}

    def identity(self, cfg: Any, job: Job, output: Path) -> dict[str, Any]:
        """What the run's `run_identity` will be. Parts that are not known now are left out."""
        trainer = TRAINER_REGISTRY.get(cfg.TRAINER.NAME)
        trains = job.planned.trains and not getattr(trainer, "is_zero_shot", False)
        parts = {**self._data(cfg, trains), **self._model(trainer, cfg)}
        if job.weights:
            parts |= self.tested(trainer, output / job.weights, job.load_epoch)
        if trains and cfg.MODEL.INIT_WEIGHTS:
            parts["init_weights"] = sha256_of_file(cfg.MODEL.INIT_WEIGHTS)
        return identity_of(settings_of(trainer, cfg, trains), parts)

    def tested(self, trainer: Any, folder: Path, epoch: int | None) -> dict[str, Any]:
        """The parts of a test of what a run has left in `folder`; none where that cannot be known."""
        if not _is_ours(trainer):
            return {}
        name = trainer.model_name

        def parts() -> dict[str, Any]:
            try:
                file = folder / name / file_to_load([str(folder / name)], epoch)
            except FileNotFoundError:  # removed since; its result stays
                return {}
            checkpoint = load_checkpoint(str(file))
            check_parts(checkpoint, str(file))
            return tested_parts({name: checkpoint}, epoch)

        return self._once(("tested", folder, epoch), parts)

    def _data(self, cfg: Any, trains: bool) -> dict[str, Any]:
        drawn = (*DRAWN, "DATASET.NUM_SHOTS")
        settings = flat({"DATASET": plain(cfg.DATASET), "TEST": plain(cfg.TEST), "SEED": cfg.SEED})
        read = {key: each for key, each in settings.items() if trains or not is_among(key, drawn)}

        def parts() -> dict[str, Any]:
            with contextlib.redirect_stdout(io.StringIO()):
                dataset = build_dataset(cfg)
            found = data_parts(cfg, dataset, trains, open_images=False)
            return found if all(found.values()) else data_parts(cfg, dataset, trains)

        return self._once(("data", trains, str(sorted(read.items()))), parts)

    def _model(self, trainer: Any, cfg: Any) -> dict[str, Any]:
        if not _is_ours(trainer):  # its model is not known before it is built
            return {}
        names = cfg.MODEL.BACKBONE.NAME, cfg.MODEL.BACKBONE.PATH
        return self._once(("model", *names), lambda: {"model": fingerprint(load_model(*names))})

    def _once(self, key: Any, parts: Any) -> dict[str, Any]:
        if key not in self._known:
            self._known[key] = parts()
        return self._known[key]


def _is_ours(trainer: Any) -> bool:
    return isinstance(trainer, type) and issubclass(trainer, CLIPPromptTrainer)
