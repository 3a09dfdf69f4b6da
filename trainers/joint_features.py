"""Features of several learners' batches, from one pass of the frozen encoders; for `seeds_together.py`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from prompted_clip import Prompts
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner, at_least_float32
from prompted_clip.prompted_clip import PromptedCLIP

from .clip_trainer import CLIPPromptTrainer


@dataclass(frozen=True)
class Features:
    """What the encoders made of one seed's batch, of length 1.

    Attributes:
        images: `(batch 3 height width)`.
        of_images: `(batch feature)`.
        of_text: `(class feature)`, or `(batch class feature)` if made of the images'.
    """

    images: Tensor
    of_images: Tensor
    of_text: Tensor


class OneOfSeveral(PromptedCLIP):
    """The model of one seed; what `losses` ask of it within `given` is computed already."""

    features: Features | None = None

    @contextmanager
    def given(self, features: Features) -> Iterator[None]:
        """Within, these are the features of this batch and of the classes."""
        self.features = features
        try:
            yield
        finally:
            self.features = None

    def encode_image(self, image: Tensor) -> Tensor:
        if self.features is not None and image is self.features.images:
            return self.features.of_images
        return super().encode_image(image)

    def encode_text(self, image_features: Tensor | None = None) -> Tensor:
        given = self.features
        if given is not None and (image_features is None or image_features is given.of_images):
            return given.of_text
        return super().encode_text(image_features)

    def forward(self, image: Tensor) -> Tensor:
        if self.features is not None and image is self.features.images:
            return self.logits(self.features.of_images, self.features.of_text)
        return super().forward(image)


class JointEncoders:
    """The frozen CLIP for several learners at once; they learn the same method on the same classes."""

    def __init__(self, clip_model: CLIP) -> None:
        self.clip_model = clip_model
        self._fixed_text: Tensor | None = None

    def features(self, learners: Sequence[PromptLearner], images: Sequence[Tensor]) -> list[Features]:
        """Of each learner's images, `(batch 3 height width)`, and of its classes."""
        of_images = self._image_features(learners, images)
        of_text = self._text_features(learners, of_images)
        return [Features(*each) for each in zip(images, of_images, of_text, strict=True)]

    def _image_features(
        self, learners: Sequence[PromptLearner], images: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        sizes = [len(each) for each in images]
        prompts = joined([learner.image_prompts() for learner in learners], sizes)
        features = self.clip_model.encode_image(torch.cat(list(images)), prompts)
        return unit(features).split(sizes)

    def _text_features(
        self, learners: Sequence[PromptLearner], of_images: Sequence[Tensor]
    ) -> Sequence[Tensor]:
        first = learners[0]
        if first.class_specific or type(first).text_features is not PromptLearner.text_features:
            # No groups there: contexts of each class have the place of groups.
            each = zip(learners, of_images, strict=True)
            return [unit(learner.text_features(self.clip_model, given)) for learner, given in each]
        if first.conditional:
            sizes = [len(each) for each in of_images]
            own = [learner.text_prompts(given) for learner, given in zip(learners, of_images, strict=True)]
            return unit(first.sentences.encode(self.clip_model, joined(own, sizes))).split(sizes)
        prompts = joined([learner.text_prompts() for learner in learners], [1] * len(learners))
        if prompts is None:  # nothing of the text is learned: it stays the same
            if self._fixed_text is None:
                self._fixed_text = unit(first.sentences.encode(self.clip_model))
            return [self._fixed_text] * len(learners)
        return unit(first.sentences.encode(self.clip_model, prompts)).unbind()


def unit(features: Tensor) -> Tensor:
    """Features, `(... feature)`, of length 1, in at least float32."""
    return F.normalize(at_least_float32(features), dim=-1)


def joined(prompts: Sequence[Prompts | None], sizes: Sequence[int]) -> Prompts | None:
    """The prompts of several learners as those of one batch, in which each sample has its learner's.

    Args:
        prompts: each learner's, all of the same shapes; tokens `(n width)`, or `(size n width)`.
        sizes: how many samples each learner has in the batch.
    """
    given = [each for each in prompts if each is not None]
    if not given:
        return None

    def of_samples(tokens: Sequence[Tensor]) -> Tensor:
        parts = zip(tokens, sizes, strict=True)
        return torch.cat([each.expand(size, -1, -1) for each, size in parts])

    tokens = [each.tokens for each in given if each.tokens is not None]
    deep = zip(*(each.deep for each in given), strict=True)
    return Prompts(of_samples(tokens) if tokens else None, [of_samples(level) for level in deep])


class JointTeacher:
    """The frozen CLIP's own features, for methods that stay near it; computed once for all seeds.

    Args:
        trainer: any seed's; the classes are the same for all.
    """

    def __init__(self, trainer: CLIPPromptTrainer) -> None:
        self._encode_images = trainer.frozen_image_features
        self._encode_text = trainer.frozen_text_features
        self._of_text: dict[Any, Tensor] = {}
        self._images: Sequence[Tensor] = ()  # of the step, by seed
        self._of_images: Sequence[Tensor] = ()  # once they were asked for

    @contextmanager
    def of_batches(self, images: Sequence[Tensor]) -> Iterator[None]:
        """Within, these images, each `(batch 3 height width)`, are computed when one of them is asked for."""
        self._images = images
        try:
            yield
        finally:
            self._images = self._of_images = ()

    def image_features(self, images: Tensor) -> Tensor:
        """As `CLIPPromptTrainer.frozen_image_features`."""
        place = next((k for k, each in enumerate(self._images) if each is images), None)
        if place is None:
            return self._encode_images(images)
        if not self._of_images:
            sizes = [len(each) for each in self._images]
            self._of_images = self._encode_images(torch.cat(list(self._images))).split(sizes)
        return self._of_images[place]

    def text_features(self, templates: Sequence[str], normalise_each: bool = True) -> Tensor:
        """As `CLIPPromptTrainer.frozen_text_features`."""
        key = (tuple(templates), normalise_each)
        if key not in self._of_text:
            self._of_text[key] = self._encode_text(templates, normalise_each)
        return self._of_text[key]
