"""2SFS: two-stage few-shot adaptation. Farina et al., CVPR 2025, arXiv 2503.11609.

First a few tensors inside both encoders are tuned, such as the norms of all blocks; then they stand, and a
linear classifier is learned that starts from the tuned text features. At a test, a class that was trained on
has its row of the classifier, and any other class its tuned text feature.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Adapters
from prompted_clip.adapters import put_at
from prompted_clip.errors import UserError
from prompted_clip.kept import KeptImages
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner, at_least_float32, class_sentences

from .clip_trainer import CLIPPromptTrainer
from .cliplora import CLIPLoRA, LowRankLearner, low_rank_files
from .templates import DEFAULT_TEMPLATE

PEFT = ("ln", "bitfit", "lora")
MODALITIES = ("both", "text", "vision")
CLASSIFIERS = ("by_class", "text")
VISUAL = "visual."


class TunedTensors(PromptLearner):
    """Copies of some of CLIP's tensors, under CLIP's names, to compute with instead; on CLIP's device."""

    def __init__(
        self, clip_model: CLIP, classnames: Sequence[str], template: str, names: Sequence[str]
    ) -> None:
        super().__init__(class_sentences(clip_model, classnames, template))
        for name in names:
            put_at(self, name, nn.Parameter(clip_model.get_parameter(name).detach().clone().float()))
        self.names = list(names)

    def text_adapters(self) -> Adapters:
        return Adapters(tensors={name: self.get_parameter(name) for name in self.names if VISUAL not in name})

    def image_adapters(self) -> Adapters:
        return Adapters(tensors={name: self.get_parameter(name) for name in self.names if VISUAL in name})


class TwoStages(PromptLearner):
    """Adds the second stage to a learner; put it before that one's class.

    Attributes:
        stage: 0 while the encoders are tuned, 1 from the start of the classifier on.
        rule: `by_class`, or `text` for text features of all classes at a test.
    """

    classifier: nn.Parameter
    stage = 0
    rule = "by_class"

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        if self.stage == 0 or (self.rule == "text" and not self.training):
            return super().text_features(clip_model, image_features)
        return self.classifier

    def image_features(self, clip_model: CLIP, image: Tensor | KeptImages) -> Tensor:
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.stage == 0):
            return super().image_features(clip_model, image)

    logit_scale = PromptLearner.logit_scale  # CLIP's own, also of low-rank adapters

    @torch.no_grad()
    def tuned_text_features(self, clip_model: CLIP) -> Tensor:
        """Normalised text features of the tuned encoder, `(class feature)`."""
        return F.normalize(at_least_float32(super().text_features(clip_model)), dim=-1)

    @torch.no_grad()
    def start_classifier(self, clip_model: CLIP) -> None:
        self.classifier.copy_(self.tuned_text_features(clip_model))
        self.stage = 1

    def state_for(
        self, clip_model: CLIP, state: Mapping[str, Any], before: Sequence[str], now: Sequence[str]
    ) -> Mapping[str, Any]:
        rows = state.get("classifier")
        if not isinstance(rows, Tensor) or rows.shape != (len(before), self.classifier.shape[1]):
            return state
        if not rows.any():  # of the first stage
            return {**state, "classifier": torch.zeros_like(self.classifier)}
        tuned = copy.deepcopy(self)
        tuned.load_state_dict({key: each for key, each in state.items() if key != "classifier"}, strict=False)
        found = list(tuned.eval().tuned_text_features(clip_model))
        trained = dict(zip(before, rows.to(self.classifier), strict=True))
        together = [trained.get(name, text) for name, text in zip(now, found, strict=True)]
        return {**state, "classifier": torch.stack(together)}

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.stage = int(bool(self.classifier.any()))


class TwoStageTensors(TwoStages, TunedTensors):
    """Tensors of CLIP, then a classifier."""


class TwoStageLowRank(TwoStages, LowRankLearner):
    """Low-rank adapters, then a classifier."""


