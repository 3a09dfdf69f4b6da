"""TaskRes: Task Residual for Tuning Vision-Language Models. Yu et al., CVPR 2023, arXiv 2211.10277.

A residual of each class's text features is learned; both encoders stay as they are. This is the authors'
"regular base": text features of CLIP itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import FrozenText, PromptLearner

from .clip_trainer import CLIPPromptTrainer
from .templates import COUNTS, templates_of


class Residuals(FrozenText):
    """t + alpha · x of each class: t its text features, of any norm; x is learned, `(class feature)`."""

    class_specific = True

    def __init__(
        self, clip_model: CLIP, classnames: Sequence[str], templates: Sequence[str], alpha: float, keep: bool
    ) -> None:
        super().__init__(clip_model, classnames, templates, normalise_each=False, keep_underscores=keep)
        self.alpha = alpha
        self.text_feature_residuals = nn.Parameter(
            torch.zeros(len(classnames), clip_model.text_projection.shape[1])
        )

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        # t is not of length 1: adding x to unit vectors is another method.
        return super().text_features(clip_model) + self.alpha * self.text_feature_residuals


@TRAINER_REGISTRY.register()
class TaskRes(CLIPPromptTrainer):
    """Task residuals."""

    settings: ClassVar = {
        "ALPHA": 0.5,  # factor of what is learned; the authors have 1.0 for Flowers102
        # Sentences of a class of ImageNet: 8, seven that OpenAI's search selected and "a photo of a {}."; 7,
        # without that; or 1, that alone.
        "IMAGENET_TEMPLATES": 8,
        "KEEP_UNDERSCORES": True,  # `_` in a class name stays, as published; False: it is a space
        "PREC": "fp32",
    }
    prefixed_keys = False
    class_specific = True
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 256,
        "OPTIM.NAME": "adam",
        "OPTIM.LR": 2e-4,
        "OPTIM.MAX_EPOCH": 200,
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "IMAGENET_TEMPLATES", one_of=COUNTS)

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, templates = self.own_settings, templates_of(self.cfg, self.dm.dataset)
        return Residuals(clip_model, classnames, templates, own.ALPHA, own.KEEP_UNDERSCORES)
