"""CoOp: Context Optimization. Zhou et al., IJCV 2022, arXiv 2109.01134.

The words around a class name are learned, in the input of the text encoder; for all classes or for each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Prompts, SharedPrefixText
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner, initial_context, noise, tokenize_classes
from prompted_clip.simple_tokenizer import default_tokenizer

from .clip_trainer import CLIPPromptTrainer

CLASS_TOKEN_POSITIONS = ("end", "middle", "front")


class ContextLearner(PromptLearner):
    """Context tokens in the input of the text encoder; on CLIP's device.

    `words` are those that the context starts from.

    Args:
        n_ctx: learned tokens, where `ctx_init` is empty; otherwise as many as it has words, as published.
        ctx_init: words that the context starts from; `_` stands for a space.
        class_specific: whether each class has its own context; it starts from noise.
        position: of the class name: at the end, in the middle or in front of the context.
    """

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        n_ctx: int = 16,
        ctx_init: str = "",
        class_specific: bool = False,
        position: str = "end",
    ) -> None:
        n_ctx = len(ctx_init.replace("_", " ").split(" ")) if ctx_init else n_ctx
        context, words = initial_context(clip_model, n_ctx, ctx_init, most_words=n_ctx)
        if class_specific:  # one for each, in place of that one
            contexts = noise(len(classnames), n_ctx, clip_model.transformer.width)
            context = torch.stack(list(contexts)).detach()
        template = f"{words} {{}}."
        tokens = tokenize_classes(clip_model, classnames, template)
        names = clip_model.tokenize([name.replace("_", " ") for name in classnames], truncate=True)
        lengths = clip_model.ends(names) - clip_model.first_slot
        tokens, slots = arrange(tokens, n_ctx, lengths, position, clip_model.first_slot)
        super().__init__(SharedPrefixText.of(clip_model, tokens, slots, template))
        self.words, self.position = words, position
        self.ctx = nn.Parameter(context)
        self.class_specific = class_specific
        self.to(clip_model.text_projection.device)

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts:
        return Prompts(self.ctx, class_specific=self.class_specific)

    def place_prompts(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        n_ctx, eot = self.ctx.shape[-2], tokens.argmax(dim=-1, keepdim=True)
        # The full stop is a token, unless the name ends in a sign that runs together with it.
        has_full_stop = tokens.gather(1, eot - 1) == default_tokenizer().encoder[".</w>"]
        return arrange(tokens, n_ctx, (eot - n_ctx - 1 - has_full_stop.long())[:, 0], self.position)


def print_context(learner: ContextLearner) -> None:
    """Logs what the context starts from, as the reference does."""
    print(f"Initializing {'class-specific contexts' if learner.class_specific else 'a generic context'}")
    print(f'Initial context: "{learner.words}"')
    print(f"Number of context words (tokens): {learner.ctx.shape[-2]}")


def arrange(
    tokens: Tensor, n_ctx: int, name_lengths: Tensor, position: str, first: int = 1
) -> tuple[Tensor, Tensor]:
    """Moves the class name of "SOS context name . EOT" to its position.

    Args:
        tokens: `(class length)`.
        name_lengths: tokens of each class name, `(class)`.
        position: "end" leaves the class name after the context; "middle" has half of the context before it
            (the smaller half, if it is odd); "front" has none.
        first: where the context starts.

    Returns:
        The moved tokens, `(class length)`, and the positions of the context in them, `(class n_ctx)`.

    Source: `PromptLearner.forward` in CoOp's `trainers/coop.py`.
    """
    before = {"end": n_ctx, "middle": n_ctx // 2, "front": 0}[position]
    lengths, slot = name_lengths[:, None], torch.arange(n_ctx, device=tokens.device)
    start, target = first + before, torch.arange(tokens.shape[1], device=tokens.device)
    is_name = (target >= start) & (target < start + lengths)
    is_after = (target >= start + lengths) & (target < first + n_ctx + lengths)
    source = target + is_name * (n_ctx - before) - is_after * lengths
    return tokens.gather(1, source), first + slot + (slot >= before) * lengths


@TRAINER_REGISTRY.register()
class CoOp(CLIPPromptTrainer):
    """Context optimization."""

    settings: ClassVar = {
        "N_CTX": 16,  # learned tokens, 1 or more, where CTX_INIT is empty
        "CSC": False,  # class-specific context: one for each class, from noise; not used with CTX_INIT
        "CTX_INIT": "",  # words that the context starts from, as many tokens as words; "": noise
        "PREC": "fp16",
        "CLASS_TOKEN_POSITION": "end",  # of the class name, from the context: `end`, `middle` or `front`
    }
    prefixed_keys = False
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": 200,
        "TRAINER.COOP.CTX_INIT": "a photo of a",
    }

    @classmethod
    def belongs_to_classes(cls, cfg) -> bool:
        own = cfg.TRAINER[cls.settings_key()]
        return bool(own.CSC and not own.CTX_INIT)

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "N_CTX", at_least=1, why="the paper uses 16, and 4 beside CoCoOp")
        self.check_setting(cfg, "CLASS_TOKEN_POSITION", one_of=CLASS_TOKEN_POSITIONS)

    def context_words(self) -> str:
        """Words that the context starts from; "" for noise."""
        return self.own_settings.CTX_INIT

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> ContextLearner:
        own, words = self.own_settings, self.context_words()
        if own.CSC and words:
            print(
                f"Warning: TRAINER.{self.settings_key()}.CSC is not used, as in the reference: the context "
                f"starts from the words of CTX_INIT, {own.CTX_INIT!r}, for all classes"
            )
        learner = ContextLearner(
            clip_model, classnames, own.N_CTX, words, own.CSC and not words, own.CLASS_TOKEN_POSITION
        )
        print_context(learner)
        return learner
