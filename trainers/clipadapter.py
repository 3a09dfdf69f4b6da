"""CLIP-Adapter. Gao et al., IJCV 2024, arXiv 2110.04544.

A small MLP is learned on top of the image encoder, and its output is mixed into the image features. It does
not depend on the classes. As in the authors' code, there is none on the text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import FrozenText, PromptLearner

from .clip_trainer import CLIPPromptTrainer
from .templates import COUNTS, templates_of


class FeatureAdapter(FrozenText):
    """ratio · MLP(f) + (1 − ratio) · f of image features f, of any norm; the MLP has no biases."""

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        templates: Sequence[str],
        ratio: float = 0.2,
        reduction: int = 4,
        keep_underscores: bool = False,
    ) -> None:
        super().__init__(clip_model, classnames, templates, False, keep_underscores)
        width = clip_model.text_projection.shape[1]
        self.ratio = ratio
        self.fc = nn.Sequential(
            nn.Linear(width, width // reduction, bias=False),
            nn.ReLU(),
            nn.Linear(width // reduction, width, bias=False),
            nn.ReLU(),  # the output, too: the adapter can only add
        )

    def image_head(self, features: Tensor) -> Tensor:
        return self.ratio * self.fc(features) + (1 - self.ratio) * features


@TRAINER_REGISTRY.register()
class CLIPAdapter(CLIPPromptTrainer):
    """CLIP-Adapter; the recipe is that of the copy in the code of CLAP, as the authors give none."""

    settings: ClassVar = {
        "RATIO": 0.2,  # share of the adapter in the image features, 0 to 1
        "REDUCTION": 4,  # width of the features over that of the adapter, 1 or more
        # Sentences of a class of ImageNet: 8, seven that OpenAI's search selected and "a photo of a {}."; 7,
        # without that; or 1, that alone, as the authors have.
        "IMAGENET_TEMPLATES": 1,
        "KEEP_UNDERSCORES": False,  # `_` in a class name stays, as in the copy in CLAP; False: it is a space
        "PREC": "fp32",
    }
    model_name = "clip_adapter"
    prefixed_keys = False
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 256,
        "DATALOADER.VIEWS": 20,
        "OPTIM.LR": 0.1,
        "OPTIM.MAX_EPOCH": 300,
        "OPTIM.WEIGHT_DECAY": 0.0,
        "TRAINER.CLIPADAPTER.IMAGENET_TEMPLATES": 8,
        "TRAINER.CLIPADAPTER.KEEP_UNDERSCORES": True,
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "IMAGENET_TEMPLATES", one_of=COUNTS)
        self.check_setting(cfg, "REDUCTION", at_least=1, why="the authors have 4")
        ratio = cfg.TRAINER[self.settings_key()].RATIO
        if not 0 <= ratio <= 1:
            raise UserError(f"TRAINER.{self.settings_key()}.RATIO is {ratio}; allowed is 0 to 1.")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, width = self.own_settings, clip_model.text_projection.shape[1]
        if width < own.REDUCTION:
            raise UserError(
                f"TRAINER.{self.settings_key()}.REDUCTION is {own.REDUCTION}; allowed is up to {width}, the "
                "width of this CLIP's features."
            )
        templates = templates_of(self.cfg, self.dm.dataset)
        return FeatureAdapter(
            clip_model, classnames, templates, own.RATIO, own.REDUCTION, own.KEEP_UNDERSCORES
        )
