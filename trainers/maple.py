"""MaPLe: Multi-modal Prompt Learning. Khattak et al., CVPR 2023, arXiv 2210.03117.

A few context tokens are learned for the text encoder, in its input and before the next J − 1 blocks. Linear
layers, one a depth, make of them the tokens of the image encoder (section 3.2, equations 1–8).
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import ClassVar

from torch import nn

import clip
from clip.model import CLIP, VisionTransformer
from dassl.engine import TRAINER_REGISTRY

from .clip_trainer import CLIPPromptTrainer
from .prompt_learner import PromptLearner, initial_context, sentences_after

COUPLINGS = ("per_layer", "shared")


class MultiModalPromptLearner(PromptLearner):
    """Context tokens of the text encoder, and the couplings that make image tokens of them.

    Args:
        n_ctx: learned tokens a depth.
        prompt_depth: J; 1 is MaPLe shallow.
        coupling: `per_layer`, or `shared` for MaPLe†: one linear layer for all depths.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int = 2,
        ctx_init: str = "a photo of a",
        prompt_depth: int = 9,
        coupling: str = "per_layer",
    ) -> None:
        assert isinstance(clip_model.visual, VisionTransformer)
        text_width, image_width = clip_model.transformer.width, clip_model.visual.transformer.width
        context, words = initial_context(clip_model, n_ctx, ctx_init)
        super().__init__(clip_model, classnames, sentences_after(words, classnames), prompts=n_ctx)
        print("MaPLe design: Multi-modal Prompt Learning")
        print(f'Initial context: "{words}"')
        print(f"Number of MaPLe context words (tokens): {n_ctx}")

        self.ctx = nn.Parameter(context)
        self.proj = nn.Linear(text_width, image_width)
        deep = [nn.Parameter(context.new_empty(n_ctx, text_width)) for _ in range(prompt_depth - 1)]
        for tokens in deep:
            nn.init.normal_(tokens, std=0.02)
        self.compound_prompts_text = nn.ParameterList(deep)
        # All deep couplings start as clones of one linear layer, as published.
        first = nn.Linear(text_width, image_width)
        clones = prompt_depth - 1 if coupling == "per_layer" else 0
        self.compound_prompt_projections = nn.ModuleList(copy.deepcopy(first) for _ in range(clones))

    def text_prompts(self, image_features=None) -> clip.Prompts:
        return clip.Prompts(self.ctx, list(self.compound_prompts_text))

    def image_prompts(self) -> clip.Prompts:
        deep = list(self.compound_prompts_text)
        couplings = list(self.compound_prompt_projections) or [self.proj] * len(deep)
        return clip.Prompts(
            self.proj(self.ctx), [coupling(tokens) for coupling, tokens in zip(couplings, deep, strict=True)]
        )


@TRAINER_REGISTRY.register()
class MaPLe(CLIPPromptTrainer):
    """Multi-modal prompt learning; `PROMPT_DEPTH: 1` is MaPLe shallow, `COUPLING: shared` is MaPLe†."""

    settings: ClassVar = {
        "N_CTX": 2,
        "CTX_INIT": "a photo of a",
        "PREC": "fp16",
        "PROMPT_DEPTH": 9,
        "COUPLING": "per_layer",
    }
    model_name = "MultiModalPromptLearner"
    needs_vit = True

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(
            cfg, "N_CTX", at_least=1, why="MaPLe needs at least 1 learned token; the paper uses 2"
        )
        self.check_setting(cfg, "PROMPT_DEPTH", at_least=1, why="1 is MaPLe shallow; the paper uses 9")
        self.check_setting(cfg, "COUPLING", one_of=COUPLINGS)

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own = self.own_settings
        self.warn_of_unused_depth(clip_model, "PROMPT_DEPTH")
        return MultiModalPromptLearner(
            clip_model, classnames, own.N_CTX, own.CTX_INIT, own.PROMPT_DEPTH, own.COUPLING
        )
