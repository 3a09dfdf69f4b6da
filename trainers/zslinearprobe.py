"""ZS-LP: a linear probe that starts from zero-shot CLIP. Silva-Rodríguez et al., CVPR 2024, arXiv 2312.12730.

The classes' vectors are learned, from CLIP's text features on; a class's logit is the scaled cosine of its
vector and the image's features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import FrozenText, PromptLearner

from .clip_trainer import CLIPPromptTrainer
from .templates import COUNTS, templates_of


class Prototypes(FrozenText):
    """A vector for each class, `(class feature)`, that starts from the class's text features, of any norm."""

    class_specific = True

    def __init__(
        self, clip_model: CLIP, classnames: Sequence[str], templates: Sequence[str], keep: bool
    ) -> None:
        super().__init__(clip_model, classnames, templates, normalise_each=False, keep_underscores=keep)
        self.to(clip_model.logit_scale.device)
        self.prototypes = nn.Parameter(super().text_features(clip_model).clone())

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        return self.prototypes


@TRAINER_REGISTRY.register()
class ZSLinearProbe(CLIPPromptTrainer):
    """A linear probe on CLIP's image features, from the text features on."""

    settings: ClassVar = {
        # Sentences of a class of ImageNet: 8, seven that OpenAI's search selected and "a photo of a {}."; 7,
        # without that; or 1, that alone.
        "IMAGENET_TEMPLATES": 8,
        "KEEP_UNDERSCORES": True,  # `_` in a class name stays, as published; False: it is a space
        "PREC": "fp32",
    }
    model_name = "adapter"
    prefixed_keys = False
    class_specific = True
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 256,
        "DATALOADER.VIEWS": 20,
        "OPTIM.LR": 0.1,
        "OPTIM.MAX_EPOCH": 300,
        "OPTIM.WEIGHT_DECAY": 0.0,
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "IMAGENET_TEMPLATES", one_of=COUNTS)

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        clip_model.to(self.device)  # where the sentences are encoded
        templates = templates_of(self.cfg, self.dm.dataset)
        return Prototypes(clip_model, classnames, templates, self.own_settings.KEEP_UNDERSCORES)
