"""Trainers for image classification: `TrainerX` on labelled images, `TrainerXU` also on unlabelled ones."""

from __future__ import annotations

import datetime
import math
import os.path as osp
import time
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm
from yacs.config import CfgNode

from dassl.config import key_or_default
from dassl.data.few_shot_list import shots_of
from dassl.engine.bounds import check_numbers
from dassl.engine.checkpoints import has_best, remove_all_but_newest, saved_epochs
from dassl.engine.ddp import broadcast_initial_state, check_ddp, select_device
from dassl.engine.identity import data_parts, identity_differences, identity_of, settings_of
from dassl.engine.simple_net import SimpleNet
from dassl.engine.trainer_base import SummaryWriter, TrainerBase
from dassl.evaluation import (
    Confidences,
    FiniteScores,
    FirstClasses,
    HeldOut,
    Prediction,
    Predictions,
    build_evaluator,
)
from dassl.optim import build_lr_scheduler, build_optimizer
from dassl.utils import (
    AverageMeter,
    MetricMeter,
    count_num_param,
    load_pretrained_weights,
    restore_rng_state,
    rng_state,
)
from dassl.utils.distributed import all_reduce_mean, get_world_size, is_rank_zero, rank_zero_first
from dassl.utils.logger import check_log
from dassl.utils.meters import DeferredMetrics
from prompted_clip.errors import MissingFileError, NotFiniteError, UserError
from prompted_clip.files import sha256_of_file

__all__ = [
    "AverageMeter",
    "MetricMeter",
    "SimpleNet",
    "SimpleTrainer",
    "SummaryWriter",
    "TrainerBase",
    "TrainerX",
    "TrainerXU",
]

MOST_LISTED = 6  # differences in a message
CHOICES = {
    "TEST.FINAL_MODEL": ("last_step", "best_val"),
    "TEST.SPLIT": ("val", "test"),
    "TRAIN.COUNT_ITER": ("train_x", "train_u", "smaller_one"),
}


def _check_choice(cfg: CfgNode, key: str) -> None:
    # Checked where the value is used: a trainer may allow other values.
    section, name = key.split(".")
    if cfg[section][name] not in CHOICES[key]:
        raise UserError(f"{key} is {cfg[section][name]!r}; choose from {', '.join(CHOICES[key])}.")


