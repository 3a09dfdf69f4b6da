"""Several seeds of one run in one process: `python train.py --seeds 1 2 3 --output-dir runs/seed{seed}`.

The frozen encoders are held once, and run once a step: on the images of all seeds, and on the classes with
the prompts of each. All else is each seed's own, as in a run by itself: images, their order and augmentation,
learner, optimizer, schedule, checkpoints, log and result.
"""

from __future__ import annotations

import datetime
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any, TextIO

import torch
from torch import Tensor

from dassl.engine.trainer import AverageMeter, MetricMeter
from prompted_clip.prompted_clip import PromptedCLIP

from .clip_trainer import CLIPPromptTrainer
from .joint_features import JointEncoders, JointTeacher, OneOfSeveral
from .joint_step import JointStep


class Seed:
    """The run of one seed: its trainer, its random numbers, and what it prints.

    Args:
        number: the seed.
        log: gets what is printed at its work.
    """

    trainer: CLIPPromptTrainer

    def __init__(self, number: int, log: TextIO) -> None:
        self.number = number
        self.log = log
        self._random_state: Any = None

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Within, random numbers go on from where this seed's stood, and prints go to its log."""
        from dassl.utils import restore_rng_state, rng_state  # here, as upstream Dassl has no such names

        if self._random_state is not None:
            restore_rng_state(self._random_state)
        try:
            with redirect_stdout(self.log):
                yield
        finally:
            self._random_state = rng_state()


class SeedsTogether:
    """Trains the trainers of several seeds, each step for all of them at once.

    Where some seeds have checkpoints of later epochs than others, those behind are trained first.

    Raises:
        ValueError: there is nothing to train, or the seeds have other classes.
    """

    def __init__(self, seeds: Iterable[Seed]) -> None:
        self.seeds: list[Seed] = []
        for seed in seeds:  # may be built one by one: of each but the first, CLIP is given up at once
            self._take_in(seed)

    def _take_in(self, seed: Seed) -> None:
        trainer: Any = seed.trainer
        name = type(trainer).__name__
        if not trainer.has_something_to_train():
            raise ValueError(f"{name} learns nothing, so that no seed changes it; give --seed, not --seeds.")
        if type(trainer.model) is not PromptedCLIP:
            raise ValueError(f"{name} has a model of its own: train each seed by itself, with --seed.")
        if not self.seeds:
            self.step = JointStep(JointEncoders(trainer.model.clip_model), JointTeacher(trainer))
            self.classnames = list(trainer.dm.dataset.classnames)
        elif list(trainer.dm.dataset.classnames) != self.classnames:
            raise ValueError(
                f"DATASET.NAME {trainer.cfg.DATASET.NAME} has other classes for seed {seed.number} than "
                f"for seed {self.seeds[0].number}: train each seed by itself, with --seed."
            )
        trainer.model = OneOfSeveral(self.step.encoders.clip_model, trainer.model.prompt_learner)
        trainer.frozen_image_features = self.step.teacher.image_features
        trainer.frozen_text_features = self.step.teacher.text_features
        self.seeds.append(seed)

    def train(self, finished: Callable[[Seed], None]) -> None:
        """Trains and tests.

        Args:
            finished: called at the work of each seed, once it is tested.

        Raises:
            KeyboardInterrupt: Ctrl-C; its message says how to go on.
            FloatingPointError: a loss is not finite; names the seed.
        """
        self.epoch = 0
        try:
            for seed in self.seeds:
                with seed.at_work():
                    seed.trainer.before_train()
                    seed.trainer._resumed_rng = None  # before_train has restored it
            starts = {seed.trainer.start_epoch for seed in self.seeds}
            for epoch in range(min(starts), self.seeds[0].trainer.max_epoch):
                self.epoch = epoch
                self._run_epoch([seed for seed in self.seeds if seed.trainer.start_epoch <= epoch])
            for seed in self.seeds:
                with seed.at_work():
                    seed.trainer.after_train()
                    finished(seed)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(self._how_to_go_on()) from None
        finally:
            for seed in self.seeds:
                seed.trainer.close_writer()

    def _how_to_go_on(self) -> str:
        from dassl.engine.checkpoints import saved_epochs  # here, as upstream Dassl has no such module

        trainers = [seed.trainer for seed in self.seeds]
        saved = [
            saved_epochs([os.path.join(trainer.output_dir, name) for name in trainer.get_model_names()])
            for trainer in trainers
        ]
        stands = ", ".join(
            f"of seed {seed.number} {f'epoch {epochs[-1]}' if epochs else 'none'}"
            for seed, epochs in zip(self.seeds, saved, strict=True)
        )
        return (
            f"Interrupted in epoch {self.epoch + 1} of {trainers[0].max_epoch}. "
            f"Saved is {stands}; the same command goes on from there."
        )

    def _run_epoch(self, seeds: Sequence[Seed]) -> None:
        logs = {}
        for seed in seeds:
            trainer = seed.trainer
            with seed.at_work():
                trainer.epoch = self.epoch
                trainer.before_epoch()
                trainer.num_batches = trainer._count(trainer.train_loader_x, "train_x")
                logs[seed] = _EpochLog(trainer, iter(trainer.train_loader_x))
                trainer.set_model_mode("train")
        self.step.begin_epoch([seed.trainer for seed in seeds])
        at_it = list(seeds)
        index = 0
        while batches := self._next_batches(at_it, logs):
            at_it = list(batches)
            for seed in at_it:
                seed.trainer.batch_idx = index
            summaries = self.step([seed.trainer for seed in at_it], list(batches.values()))
            for seed, summary in zip(at_it, summaries, strict=True):
                with self._named(seed), redirect_stdout(seed.log):
                    logs[seed].update(summary)
            index += 1
        for seed in seeds:
            with self._named(seed), seed.at_work():
                logs[seed].show()
                seed.trainer.after_epoch()

    @staticmethod
    def _next_batches(seeds: Sequence[Seed], logs: Mapping[Seed, _EpochLog]) -> dict[Seed, Any]:
        """The next batch of each seed that has one left."""
        batches = {}
        for seed in seeds:
            with seed.at_work():
                batch = logs[seed].next_batch()
            if batch is not None:
                batches[seed] = batch
        return batches

    @contextmanager
    def _named(self, seed: Seed) -> Iterator[None]:
        """Says of which seed a loss is not finite, and how the others go on."""
        try:
            yield
        except FloatingPointError as error:
            others = " ".join(str(each.number) for each in self.seeds if each is not seed)
            way_out = f" The others go on from their checkpoints with --seeds {others}." if others else ""
            raise FloatingPointError(f"Seed {seed.number}: {error}{way_out}") from None


