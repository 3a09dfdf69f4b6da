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
from dataclasses import dataclass
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import Tensor

import clip
from clip.model import CLIP
from dassl.engine.trainer import AverageMeter, MetricMeter

from .clip_trainer import CLIPPromptTrainer
from .prompt_learner import PromptLearner, at_least_float32
from .prompted_clip import PromptedCLIP


@dataclass(frozen=True)
class Features:
    """What the encoders made of one seed's batch, of length 1.

    Attributes:
        images: `(batch 3 height width)`.
        of_images: `(batch feature)`.
        of_text: `(class feature)`, or `(batch class feature)` if made of the images'.
    """

    images: Tensor
    of_images: Tensor
    of_text: Tensor


class OneOfSeveral(PromptedCLIP):
    """The model of one seed; what `losses` ask of it within `given` is computed already."""

    features: Features | None = None

    @contextmanager
    def given(self, features: Features) -> Iterator[None]:
        """Within, these are the features of this batch and of the classes."""
        self.features = features
        try:
            yield
        finally:
            self.features = None

    def encode_image(self, image: Tensor) -> Tensor:
        if self.features is not None and image is self.features.images:
            return self.features.of_images
        return super().encode_image(image)

    def encode_text(self, image_features: Tensor | None = None) -> Tensor:
        given = self.features
        if given is not None and (image_features is None or image_features is given.of_images):
            return given.of_text
        return super().encode_text(image_features)

    def forward(self, image: Tensor) -> Tensor:
        if self.features is not None and image is self.features.images:
            return self.logits(self.features.of_images, self.features.of_text)
        return super().forward(image)


