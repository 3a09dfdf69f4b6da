"""MaPLe: Multi-modal Prompt Learning. Khattak et al., CVPR 2023, arXiv 2210.03117.

A few context tokens are learned for the text encoder, in its input and before the next J − 1 blocks. Linear
layers, one per depth, map them to the tokens of the image encoder (section 3.2, equations 1–8). The designs
that the paper weighs against this are settings: depths of the two branches that differ (figure 4), the
coupling in the other direction, deep prompts that start from words (appendix).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Prompts
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner, class_sentences, initial_context, noise

from .clip_trainer import CLIPPromptTrainer

COUPLINGS = ("per_layer", "shared")
DIRECTIONS = ("text_to_image", "image_to_text")
DEEP_INITS = ("noise", "words")
BRANCH_DEPTHS = ("PROMPT_DEPTH_TEXT", "PROMPT_DEPTH_VISION")
AS_PROMPT_DEPTH = -1


class MultiModalPromptLearner(PromptLearner):
    """Tokens of one encoder, the source, and the couplings that make the tokens of the other, the target.

    All are on CLIP's device. `words` are those that the context starts from.

    Args:
        n_ctx: learned tokens per depth.
        ctx_init: words that the context starts from; noise without them, or if image tokens are the source.
        text_depth, image_depth: how many blocks of each encoder get tokens; J for both is MaPLe, 1 is MaPLe
            shallow, 0 leaves an encoder as it is.
        coupling: `per_layer`, or `shared` for MaPLe†: one linear layer for all depths.
        direction: `text_to_image`, or `image_to_text`.
        deep_init: `noise`, or `words` for deep prompts that start as the context does.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int = 2,
        ctx_init: str = "a photo of a",
        text_depth: int = 9,
        image_depth: int = 9,
        coupling: str = "per_layer",
        direction: str = "text_to_image",
        deep_init: str = "noise",
    ) -> None:
        image_encoder = clip_model.vision_transformer()
        context, words = initial_context(clip_model, n_ctx, ctx_init)
        prompts = n_ctx if text_depth else 0
        super().__init__(class_sentences(clip_model, classnames, f"{words} {{}}.", prompts))
        self.words = words
        widths = {"text": clip_model.transformer.width, "image": image_encoder.transformer.width}
        depths = {"text": text_depth, "image": image_depth}
        self.source, self.target = direction.split("_to_")
        self.source_depth, self.target_depth = depths[self.source], depths[self.target]
        width = widths[self.source]
        if self.source == "image":
            (context,) = noise(1, n_ctx, width)
        self.ctx = nn.Parameter(context.detach())
        if self.target_depth:
            self.proj = nn.Linear(width, widths[self.target])
        deep = noise(max(text_depth, image_depth) - 1, n_ctx, width)
        if deep_init == "words":
            for tokens in deep:
                tokens.data.copy_(context)
        # compound_prompts_text, as published, or compound_prompts_image
        self.add_module(f"compound_prompts_{self.source}", deep)
        # All deep couplings start as clones of one linear layer, as published.
        first = nn.Linear(width, widths[self.target])
        clones = max(0, self.target_depth - 1) if coupling == "per_layer" else 0
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(first) for _ in range(clones))
        self.to(clip_model.text_projection.device)

    def text_prompts(self, image_features: torch.Tensor | None = None) -> Prompts | None:
        return self._prompts_of("text")

    def image_prompts(self) -> Prompts | None:
        return self._prompts_of("image")

    def _prompts_of(self, encoder: str) -> Prompts | None:
        depth = self.source_depth if encoder == self.source else self.target_depth
        if not depth:
            return None
        deep = list(self.get_submodule(f"compound_prompts_{self.source}").parameters())[: depth - 1]
        if encoder == self.source:
            return Prompts(self.ctx, deep)
        couplings = list(self.compound_prompt_projections) or [self.proj] * len(deep)
        coupled = [coupling(tokens) for coupling, tokens in zip(couplings, deep, strict=True)]
        return Prompts(self.proj(self.ctx), coupled)


