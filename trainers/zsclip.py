"""Zero-shot CLIP: nothing is learned. Radford et al. 2021, arXiv 2103.00020."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner, TemplateEnsemble, class_sentences

from .clip_trainer import CLIPPromptTrainer
from .templates import SELECTED_TEMPLATES, template_of


@TRAINER_REGISTRY.register()
class ZeroshotCLIP(CLIPPromptTrainer):
    """CLIP with the dataset's hand-written template; a dataset without one gets "a photo of a {}."."""

    settings: ClassVar = {"PREC": "fp32"}
    is_zero_shot: ClassVar = True

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        template = template_of(self.dm.dataset)
        print(f"Prompts: {[template.replace('{}', name.replace('_', ' ')) for name in classnames]}")
        return PromptLearner(class_sentences(clip_model, classnames, template))


@TRAINER_REGISTRY.register()
class ZeroshotCLIP2(CLIPPromptTrainer):
    """CLIP with the mean over seven templates and the dataset's own."""

    settings: ClassVar = {"PREC": "fp32"}
    is_zero_shot: ClassVar = True

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        templates = list(SELECTED_TEMPLATES)
        if self.cfg.DATASET.NAME != "ImageNet":  # which has been their measure already, as published
            templates.append(template_of(self.dm.dataset))
        print(f"Prompt ensembling (n={len(templates)})")
        return TemplateEnsemble(clip_model, classnames, templates)
