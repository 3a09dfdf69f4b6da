"""VPT: Visual Prompt Tuning of CLIP's image encoder. Jia et al., ECCV 2022, arXiv 2203.12119.

Tokens are learned for the image encoder, in its input (shallow) and before its blocks (deep); the text is a
fixed sentence. It is the "deep vision prompting" of the MaPLe paper (section 4.2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import IndependentPromptLearner, PromptLearner

from .clip_trainer import CLIPPromptTrainer
from .ivlp import print_prompts


@TRAINER_REGISTRY.register()
class VPT(CLIPPromptTrainer):
    """Visual prompt tuning; `PROMPT_DEPTH_VISION: 1` is the shallow kind."""

    settings: ClassVar = {
        "N_CTX_VISION": 2,  # learned tokens per depth in the image encoder, 1 or more
        "CTX_INIT": "a photo of a",  # stands before the class name, and is not learned
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 1,  # blocks of the image encoder that get learned tokens, 1 or more
    }
    recipe: ClassVar = {
        "OPTIM.LR": 0.0025,
        "OPTIM.MAX_EPOCH": 5,
        "TRAINER.VPT.N_CTX_VISION": 8,
        "TRAINER.VPT.PROMPT_DEPTH_VISION": 12,
    }

    def has_image_tokens(self, cfg) -> bool:
        return True

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "N_CTX_VISION", at_least=1, why="the MaPLe paper uses 8")
        self.check_setting(cfg, "PROMPT_DEPTH_VISION", at_least=1, why="1 is shallow prompting")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own = self.own_settings
        image_encoder = clip_model.vision_transformer().transformer
        self.warn_of_unused_depth("PROMPT_DEPTH_VISION", "image", image_encoder)
        print("Vision Prompting Design")
        learner = IndependentPromptLearner(
            clip_model,
            classnames,
            own.CTX_INIT.replace("_", " "),
            image_tokens=own.N_CTX_VISION,
            image_depth=own.PROMPT_DEPTH_VISION,
        )
        print_prompts(learner)
        return learner