class JointEncoders:
    """The frozen CLIP for several learners at once; they learn the same method on the same classes."""

    def __init__(self, clip_model: CLIP) -> None:
        self.clip_model = clip_model
        self._fixed_text: Tensor | None = None

    def features(self, learners: Sequence[PromptLearner], images: Sequence[Tensor]) -> list[Features]:
        """Of each learner's images, `(batch 3 height width)`, and of its classes."""
        of_images = self._image_features(learners, images)
        of_text = self._text_features(learners, of_images)
        return [Features(*each) for each in zip(images, of_images, of_text, strict=True)]

    def _image_features(
        self, learners: Sequence[PromptLearner], images: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        sizes = [len(each) for each in images]
        prompts = joined([learner.image_prompts() for learner in learners], sizes)
        features = self.clip_model.encode_image(torch.cat(list(images)), prompts)
        return unit(features).split(sizes)

    def _text_features(
        self, learners: Sequence[PromptLearner], of_images: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        first = learners[0]
        if first.class_specific or type(first).text_features is not PromptLearner.text_features:
            # No groups there: contexts of each class have the place of groups.
            each = zip(learners, of_images, strict=True)
            return [unit(learner.text_features(self.clip_model, given)) for learner, given in each]
        if first.conditional:
            sizes = [len(each) for each in of_images]
            own = [learner.text_prompts(given) for learner, given in zip(learners, of_images, strict=True)]
            return unit(first.sentences.encode(self.clip_model, joined(own, sizes))).split(sizes)
        prompts = joined([learner.text_prompts() for learner in learners], [1] * len(learners))
        if prompts is None:  # nothing of the text is learned: it stays the same
            if self._fixed_text is None:
                self._fixed_text = unit(first.sentences.encode(self.clip_model))
            return [self._fixed_text] * len(learners)
        return unit(first.sentences.encode(self.clip_model, prompts)).unbind()


def unit(features: Tensor) -> Tensor:
    """Features, `(... feature)`, of length 1, in at least float32."""
    return F.normalize(at_least_float32(features), dim=-1)


def joined(prompts: Sequence[clip.Prompts | None], sizes: Sequence[int]) -> clip.Prompts | None:
    """The prompts of several learners as those of one batch, in which each sample has its learner's.

    Args:
        prompts: each learner's, all of the same shapes; tokens `(n width)`, or `(size n width)`.
        sizes: how many samples each learner has in the batch.
    """
    given = [each for each in prompts if each is not None]
    if not given:
        return None

    def of_samples(tokens: Sequence[Tensor]) -> Tensor:
        parts = zip(tokens, sizes, strict=True)
        return torch.cat([each.expand(size, -1, -1) for each, size in parts])

    tokens = [each.tokens for each in given if each.tokens is not None]
    deep = zip(*(each.deep for each in given), strict=True)
    return clip.Prompts(of_samples(tokens) if tokens else None, [of_samples(level) for level in deep])


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
            self.encoders = JointEncoders(trainer.model.clip_model)
            self.teacher = JointTeacher(trainer)
            self.classnames = list(trainer.dm.dataset.classnames)
        elif list(trainer.dm.dataset.classnames) != self.classnames:
            raise ValueError(
                f"DATASET.NAME {trainer.cfg.DATASET.NAME} has other classes for seed {seed.number} than "
                f"for seed {self.seeds[0].number}: train each seed by itself, with --seed."
            )
        trainer.model = OneOfSeveral(self.encoders.clip_model, trainer.model.prompt_learner)
        trainer.frozen_image_features = self.teacher.image_features
        trainer.frozen_text_features = self.teacher.text_features
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

    def step(self, trainers: Sequence[CLIPPromptTrainer], batches: Sequence[Any]) -> list[dict[str, Tensor]]:
        """One training step of each trainer on its batch.

        Returns:
            What each is to log, still on the device.
        """
        images, labels = zip(
            *(trainer.parse_batch_train(each) for trainer, each in zip(trainers, batches, strict=True)),
            strict=True,
        )
        totals, summaries = [], []
        with trainers[0].precision.autocast(), self.teacher.of_batches(images):
            learners = [trainer.model.prompt_learner for trainer in trainers]
            features = self.encoders.features(learners, images)
            for trainer, own, own_labels in zip(trainers, features, labels, strict=True):
                assert isinstance(trainer.model, OneOfSeveral)
                with trainer.model.given(own):
                    losses = trainer.losses(own.images, own_labels)
                totals.append(torch.stack(list(losses.values())).sum())
                terms = losses if len(losses) > 1 else {}
                logged = {"loss": totals[-1], **terms}
                summaries.append({name: term.detach() for name, term in logged.items()})
        for trainer in trainers:
            trainer.model_zero_grad()
        scaled = [trainer.scaler.scale(loss) for trainer, loss in zip(trainers, totals, strict=True)]
        torch.stack(scaled).sum().backward()
        for trainer in trainers:
            for name in trainer.get_model_names():
                trainer.scaler.step(trainer._optims[name])
            trainer.scaler.update()
            if trainer.batch_idx + 1 == trainer.num_batches:
                trainer.update_lr()
        return summaries


class JointTeacher:
    """The frozen CLIP's own features, for methods that stay near it; computed once for all seeds.

    Args:
        trainer: any seed's; the classes are the same for all.
    """

    def __init__(self, trainer: CLIPPromptTrainer) -> None:
        self._encode_images = trainer.frozen_image_features
        self._encode_text = trainer.frozen_text_features
        self._of_text: dict[Any, Tensor] = {}
        self._images: Sequence[Tensor] = ()  # of the step, by seed
        self._of_images: Sequence[Tensor] = ()  # once they were asked for

    @contextmanager
    def of_batches(self, images: Sequence[Tensor]) -> Iterator[None]:
        """Within, these images, each `(batch 3 height width)`, are computed when one of them is asked for."""
        self._images = images
        try:
            yield
        finally:
            self._images = self._of_images = ()

    def image_features(self, images: Tensor) -> Tensor:
        """As `CLIPPromptTrainer.frozen_image_features`."""
        place = next((k for k, each in enumerate(self._images) if each is images), None)
        if place is None:
            return self._encode_images(images)
        if not self._of_images:
            sizes = [len(each) for each in self._images]
            self._of_images = self._encode_images(torch.cat(list(self._images))).split(sizes)
        return self._of_images[place]

    def text_features(self, templates: Sequence[str], normalise_each: bool = True) -> Tensor:
        """As `CLIPPromptTrainer.frozen_text_features`."""
        key = (tuple(templates), normalise_each)
        if key not in self._of_text:
            self._of_text[key] = self._encode_text(templates, normalise_each)
        return self._of_text[key]


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
        fetched = torch.stack([torch.stack(list(each.values())) for _, _, each in self.waiting]).tolist()
        for (index, rate, names), values in zip(self.waiting, fetched, strict=True):
            trainer.batch_idx = index
            trainer.detect_anomaly(torch.tensor(values[0]))
            self.losses.update(dict(zip(names, values, strict=True)))
            step = trainer.epoch * trainer.num_batches + index
            for name, meter in self.losses.meters.items():
                trainer.write_scalar(f"train/{name}", meter.avg, step)
            trainer.write_scalar("train/lr", rate, step)
        self.waiting.clear()
