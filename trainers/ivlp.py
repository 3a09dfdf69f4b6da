"""IVLP: independent vision-language prompting, of the MaPLe paper (section 4.2), arXiv 2210.03117.

Tokens are learned for both encoders in J depths, and neither knows of the other: MaPLe without its coupling.
Without tokens of the image encoder it is deep language prompting.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import IndependentPromptLearner, PromptLearner

from .clip_trainer import CLIPPromptTrainer


@TRAINER_REGISTRY.register()
class IVLP(CLIPPromptTrainer):
    """Independent V-L prompting; `N_CTX_VISION: 0` is deep language prompting."""

    settings: ClassVar = {
        "N_CTX_VISION": 2,  # learned tokens per depth in the image encoder; 0: deep language prompting
        "N_CTX_TEXT": 2,  # learned tokens per depth in the text encoder, 1 or more
        # Words that the text context starts from: their first N_CTX_TEXT tokens, up to 4; the rest stays
        # text. Without words, or with more tokens, it starts from noise.
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH_VISION": 9,  # blocks of the image encoder that get learned tokens; 0: none
        "PROMPT_DEPTH_TEXT": 9,  # blocks of the text encoder that get learned tokens, 1 or more
    }
    model_name = "VLPromptLearner"
    recipe: ClassVar = {
        "OPTIM.LR": 0.0035,
        "OPTIM.MAX_EPOCH": 5,
        "TRAINER.IVLP.PROMPT_DEPTH_VISION": 12,
        "TRAINER.IVLP.PROMPT_DEPTH_TEXT": 12,
    }

    def has_image_tokens(self, cfg) -> bool:
        own = cfg.TRAINER[self.settings_key()]
        return own.N_CTX_VISION > 0 and own.PROMPT_DEPTH_VISION > 0

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        for key in ("N_CTX_VISION", "PROMPT_DEPTH_VISION"):
            self.check_setting(cfg, key, at_least=0, why="0 is deep language prompting")
        for key in ("N_CTX_TEXT", "PROMPT_DEPTH_TEXT"):
            self.check_setting(cfg, key, at_least=1, why="to prompt the image encoder alone, take VPT")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own = self.own_settings
        self.warn_of_unused_depth("PROMPT_DEPTH_TEXT", "text", clip_model.transformer)
        if self.has_image_tokens(self.cfg):
            image_encoder = clip_model.vision_transformer().transformer
            self.warn_of_unused_depth("PROMPT_DEPTH_VISION", "image", image_encoder)
        print("Independent V-L design")
        learner = IndependentPromptLearner(
            clip_model,
            classnames,
            own.CTX_INIT,
            own.N_CTX_TEXT,
            own.PROMPT_DEPTH_TEXT,
            own.N_CTX_VISION if self.has_image_tokens(self.cfg) else 0,
            own.PROMPT_DEPTH_VISION,
        )
        print_prompts(learner)
        return learner


def print_prompts(learner: IndependentPromptLearner) -> None:
    """Logs the context and the number of tokens, as the reference does."""
    text, image = (0 if tokens is None else len(tokens) for tokens in (learner.ctx, learner.image_tokens))
    print(f'Initial text context: "{learner.words}"')
    print(f"Number of context words (tokens) for Language prompting: {text}")
    print(f"Number of context words (tokens) for Vision prompting: {image}")
