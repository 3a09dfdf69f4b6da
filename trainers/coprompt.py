"""CoPrompt: Consistency-guided Prompt learning. Roy and Etemad, ICLR 2024, arXiv 2306.01195.

MaPLe's prompts and an adapter on each feature, held near frozen CLIP's features of another view of the image
and of a sentence that describes the class (section 3).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Prompts
from prompted_clip.kept import KeptImages
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner, at_least_float32

from .descriptions import description_features, descriptions_sha256, read_descriptions
from .kgcoop import knowledge_loss
from .maple import MaPLe
from .step_graph import cuda_graph_safe
from .templates import template_of

DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"cosine": knowledge_loss, "mse": F.mse_loss}


class Adapter(nn.Module):
    """Mixes features with a bottleneck's: `(... feature)` → `(... feature)`."""

    def __init__(self, width: int, share: float) -> None:
        super().__init__()
        self.share = share
        down, up = nn.Linear(width, width // 4, bias=False), nn.Linear(width // 4, width, bias=False)
        self.fc = nn.Sequential(down, nn.ReLU(), up, nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = at_least_float32(x)
        return self.share * self.fc(x) + (1 - self.share) * x


class ConsistentPromptLearner(PromptLearner):
    """MaPLe's learner, and an adapter on the features of each encoder.

    Args:
        prompts: of the same CLIP.
        image_share, text_share: of the adapters' output in the features.
    """

    def __init__(self, clip_model: CLIP, prompts: PromptLearner, image_share: float, text_share: float):
        super().__init__(prompts.sentences)
        feature = clip_model.text_projection.shape[1]
        self.prompt_learner = prompts
        del prompts.sentences  # its part is the tokens; a graph would not take a module in two places
        self.adapter_image, self.adapter_text = Adapter(feature, image_share), Adapter(feature, text_share)
        self.to(clip_model.text_projection.device)

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts | None:
        return self.prompt_learner.text_prompts()

    def image_prompts(self) -> Prompts | None:
        return self.prompt_learner.image_prompts()

    def text_features(self, clip_model: CLIP, image_features: Tensor | None = None) -> Tensor:
        return self.adapter_text(super().text_features(clip_model))

    def image_features(self, clip_model: CLIP, image: Tensor | KeptImages) -> Tensor:
        return self.adapter_image(super().image_features(clip_model, image))


@TRAINER_REGISTRY.register()
class CoPrompt(MaPLe):
    """Cross entropy of one view, and `W` times the distances of both features from frozen CLIP's.

    The reference is `trainers/coprompt.py` in github.com/ShuvenduRoy/CoPrompt.
    """

    settings: ClassVar = {
        **MaPLe.settings,
        "N_CTX": 4,  # learned tokens per depth, 1 or more
        "PROMPT_DEPTH": 12,  # J: blocks of each encoder that get learned tokens, 1 or more
        "W": 8.0,  # weight of the consistency losses, 0 or more
        "DISTILL": "cosine",  # their distance: `cosine`, or `mse` of the normalised features
        "ADAPTER_IMAGE": 0.1,  # share of the adapter in the image features, 0 to 1
        "ADAPTER_TEXT": 0.2,  # share of the adapter in the text features, 0 to 1
        # A file of sentences for each class (docs/descriptions.md), which a training needs and a test does
        # not; `{dataset}` in it is DATASET.NAME. `template`: the dataset's own sentence alone.
        "DESCRIPTIONS": "",
    }
    test_settings = ("DESCRIPTIONS",)
    prefixed_keys = False
    takes_views = True
    recipe: ClassVar = {
        "DATALOADER.K_TRANSFORMS": 2,
        "INPUT.TRANSFORMS": ["randaugment", "normalize"],
        "OPTIM.LR": 0.0035,
        "OPTIM.MAX_EPOCH": 8,
    }

    @classmethod
    def can_share_batches(cls) -> bool:
        return False  # each process would draw another sentence

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "W", at_least=0, why="the paper uses 0.1 to 8")
        self.check_setting(cfg, "DISTILL", one_of=list(DISTANCES))
        for key in ("ADAPTER_IMAGE", "ADAPTER_TEXT"):
            self.check_setting(cfg, key, at_least=0, why="the paper uses 0.1 and 0.2")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, prompts = self.own_settings, super().build_learner(clip_model, classnames)
        return ConsistentPromptLearner(clip_model, prompts, own.ADAPTER_IMAGE, own.ADAPTER_TEXT)

    # --- what frozen CLIP says of the classes -------------------------------------------------------------

    def before_train(self) -> None:
        _ = self.sentence_features  # what is missing is an error before the first step
        super().before_train()

    @property
    def descriptions(self) -> str:
        return self.own_settings.DESCRIPTIONS.replace("{dataset}", self.cfg.DATASET.NAME)

    @cached_property
    def sentence_features(self) -> Tensor:
        """CLIP's own features of the classes' sentences, `(sentence class feature)`."""
        key, dataset = f"TRAINER.{self.settings_key()}.DESCRIPTIONS", self.dm.dataset
        template = template_of(dataset)
        found = read_descriptions(self.descriptions, dataset.classnames, template, key)
        return description_features(self.model.clip_model, found, key)

    def model_parts(self) -> dict[str, str]:
        return {**super().model_parts(), "descriptions": descriptions_sha256(self.descriptions)}

    def parse_batch_train(self, batch) -> tuple[Tensor, ...]:
        """Also the number of the sentence, which is the same for all classes, and drawn in each step."""
        number = random.randint(0, len(self.sentence_features) - 1)
        return *super().parse_batch_train(batch), torch.tensor([number], device=self.device)

    @cuda_graph_safe
    def losses(self, images: Tensor, labels: Tensor, *sentence: Tensor) -> dict[str, Tensor]:
        """Frozen CLIP sees the last view of an image, and the sentence of that number, `(1)`."""
        image_features, text_features = self.model.encode_image(images[0]), self.model.encode_text()
        logits = self.model.logits(image_features, text_features)
        distance, weight = DISTANCES[self.own_settings.DISTILL], self.own_settings.W
        described = self.sentence_features.index_select(0, *sentence)[0]
        return {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_text": weight * distance(text_features, described),
            "loss_image": weight * distance(image_features, self.frozen_image_features(images[-1])),
        }
