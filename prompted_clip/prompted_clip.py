"""A frozen CLIP with a learner's prompts and adapters in it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .model import CLIP
from .prompt_learner import PromptLearner, at_least_float32
from .shared_prefix import AUTOMATIC, SharedPrefixText

# Text that depends on the image is encoded for as many images at once as make this many tokens of classes.
MOST_TOKENS = 1 << 15


class PromptedCLIP(nn.Module):
    """Images → logits over the classes that the learner has sentences for.

    The learner's parameters have the names of published checkpoints: `prompt_learner.ctx`, ... It is moved to
    CLIP's device. CLIP stays in evaluation mode: what a ResNet's batch norms have counted is frozen, too.

    Args:
        text_chunk: classes that run through the text encoder at once, see `SharedPrefixText`.
    """

    def __init__(self, clip_model: CLIP, prompt_learner: PromptLearner, text_chunk: int = AUTOMATIC) -> None:
        super().__init__()
        for module in prompt_learner.modules():
            if isinstance(module, SharedPrefixText):
                module.chunk = text_chunk
        self.prompt_learner = prompt_learner.to(clip_model.logit_scale.device)
        self.clip_model = clip_model
        self._text_features: Tensor | None = None

    def train(self, mode: bool = True) -> PromptedCLIP:
        super().train(mode)
        self.clip_model.eval()
        return self

    def encode_image(self, image: Tensor) -> Tensor:
        """`(batch 3 height width)` → normalised image features, `(batch feature)`."""
        features = self.prompt_learner.image_features(self.clip_model, image)
        return F.normalize(at_least_float32(features), dim=-1)

    def encode_text(self, image_features: Tensor | None = None) -> Tensor:
        """Normalised text features, `(class feature)`; `(batch class feature)` if made of the image's."""
        if self._text_features is not None:
            return self._text_features
        features = self.prompt_learner.text_features(self.clip_model, image_features)
        return F.normalize(at_least_float32(features), dim=-1)

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Logits of normalised features, `(batch class)`; see `PromptLearner.logits`."""
        return self.prompt_learner.logits(self.clip_model, image_features, text_features)

    def forward(self, image: Tensor) -> Tensor:
        """`(batch 3 height width)` → logits in at least float32, `(batch class)`."""
        image_features = self.encode_image(image)
        if not self.prompt_learner.conditional:
            return self.logits(image_features, self.encode_text())
        images_at_once = max(1, MOST_TOKENS // self.prompt_learner.sentences.suffix_tokens)
        return torch.cat(
            [self.logits(part, self.encode_text(part)) for part in image_features.split(images_at_once)]
        )

    @contextmanager
    def cached_text_features(self) -> Iterator[None]:
        """Within, text features that do not depend on the image are computed once, without gradients."""
        if not self.prompt_learner.conditional:
            with torch.no_grad():
                self._text_features = self.encode_text()
        try:
            yield
        finally:
            self._text_features = None