@TRAINER_REGISTRY.register()
class TwoStageFS(CLIPPromptTrainer):
    """Two-stage few-shot adaptation."""

    settings: ClassVar = {
        "PEFT": "ln",  # what the first stage tunes: `ln` (norms of the blocks), `bitfit` (biases) or `lora`
        "MODALITY": "both",  # the encoders that are tuned: `both`, `text` or `vision`
        "TEXT_START": 0,  # the first block of the text encoder that is tuned, counted from 0
        "VISION_START": 0,  # the first block of the image encoder that is tuned, counted from 0
        "FRACTION": 0.6,  # the share of the training steps that the first stage takes, 0 to 1
        # What stands for a class at a test: `by_class`, its row of the classifier if it was trained on and
        # its text feature otherwise, as published; or `text`, one rule for all: text features.
        "CLASSIFIER": "by_class",
        "TEMPLATE": DEFAULT_TEMPLATE,  # the sentence of a class, for every dataset
        "PREC": "amp",
    }
    adapts_blocks = True
    prefixed_keys = False
    test_settings = ("CLASSIFIER",)
    recipe: ClassVar = {**CLIPLoRA.recipe, "OPTIM.ITER_PER_SHOT": 300}

    def has_image_tokens(self, cfg) -> bool:
        return cfg.TRAINER.TWOSTAGEFS.MODALITY != "text"

    @classmethod
    def can_share_batches(cls) -> bool:
        return False  # each stage leaves the other's tensors without a gradient

    @classmethod
    def oracle(cls, cfg) -> str:
        by_class = cfg.TRAINER.TWOSTAGEFS.CLASSIFIER == "by_class"
        return "which of the classes asked were trained on" if by_class else ""

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "PEFT", one_of=PEFT)
        self.check_setting(cfg, "MODALITY", one_of=MODALITIES)
        self.check_setting(cfg, "CLASSIFIER", one_of=CLASSIFIERS)
        for key in ("TEXT_START", "VISION_START"):
            self.check_setting(cfg, key, at_least=0, why="0 is the first block")
        fraction = cfg.TRAINER.TWOSTAGEFS.FRACTION
        if not 0 <= fraction <= 1:
            raise UserError(f"TRAINER.TWOSTAGEFS.FRACTION is {fraction}; allowed is 0 to 1.")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own = self.own_settings
        visual: Any = clip_model.visual
        blocks: dict[str, list[int]] = {"text": [], "vision": []}
        if own.MODALITY != "vision":
            blocks["text"] = list(range(own.TEXT_START, clip_model.transformer.layers))
        if own.MODALITY != "text":
            blocks["vision"] = list(range(own.VISION_START, visual.transformer.layers))
        learner: TwoStages
        if own.PEFT == "lora":
            learner = TwoStageLowRank(clip_model, classnames, own.TEMPLATE, "qkv", blocks)
        else:
            names = tuned_names(clip_model, own.PEFT, blocks)
            learner = TwoStageTensors(clip_model, classnames, own.TEMPLATE, names)
        width = clip_model.text_projection.shape[1]
        device = clip_model.text_projection.device
        learner.classifier = nn.Parameter(torch.zeros(len(classnames), width, device=device))
        learner.rule = own.CLASSIFIER
        return learner

    def phase_steps(self) -> list[int]:
        first = int(self.own_settings.FRACTION * self.total_steps())
        return [first, self.total_steps() - first]

    def begin_phase(self, phase: int) -> None:
        super().begin_phase(phase)
        if phase == 1:
            print("Second stage: a classifier that starts from the tuned text features")
            self.set_model_mode("eval")
            with self.precision.autocast():
                learner: Any = self.model.prompt_learner
                learner.start_classifier(self.model.clip_model)

    @classmethod
    def more_files(cls, model: Any, backbone: str) -> dict[str, bytes]:
        return low_rank_files(model.prompt_learner, backbone)


def tuned_names(clip_model: CLIP, peft: str, blocks: Mapping[str, Sequence[int]]) -> list[str]:
    """The names of the tensors that the first stage tunes: norms of the blocks, or all biases of modules.

    The norms outside of the blocks are tuned by `bitfit` alone: the authors' code gives them to the optimizer
    of `ln`, and freezes them again. The attention's `in_proj_bias` belongs to no module of its own.
    """
    names = []
    for encoder, numbers in blocks.items():
        prefix = VISUAL if encoder == "vision" else ""
        starts = tuple(f"{prefix}transformer.resblocks.{number}." for number in numbers)
        outside = (f"{prefix}ln_pre.bias", f"{prefix}ln_post.bias", f"{prefix}ln_final.bias")
        for name, _ in clip_model.named_parameters():
            in_blocks = name.startswith(starts)
            if peft == "ln":
                chosen = in_blocks and (".ln_1." in name or ".ln_2." in name)
            else:
                chosen = (in_blocks and name.endswith(".bias")) or (bool(numbers) and name in outside)
            names += [name] if chosen else []
    return names
