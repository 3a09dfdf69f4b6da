"""A training step of several seeds at once, replayed on a GPU as one CUDA graph; for `seeds_together.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .clip_trainer import CLIPPromptTrainer
from .joint_features import JointEncoders, JointTeacher, OneOfSeveral
from .step_graph import Outcome, ReplayedStep, as_backward_leaves_them


class JointStep:
    """Takes a step of several trainers, each on a batch of its own; the frozen encoders run once for all.

    They learn the same method on the same classes; the model of each is a `OneOfSeveral`.
    """

    def __init__(self, encoders: JointEncoders, teacher: JointTeacher) -> None:
        self.encoders = encoders
        self.teacher = teacher
        self.trainers: list[CLIPPromptTrainer] = []  # whose steps together may be replayed
        self.replayed_step: ReplayedStep | None = None

    def begin_epoch(self, trainers: Sequence[CLIPPromptTrainer]) -> None:
        """These train in it. The steps of all of them are replayed, where a GPU may; of fewer, never."""
        if list(trainers) != self.trainers:
            self.trainers = list(trainers)
            why_not = next(filter(None, (trainer.why_not_replayed() for trainer in trainers)), "")
            self.replayed_step = trainers[0].replayed(self.gradient_step, why_not)
        elif self.replayed_step is not None:
            self.replayed_step.begin_epoch()

    def __call__(
        self, trainers: Sequence[CLIPPromptTrainer], batches: Sequence[Any]
    ) -> list[dict[str, Tensor]]:
        """One training step of each trainer on its batch.

        Returns:
            What each is to log, still on the device.
        """
        given = zip(trainers, batches, strict=True)
        images, labels = zip(*(trainer.parse_batch_train(batch) for trainer, batch in given), strict=True)
        if self.replayed_step is None or list(trainers) != self.trainers:
            losses, terms = self.losses(trainers, images, labels)
            for trainer in trainers:
                trainer.model_zero_grad()
            scaled(trainers, losses).backward()
        else:
            losses, terms, gradients = self.replayed_step(*images, *labels)
            for trainer in trainers:
                trainer.model_zero_grad()
            for tensor, gradient in zip(learned_by(trainers), gradients, strict=True):
                tensor.grad = gradient
        for trainer in trainers:
            trainer.optimizers_step(trainer.get_model_names())
            if trainer.batch_idx + 1 == trainer.num_batches:
                trainer.update_lr()
        logged = {"loss": losses, **(terms if len(terms) > 1 else {})}
        of_each_seed = zip(*(figures.detach().unbind() for figures in logged.values()), strict=True)
        return [dict(zip(logged, figures, strict=True)) for figures in of_each_seed]

    def losses(
        self, trainers: Sequence[CLIPPromptTrainer], images: Sequence[Tensor], labels: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of each trainer on its images, and its terms: each `(seed)`."""
        terms = []
        with trainers[0].precision.autocast(), self.teacher.of_batches(images):
            features = self.encoders.features([each.model.prompt_learner for each in trainers], images)
            for trainer, own, own_labels in zip(trainers, features, labels, strict=True):
                assert isinstance(trainer.model, OneOfSeveral)
                with trainer.model.given(own):
                    terms.append(trainer.losses(own.images, own_labels))
            assert all(list(each) == list(terms[0]) for each in terms)
            table = torch.stack([torch.stack(list(each.values())) for each in terms])
            return table.sum(dim=1), dict(zip(terms[0], table.unbind(dim=1), strict=True))

    def gradient_step(self, *batches: Tensor) -> Outcome:
        """As `CLIPPromptTrainer.gradient_step`, of all trainers: images of each, then labels of each."""
        count = len(self.trainers)
        losses, terms = self.losses(self.trainers, batches[:count], batches[count:])
        learned = learned_by(self.trainers)
        gradients = torch.autograd.grad(scaled(self.trainers, losses), learned, allow_unused=True)
        terms = {name: each.detach() for name, each in terms.items()}
        return Outcome(losses.detach(), terms, as_backward_leaves_them(gradients, learned))


def scaled(trainers: Sequence[CLIPPromptTrainer], losses: Tensor) -> Tensor:
    """The sum of the losses, `(seed)`, each scaled as its trainer's loss scaler wants it."""
    each = zip(trainers, losses.unbind(), strict=True)
    return torch.stack([trainer.scaler.scale(loss) for trainer, loss in each]).sum()


def learned_by(trainers: Sequence[CLIPPromptTrainer]) -> list[Tensor]:
    """What all of them learn now."""
    return [tensor for trainer in trainers for tensor in trainer.optimised_tensors()]