class _EpochLog:
    """What an epoch of one seed prints and writes for TensorBoard, as the engine does.

    Losses stay on the device until they are shown, so that no step waits for them.

    Args:
        batches: of the epoch.
    """

    def __init__(self, trainer: CLIPPromptTrainer, batches: Iterator[Any]) -> None:
        self.trainer = trainer
        self.batches = batches
        self.losses, self.time, self.data_time = MetricMeter(), AverageMeter(), AverageMeter()
        self.waiting: list[tuple[int, float, dict[str, Tensor]]] = []  # batch, learning rate, losses
        self.end = time.time()

    def next_batch(self) -> Any:
        """None where the epoch has no more."""
        start = time.time()
        batch = next(self.batches, None)
        self.data_time.update(time.time() - start)
        return batch

    def update(self, summary: dict[str, Tensor]) -> None:
        """Takes in the losses of a step.

        Raises:
            FloatingPointError: one that is shown now is not finite.
        """
        trainer = self.trainer
        self.time.update(time.time() - self.end)
        self.end = time.time()
        self.waiting.append((trainer.batch_idx, trainer.get_current_lr(), summary))
        number, frequency = trainer.batch_idx + 1, trainer.cfg.TRAIN.PRINT_FREQ
        if number % frequency and trainer.num_batches >= frequency:
            return
        self.show()
        epochs_left = trainer.max_epoch - trainer.epoch - 1
        batches_left = trainer.num_batches - number + epochs_left * trainer.num_batches
        eta = datetime.timedelta(seconds=int(self.time.avg * batches_left))
        print(
            f"epoch [{trainer.epoch + 1}/{trainer.max_epoch}] batch [{number}/{trainer.num_batches}] "
            f"time {self.time.val:.3f} ({self.time.avg:.3f}) "
            f"data {self.data_time.val:.3f} ({self.data_time.avg:.3f}) "
            f"{self.losses} lr {trainer.get_current_lr():.4e} eta {eta}"
        )

    def show(self) -> None:
        """Fetches what waits on the device; writes TensorBoard's curves.

        Raises:
            FloatingPointError: a loss is not finite.
        """
        if not self.waiting:
            return
        trainer = self.trainer
        figures = [figure for *_, losses in self.waiting for figure in losses.values()]
        fetched = iter(torch.stack(figures).tolist())
        for index, rate, names in self.waiting:
            losses = {name: next(fetched) for name in names}
            trainer.batch_idx = index
            trainer.detect_anomaly(torch.tensor(losses["loss"]))
            self.losses.update(losses)
            step = trainer.epoch * trainer.num_batches + index
            for name, meter in self.losses.meters.items():
                trainer.write_scalar(f"train/{name}", meter.avg, step)
            trainer.write_scalar("train/lr", rate, step)
        self.waiting.clear()
