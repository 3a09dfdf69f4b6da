"""CLAP: Class-Adaptive Linear Probing. Silva-Rodríguez et al., CVPR 2024, arXiv 2312.12730.

A linear probe that starts from zero-shot CLIP, whose vectors are held near the text features; the more, the
surer zero-shot CLIP is of the class's training images. No validation images are used.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .step_graph import cuda_graph_safe
from .zslinearprobe import ZSLinearProbe

# Weights of the classes' constraints, made of `l2`'s, `(class)`.
CONSTRAINTS: dict[str, Callable[[Tensor], Tensor]] = {
    "l2": lambda weights: weights,
    "balanced": torch.ones_like,
    "corrected": lambda weights: weights / weights.mean(),
    "constant": lambda weights: weights.mean().expand_as(weights),
}


@TRAINER_REGISTRY.register()
class CLAP(ZSLinearProbe):
    """Cross entropy, and a constraint for each class.

    Attributes:
        weights: λ of each class, `(class)`; 1 before training begins.
    """

    settings: ClassVar = {
        **ZSLinearProbe.settings,
        # The weight of a class's constraint: `l2`, the mean probability that zero-shot CLIP gives the class
        # on its training views; `balanced`, 1; `corrected`, those of `l2`, scaled to a mean of 1; `constant`,
        # the mean of those of `l2`.
        "CONSTRAINT": "l2",
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "CONSTRAINT", one_of=tuple(CONSTRAINTS))

    def build_model(self) -> None:
        super().build_model()
        self.weights = torch.ones(len(self.dm.dataset.classnames), device=self.device)

    def before_train(self) -> None:
        self.weights = self.class_weights()
        super().before_train()

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """λ of each class, `(class)`, by zero-shot CLIP's probabilities of the training views."""
        features, labels = self.view_features.rows()
        learner: Any = self.model.prompt_learner
        text = F.normalize(learner.base_text_features, dim=-1)
        sure = mean_probability(self.model.logits(F.normalize(features, dim=-1), text), labels)
        return CONSTRAINTS[self.own_settings.CONSTRAINT](sure)

    @cuda_graph_safe
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        learner: Any = self.model.prompt_learner
        distances = (learner.prototypes - learner.base_text_features).square().sum(dim=-1)
        return {**super().losses(images, labels), "loss_constraint": (self.weights * distances).mean()}


def mean_probability(logits: Tensor, labels: Tensor) -> Tensor:
    """The mean probability of the right class, `(class)`; 0 for a class without rows.

    Args:
        logits: `(row class)`.
    """
    sure = logits.softmax(dim=-1).gather(1, labels[:, None])[:, 0]
    rows = F.one_hot(labels, logits.shape[1]).to(sure.dtype)
    return sure @ rows / rows.sum(dim=0).clamp(min=1)