@TRAINER_REGISTRY.register()
class MaPLe(CLIPPromptTrainer):
    """Multi-modal prompt learning; `PROMPT_DEPTH: 1` is MaPLe shallow, `COUPLING: shared` is MaPLe†."""

    settings: ClassVar = {
        "N_CTX": 2,  # learned tokens per depth, 1 or more
        # Words that the context starts from: their first N_CTX tokens, up to 4; the rest stays text. Without
        # words, or with more tokens, it starts from noise.
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH": 9,  # J: blocks of each encoder that get learned tokens, 1 or more; 1 is MaPLe shallow
        "COUPLING": "per_layer",  # linear layers between the branches: `per_layer`, or `shared` (MaPLe†)
        # The designs that MaPLe was weighed against.
        "PROMPT_DEPTH_TEXT": AS_PROMPT_DEPTH,  # J of the text encoder; -1: PROMPT_DEPTH, 0: none
        "PROMPT_DEPTH_VISION": AS_PROMPT_DEPTH,  # J of the image encoder; -1: PROMPT_DEPTH, 0: none
        # Which tokens are learned, and which are made of them: `text_to_image` or `image_to_text`.
        "DIRECTION": "text_to_image",
        "DEEP_INIT": "noise",  # deep prompts start from `noise`, or from the `words` of CTX_INIT
    }
    model_name = "MultiModalPromptLearner"
    recipe: ClassVar = {"OPTIM.LR": 0.0035, "OPTIM.MAX_EPOCH": 5}

    def has_image_tokens(self, cfg) -> bool:
        return True

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(
            cfg, "N_CTX", at_least=1, why="MaPLe needs at least 1 learned token; the paper uses 2"
        )
        self.check_setting(cfg, "PROMPT_DEPTH", at_least=1, why="1 is MaPLe shallow; the paper uses 9")
        self.check_setting(cfg, "COUPLING", one_of=COUPLINGS)
        self.check_setting(cfg, "DIRECTION", one_of=DIRECTIONS)
        self.check_setting(cfg, "DEEP_INIT", one_of=DEEP_INITS)
        for key in BRANCH_DEPTHS:
            self.check_setting(
                cfg, key, at_least=AS_PROMPT_DEPTH, why=f"{AS_PROMPT_DEPTH} is PROMPT_DEPTH, 0 is no prompts"
            )
        own = cfg.TRAINER[self.settings_key()]
        where = f"TRAINER.{self.settings_key()}"
        if own.PROMPT_DEPTH_TEXT == own.PROMPT_DEPTH_VISION == 0:
            raise UserError(
                f"{where}.PROMPT_DEPTH_TEXT and PROMPT_DEPTH_VISION are 0; one of them must be 1 or more."
            )
        if own.DEEP_INIT == "words" and (own.DIRECTION != "text_to_image" or not own.CTX_INIT):
            raise UserError(
                f"{where}.DEEP_INIT is 'words', for text prompts, which take those of CTX_INIT: it is "
                f"{own.CTX_INIT!r}, and DIRECTION {own.DIRECTION!r}. Give words and text_to_image, or noise."
            )

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, image_encoder = self.own_settings, clip_model.vision_transformer()
        text, image = ("PROMPT_DEPTH" if own[key] == AS_PROMPT_DEPTH else key for key in BRANCH_DEPTHS)
        self.warn_of_unused_depth(text, "text", clip_model.transformer)
        self.warn_of_unused_depth(image, "image", image_encoder.transformer)
        learner = MultiModalPromptLearner(
            clip_model,
            classnames,
            own.N_CTX,
            own.CTX_INIT,
            own[text],
            own[image],
            own.COUPLING,
            own.DIRECTION,
            own.DEEP_INIT,
        )
        print("MaPLe design: Multi-modal Prompt Learning")
        print(f'Initial context: "{learner.words}"')
        print(f"Number of MaPLe context words (tokens): {own.N_CTX}")
        return learner
