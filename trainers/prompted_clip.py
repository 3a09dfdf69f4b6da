"""A frozen CLIP with a learner's prompts in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.model import CLIP

from .prompt_learner import PromptLearner


def at_least_float32(x: Tensor) -> Tensor:
    """Widens what half-precision encoders give: the small product of the two shall add no rounding."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


class PromptedCLIP(nn.Module):
    """Images → logits over the classes that the learner has sentences for.

    The learner's parameters have the names of published checkpoints: `prompt_learner.ctx`, ...
    """

    def __init__(self, clip_model: CLIP, prompt_learner: PromptLearner) -> None:
        super().__init__()
        self.prompt_learner = prompt_learner
        self.clip_model = clip_model
        self._text_features: Tensor | None = None

    def encode_image(self, image: Tensor) -> Tensor:
        """`(batch 3 height width)` → image features of length 1, `(batch feature)`."""
        features = self.clip_model.encode_image(image, self.prompt_learner.image_prompts())
        return F.normalize(at_least_float32(features), dim=-1)

    def encode_text(self, image_features: Tensor | None = None) -> Tensor:
        """Text features of length 1, `(class feature)`; `(batch class feature)` if made of the image's."""
        if self._text_features is not None:
            return self._text_features
        prompts = self.prompt_learner.text_prompts(image_features)
        features = self.prompt_learner.sentences.encode(self.clip_model, prompts)
        return F.normalize(at_least_float32(features), dim=-1)

    def forward(self, image: Tensor) -> Tensor:
        """`(batch 3 height width)` → logits in at least float32, `(batch class)`."""
        image_features = self.encode_image(image)
        conditional = self.prompt_learner.conditional
        text_features = self.encode_text(image_features if conditional else None)
        if conditional:
            logits = torch.einsum("bf,bcf->bc", image_features, text_features)
        else:
            logits = image_features @ text_features.t()
        return at_least_float32(self.clip_model.logit_scale.exp() * logits)

    @contextmanager
    def text_encoded_once(self) -> Iterator[None]:
        """Within, text features that do not depend on the image are those of the entry."""
        if not self.prompt_learner.conditional:
            with torch.no_grad():
                self._text_features = self.encode_text()
        try:
            yield
        finally:
            self._text_features = None