class SimpleTrainer(TrainerBase):
    """Builds data, model and evaluator from a config; trains, resumes, saves and tests.

    A trainer that registers no model has nothing to train: `train()` tests it. If it overrides `before_train`
    or `after_train`, they are called, too; if it overrides `run_epoch`, all epochs are run.

    Attributes:
        calibration: how sure the model was of the images that `test` tested last, as result.json says it;
            None where it gives no logits.
        tested_predictions: of those images, with `TEST.RECORD_PREDICTIONS`; None without paths or logits.

    Raises:
        ValueError: a setting with a value that is not allowed.
    """

    calibration: dict[str, Any] | None = None
    tested_predictions: list[Prediction] | None = None

    def __init__(self, cfg: CfgNode) -> None:
        super().__init__()
        check_numbers(cfg)
        self.check_cfg(cfg)

        self.device = select_device(cfg)
        self.start_epoch = self.epoch = 0
        self.max_epoch = cfg.OPTIM.MAX_EPOCH
        self.output_dir = cfg.OUTPUT_DIR
        self.cfg = cfg
        with rank_zero_first():  # which may make the dataset, and fetch weights
            self.build_data_loader()
            self.max_epoch = sum(self.phase_epochs())
            if self.num_classes == 1:
                print(
                    "Warning: the dataset has a single class: every answer is right, and nothing is learned"
                )
            self.build_model()
        broadcast_initial_state(self._models.values())
        self.evaluator = build_evaluator(cfg, lab2cname=self.lab2cname)
        self.best_result = float("-inf")
        self.test_results: dict[str, float] = {}  # of the last test

    def check_cfg(self, cfg: CfgNode) -> None:
        """Raises a ValueError for settings that the trainer cannot work with; a subclass overrides it."""

    def build_data_loader(self) -> None:
        """Builds the loaders and what else has to do with data."""
        from dassl.data import DataManager  # here, as it imports torchvision, which takes seconds

        dm = DataManager(self.cfg)
        self.train_loader_x = dm.train_loader_x
        self.train_loader_u = dm.train_loader_u
        self.val_loader = dm.val_loader
        self.test_loader = dm.test_loader
        self.num_classes = dm.num_classes
        self.num_source_domains = dm.num_source_domains
        self.lab2cname = dm.lab2cname
        self.dm = dm

    def build_model(self) -> None:
        """Builds and registers the model; most trainers override it."""
        cfg = self.cfg
        print("Building model")
        self.model = SimpleNet(cfg, cfg.MODEL, self.num_classes)
        if cfg.MODEL.INIT_WEIGHTS:
            load_pretrained_weights(self.model, cfg.MODEL.INIT_WEIGHTS)
        self.model.to(self.device)
        print(f"# params: {count_num_param(self.model):,}")
        self.optim = build_optimizer(self.model, cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, cfg.OPTIM)
        self.register_model("model", self.model, self.optim, self.sched)

    def train(self) -> None:  # type: ignore[override]
        """Trains and tests.

        Raises:
            KeyboardInterrupt: Ctrl-C; its message says how to resume.
        """
        check_ddp(self)
        epochs = (self.start_epoch, self.max_epoch)
        if not self.has_something_to_train():
            print(f"{type(self).__name__} has nothing to train")
            if not self._overrides("before_train", "after_train"):
                if not self.cfg.TEST.NO_TEST:
                    self.test()
                return
            epochs = (0, 0)
        try:
            super().train(*epochs)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_resume()) from None
        finally:
            self.close_writer()

    def model_parts(self) -> dict[str, str]:
        """Parts of a run's identity that a trainer adds, by the names of `identity.PARTS`."""
        return {}

    def run_identity(self, tests_only: bool = False) -> dict[str, Any]:
        """What decides the number of this run, see `identity.py`. Reads images that were never read before.

        Args:
            tests_only: the run tests what `load_model` loaded.
        """
        identities = vars(self).setdefault("_identities", {})
        if tests_only not in identities:
            trains = not tests_only and self.has_something_to_train()
            tested = (self.loaded_parts or {}) if tests_only else {}
            dataset = getattr(getattr(self, "dm", None), "dataset", None)  # a foreign trainer may have none
            parts = {**self.model_parts(), **data_parts(self.cfg, dataset, trains), **tested}
            if trains and osp.isfile(self.cfg.MODEL.INIT_WEIGHTS):
                parts["init_weights"] = sha256_of_file(self.cfg.MODEL.INIT_WEIGHTS)
            identities[tests_only] = identity_of(settings_of(type(self), self.cfg, trains), parts)
        return identities[tests_only]

    def checkpoint_state(self, name: str) -> dict[str, Any]:
        return {**super().checkpoint_state(name), "identity": self.run_identity()}

    def check_resumable(self, name: str, checkpoint: Mapping[str, Any], directory: str) -> None:
        """Refuses to continue another run than this one; an old checkpoint does not say which it is of.

        Raises:
            ValueError: lists what differs.
        """
        earlier = checkpoint.get("identity")
        if isinstance(earlier, Mapping):
            found = identity_differences(earlier, self.run_identity())
            # More epochs are allowed where the schedule does not depend on them, which the scheduler tells.
            found = [each for each in found if not each.startswith("OPTIM.MAX_EPOCH ")]
            if found:
                listed = "; ".join(found[:MOST_LISTED])
                raise UserError(
                    f"The run in {directory} cannot be continued by this one: {listed}. "
                    "Give its settings, or another --output-dir to start a new one."
                )

    # --- how long a training is ---------------------------------------------------------------------------

    def batches_per_epoch(self) -> int:
        """How many batches the training loader has; 1 where there is none, or where it does not say."""
        loader: Any = getattr(self, "train_loader_x", None)
        return max(1, len(loader)) if hasattr(loader, "__len__") else 1

    def total_steps(self) -> int:
        """Training steps of the whole run: MAX_ITER, ITER_PER_SHOT or MAX_EPOCH of OPTIM.

        Raises:
            ValueError: they are asked for per shot, and all images are taken.
        """
        optim = self.cfg.OPTIM
        if per_shot := key_or_default(optim, "OPTIM.ITER_PER_SHOT"):
            shots = shots_of(self.cfg, getattr(getattr(self, "dm", None), "dataset", None))
            if shots < 1:
                raise UserError(
                    f"OPTIM.ITER_PER_SHOT is {per_shot}, but DATASET.NUM_SHOTS is {shots}: there is no "
                    "number of shots. Give OPTIM.MAX_ITER, and OPTIM.ITER_PER_SHOT 0."
                )
            return per_shot * shots
        return key_or_default(optim, "OPTIM.MAX_ITER") or optim.MAX_EPOCH * self.batches_per_epoch()

    def phase_steps(self) -> list[int]:
        """Training steps of each phase.

        A phase begins with an epoch of its own, whose start calls `begin_phase`, and its last epoch is cut. A
        trainer with several phases overrides both.
        """
        return [self.total_steps()]

    def begin_phase(self, phase: int) -> None:
        """Called when a phase begins, counted from 0; not where a run is resumed within it."""

    def phase_epochs(self) -> list[int]:
        """Epochs of each phase."""
        return [math.ceil(steps / self.batches_per_epoch()) for steps in self.phase_steps()]

    def schedule_phases(self) -> list[int]:
        """Length of each phase in steps of the learning-rate schedule, for `build_lr_scheduler`."""
        return self.phase_steps() if self.schedules_by_iteration() else self.phase_epochs()

    def schedules_by_iteration(self) -> bool:
        return key_or_default(self.cfg.OPTIM, "OPTIM.SCHEDULE_BY") == "iteration"

    def phase_of(self, epoch: int) -> tuple[int, int, int]:
        """The phase of an epoch, the number of the epoch in it, and its batches; all counted from 0."""
        batches = self.batches_per_epoch()
        for phase, (steps, epochs) in enumerate(zip(self.phase_steps(), self.phase_epochs(), strict=True)):
            if epoch < epochs:
                return phase, epoch, min(batches, steps - epoch * batches)
            epoch -= epochs
        return phase, epoch + epochs, batches  # of more epochs than the configuration says

    def batches_after(self, epoch: int) -> int:
        """Training batches of all later epochs."""
        return (self.max_epoch - epoch - 1) * self.num_batches

    def has_something_to_train(self) -> bool:
        """Whether a model is registered, or the trainer overrides how it trains."""
        # Zero-shot methods are often subclasses of a method that trains, and inherit its forward_backward.
        own_step = self._overrides("before_train") and self._overrides("forward_backward")
        return bool(self._models) or own_step or self._overrides("run_epoch")

    def _overrides(self, *hooks: str) -> bool:
        """Whether any of the hooks is not the engine's."""
        return any(not getattr(type(self), hook).__module__.startswith("dassl.engine.") for hook in hooks)

    def _how_to_resume(self) -> str:
        saved = saved_epochs([osp.join(self.output_dir, name) for name in self._models])
        stopped = f"Interrupted in epoch {self.epoch + 1} of {self.max_epoch}."
        if not saved:
            return (
                f"{stopped} Nothing is saved yet (TRAIN.CHECKPOINT_FREQ is {self.cfg.TRAIN.CHECKPOINT_FREQ})."
            )
        how = f"the same command with RESUME {self.output_dir}" if self.cfg.RESUME else "the same command"
        return f"{stopped} Epoch {saved[-1]} is saved in {self.output_dir}; {how} goes on from there."

    def before_train(self) -> None:
        if not self._overrides("test"):
            _check_choice(self.cfg, "TEST.SPLIT")
        if not self._overrides("after_epoch", "after_train"):
            _check_choice(self.cfg, "TEST.FINAL_MODEL")
        if not self._overrides("after_epoch"):
            self._check_val()
        directory = self.cfg.RESUME or self.cfg.OUTPUT_DIR
        self.start_epoch = self.resume_model_if_exist(directory)
        if directory == self.output_dir:
            self._remove_surplus()  # of a run that was killed in between
        if self.cfg.RESUME and not self.start_epoch:
            raise MissingFileError(
                f"RESUME is {directory}, but there is no checkpoint; leave it out to start anew."
            )
        self.epoch = max(self.start_epoch - 1, 0)  # where no epoch is left to train

        self.init_writer(osp.join(self.output_dir, "tensorboard"))
        self.time_start = time.time()
        # Not only in train(): some trainers override it.
        self._restore_random_numbers()

    def after_train(self) -> None:
        print("Finish training")
        if not self.cfg.TEST.NO_TEST:
            if self._keeps_best():
                print("Deploy the model with the best val performance")
                best_here = has_best([osp.join(self.output_dir, name) for name in self._models])
                # Where no epoch since was better, the best is still that of the resumed run.
                self.load_model(self.output_dir if best_here else self.cfg.RESUME or self.output_dir)
            else:
                print("Deploy the last-epoch model")
            self.test()
        print(f"Elapsed: {datetime.timedelta(seconds=round(time.time() - self.time_start))}")
        self.close_writer()  # for trainers that override train(), which closes it after an error too

    def after_epoch(self) -> None:
        finished = self.epoch + 1
        if self._keeps_best():
            self._check_val()
            result = self.test(split="val")
            if not math.isfinite(result):
                raise NotFiniteError(
                    f"The result on the val images of epoch {finished} is {result}: TEST.FINAL_MODEL "
                    "best_val cannot choose by it."
                )
            if self.is_better(result):
                self.best_result = result
                self.save_model(
                    self.epoch, self.output_dir, val_result=result, model_name="model-best.pth.tar"
                )
        frequency = self.cfg.TRAIN.CHECKPOINT_FREQ
        if finished == self.max_epoch or (frequency > 0 and finished % frequency == 0):
            self.save_model(self.epoch, self.output_dir)
            self._remove_surplus()

    def is_better(self, result: float) -> bool:
        """Whether a result on the val images is that of the best epoch so far; of equals, of the first."""
        return result > self.best_result

    def _remove_surplus(self) -> None:
        newest = key_or_default(self.cfg.TRAIN, "TRAIN.CHECKPOINTS_KEPT")
        if newest and is_rank_zero():
            folders = [osp.join(self.output_dir, name) for name in self.get_model_names()]
            remove_all_but_newest(folders, newest)

    def _keeps_best(self) -> bool:
        return self.cfg.TEST.FINAL_MODEL == "best_val" and not self.cfg.TEST.NO_TEST

    def _check_val(self) -> None:
        # Upstream would choose, and test, by the test images instead.
        if self._keeps_best() and self.val_loader is None:
            raise UserError(
                "TEST.FINAL_MODEL is best_val, but the dataset has no val images; choose last_step."
            )
        tests = not self.cfg.TEST.NO_TEST and not self._overrides("test")
        if tests and self.cfg.TEST.SPLIT == "val" and self.val_loader is None:
            raise UserError("TEST.SPLIT is val, but the dataset has no val images; choose test.")

    @torch.no_grad()
    def test(self, split: str | None = None, **kwargs: Any) -> float:
        """Evaluates on a split. With `TEST.SAVE_PREDICTIONS`, writes the predicted class of each image; with
        `TEST.CALIBRATE`, a temperature is fitted on the val images before the test images are tested.

        Args:
            split: `val` or `test`; by default `cfg.TEST.SPLIT`.
            kwargs: for trainers that override this; not used here.

        Returns:
            The evaluator's first metric: the accuracy in percent.

        Raises:
            ValueError: there are no such images.
            FloatingPointError: scores are not finite; nothing is evaluated then.
        """
        self.set_model_mode("eval")
        self.evaluator.reset()
        if not split:
            _check_choice(self.cfg, "TEST.SPLIT")
            split = self.cfg.TEST.SPLIT
        data_loader = self.val_loader if split == "val" else self.test_loader
        split = "val" if split == "val" else "test"
        if data_loader is None:
            raise UserError(
                f"DATASET.NAME {self.cfg.DATASET.NAME} has no {split} images (TEST.SPLIT "
                f"{self.cfg.TEST.SPLIT}): test on the other part, or give it such images."
            )
        print(f"Evaluate on the *{split}* set")
        saves = key_or_default(self.cfg.TEST, "TEST.SAVE_PREDICTIONS")
        predictions = Predictions(self.cfg, self.lab2cname) if saves else None
        records = key_or_default(self.cfg.TEST, "TEST.RECORD_PREDICTIONS")
        first_classes = FirstClasses(self.cfg) if records else None
        finite = FiniteScores(f"the {split} images", self.hint_of_overflow())
        fitted = self._fit_temperature(data_loader) if key_or_default(self.cfg.TEST, "TEST.CALIBRATE") else {}
        confidences = Confidences(self.cfg, fitted.get("temperature"))

        for batch, output, label in self._scored(data_loader):
            finite.add(output)
            self.evaluator.process(output, label)
            confidences.add(output, label)
            if first_classes is not None:
                first_classes.add(batch, output, label)
            if predictions is not None:
                predictions.add(batch, output, label)
        finite.check()
        results = self.evaluator.evaluate()
        self.test_results = {str(name): float(value) for name, value in results.items()}
        found = confidences.result()
        self.tested_predictions = None if first_classes is None else first_classes.result()
        self.calibration = None if found is None else {**found, **fitted}
        if found is not None and "temperature" in fitted:
            print(
                f"Calibration: temperature {fitted['temperature']:.4f} of {fitted['images']:,} val images; "
                f"expected calibration error {found['ece']:.2f}% before, {found['ece_after']:.2f}% after"
            )
        elif "note" in fitted:
            print(f"Calibration: {fitted['note']}")
        if not math.isfinite(next(iter(results.values()))):
            name, value = next(iter(results.items()))
            raise NotFiniteError(f"The {name} of the {split} images is {value}: it is no result.")
        check_log()
        if predictions is not None:
            predictions.write(osp.join(self.output_dir, f"predictions_{split}.csv"))
        for name, value in results.items():
            self.write_scalar(f"{split}/{name}", value, self.epoch)
        return next(iter(results.values()))

    def _scored(self, data_loader: Any) -> Iterator[tuple[Any, Any, Any]]:
        """Batches, the model's output of each, and their labels."""
        # A progress bar on a terminal only: in a log file each step of it would be a line.
        for batch in tqdm(data_loader, delay=2, leave=False, disable=not is_rank_zero() or None):
            input, label = self.parse_batch_test(batch)
            output = self.model_inference(input)
            yield batch, output[0] if isinstance(output, tuple) else output, label

    def _fit_temperature(self, tested: Any) -> dict[str, Any]:
        """What the val images tell of the probabilities, see `HeldOut.fit`; {} where they are what is tested.

        Before the test, so that each test image is scored once, and no logits of it are kept.
        """
        if tested is self.val_loader and tested is not self.test_loader:
            return {}
        dataset = getattr(getattr(self, "dm", None), "dataset", None)
        if self.val_loader is None:
            return {"note": "not fitted: there are no val images"}
        paths = (
            {getattr(item, "impath", item) for item in getattr(dataset, part, None) or ()}
            for part in ("val", "test")
        )
        if both := len(set.intersection(*paths)):
            return {"note": f"not fitted: {both:,} val images are test images, too"}
        held_out, state = HeldOut(self.cfg), rng_state()
        for _, output, label in self._scored(self.val_loader):
            held_out.add(output, label)
        restore_rng_state(state)
        fitted = held_out.fit()
        if "temperature" in fitted and self._keeps_best():
            chosen = "the val images have also chosen the epoch (TEST.FINAL_MODEL best_val)"
            fitted["note"] = "; ".join([chosen, *filter(None, [fitted.get("note")])])
        return fitted

    def hint_of_overflow(self) -> str:
        """What may have made scores that are not finite."""
        return " Look at the weights, at the checkpoint, and at INPUT.PIXEL_MEAN and INPUT.PIXEL_STD."

    def model_inference(self, input: Any) -> Any:
        """Logits `(batch class)` of a batch; or a tuple that begins with them."""
        return self.model(input)

    def parse_batch_test(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label"))

    def get_current_lr(self, names: Any = None) -> float:
        """The learning rate of the first of `names` (default: all models) that has an optimizer; else NaN."""
        optims = [self._optims[name] for name in self.get_model_names(names)]
        return next((optim.param_groups[0]["lr"] for optim in optims if optim is not None), float("nan"))

    def _count(self, loader: Any, split: str) -> int:
        """How many batches a loader has. Raises a ValueError where there is no loader."""
        if loader is None:
            raise UserError(f"{type(self).__name__} needs {split} images; {self.cfg.DATASET.NAME} has none.")
        return len(loader)

    def _run_batches(self, batches: Iterable[tuple[Any, ...]]) -> None:
        """Takes a training step with each of `num_batches` tuples of batches, and logs its metrics."""
        self.set_model_mode("train")
        losses, batch_time, data_time = MetricMeter(), AverageMeter(), AverageMeter()
        frequency = self.cfg.TRAIN.PRINT_FREQ
        self.check_losses()
        self._deferred = DeferredMetrics()
        last_flush = end = time.time()
        for index, batch in enumerate(batches):
            self.batch_idx = index
            data_time.update(time.time() - end)
            metrics = self.forward_backward(*batch)
            if get_world_size() > 1:
                metrics = all_reduce_mean(metrics)
            step = self.epoch * self.num_batches + index
            ready = self._deferred.add((step, self.get_current_lr()), metrics)
            prints = (index + 1) % frequency == 0 or self.num_batches < frequency
            if ready or prints:
                count = len(self._deferred)
                self._log_metrics(losses)
                batch_time.update((time.time() - last_flush) / count, count)
            if prints:
                batches_left = self.num_batches - index - 1 + self.batches_after(self.epoch)
                eta = datetime.timedelta(seconds=int(batch_time.avg * batches_left))
                print(
                    f"epoch [{self.epoch + 1}/{self.max_epoch}] batch [{index + 1}/{self.num_batches}] "
                    f"time {batch_time.val:.3f} ({batch_time.avg:.3f}) "
                    f"data {data_time.val:.3f} ({data_time.avg:.3f}) "
                    f"{losses} lr {self.get_current_lr():.4e} eta {eta}"
                )
            end = time.time()
            if not self._deferred:
                last_flush = end
        self._log_metrics(losses)

    def _log_metrics(self, losses: MetricMeter) -> None:
        """Adds the steps' metrics to the averages, and logs them as curves."""
        for (step, lr), metrics in self._deferred.flush():
            losses.update(metrics)
            for name, meter in losses.meters.items():
                self.write_scalar(f"train/{name}", meter.avg, step)
            self.write_scalar("train/lr", lr, step)


class TrainerX(SimpleTrainer):
    """Trains on labelled images. A subclass implements `forward_backward(batch)`."""

    def run_epoch(self) -> None:
        batches = self._count(self.train_loader_x, "train_x")
        phase, epoch, most = self.phase_of(self.epoch)
        self.num_batches = min(batches, most)
        if epoch == 0:
            self.begin_phase(phase)
        loader = self.train_loader_x
        cut = loader if self.num_batches == batches else islice(loader, self.num_batches)
        self._run_batches((batch,) for batch in cut)

    def batches_after(self, epoch: int) -> int:
        phase, own, _ = self.phase_of(epoch)
        steps, batches = self.phase_steps(), self.batches_per_epoch()
        more = self.max_epoch - sum(self.phase_epochs())  # than the configuration says
        return sum(steps[phase:]) - min(steps[phase], (own + 1) * batches) + more * batches

    def parse_batch_train(self, batch: dict[str, Any]) -> Any:
        """The images, labels and domains of a batch."""
        return tuple(batch[key].to(self.device, non_blocking=True) for key in ("img", "label", "domain"))


class TrainerXU(SimpleTrainer):
    """Trains on labelled and unlabelled images. A subclass implements `forward_backward(batch_x, batch_u)`.

    `cfg.TRAIN.COUNT_ITER` says whose batches make an epoch; a shorter loader starts again.
    """

    def run_epoch(self) -> None:
        len_x, len_u = (
            self._count(self.train_loader_x, "train_x"),
            self._count(self.train_loader_u, "train_u"),
        )
        _check_choice(self.cfg, "TRAIN.COUNT_ITER")
        counts = {"train_x": len_x, "train_u": len_u, "smaller_one": min(len_x, len_u)}
        self.num_batches = counts[self.cfg.TRAIN.COUNT_ITER]
        batches_x, batches_u = _endless(self.train_loader_x), _endless(self.train_loader_u)
        self._run_batches((next(batches_x), next(batches_u)) for _ in range(self.num_batches))

    def parse_batch_train(self, batch_x: dict[str, Any], batch_u: dict[str, Any]) -> Any:
        """The labelled images, their labels, and the unlabelled images."""
        tensors = (batch_x["img"], batch_x["label"], batch_u["img"])
        return tuple(tensor.to(self.device, non_blocking=True) for tensor in tensors)


def _endless(loader: Iterable[Any]) -> Iterator[Any]:
    while True:
        yield from loader
