"""Zero-shot CLIP: nothing is learned. Radford et al. 2021, arXiv 2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from clip.model import CLIP
from dassl.engine import TRAINER_REGISTRY

from .clip_trainer import CLIPPromptTrainer
from .prompt_learner import PromptLearner

DEFAULT_TEMPLATE = "a photo of a {}."


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPPromptTrainer):
    """CLIP with the dataset's hand-written template; a dataset without one gets "a photo of a {}."."""

    settings: ClassVar = {"PREC": "fp32"}

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        template = getattr(self.dm.dataset, "template", None) or DEFAULT_TEMPLATE
        sentences = [template.format(name.replace("_", " ")) for name in classnames]
        print(f"Prompts: {sentences}")
        return PromptLearner(clip_model, classnames, sentences)
