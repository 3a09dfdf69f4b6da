"""TCP: Textual-based Class-aware Prompt tuning. Yao et al., CVPR 2024, arXiv 2311.18231.

KgCoOp's context in the input of the text encoder; before a later block, tokens that a small network makes of
CLIP's own feature of each class take its place (section 3.2).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Prompts
from prompted_clip.errors import UserError
from prompted_clip.mlp import QuickGELU
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import PromptLearner, at_least_float32, class_sentences, initial_context

from .clip_trainer import CLIPPromptTrainer
from .kgcoop import knowledge_loss
from .settings import IN_PROPORTION, in_proportion
from .step_graph import cuda_graph_safe
from .templates import template_of

TOKENS = 4  # learned, and of each class: as many as stand before the name in each of PROMPTED
# Sentences by DATASET.NAME: those of CLIP's own features; other datasets have their own.
TEMPLATES = {
    "FGVCAircraft": "a photo of an aircraft {}.",
    "DescribableTextures": "a photo of a {}, a type of texture.",
    "Food101": "a photo of a {}, a type of food.",
}
# And those whose first four tokens are learned, as in the reference: Stanford Cars' have no full stop, and
# "person doing" stays text in UCF101's.
OF_IMAGENET = ("ImageNet", "ImageNetV2", "ImageNetSketch", "ImageNetA", "ImageNetR")
PROMPTED = {
    "OxfordPets": "X X X X {}, a type of pet.",
    "OxfordFlowers": "X X X X {}, a type of flower.",
    "FGVCAircraft": "X X X X {}, a type of aircraft.",
    "DescribableTextures": "X X X X {} texture.",
    "StanfordCars": "X X X X {}, a type of car",
    "Food101": "X X X X {}, a type of food.",
    "UCF101": "a photo of a person doing {}.",
    **dict.fromkeys(OF_IMAGENET, "a photo of a {}."),
}


class ClassAwareLearner(PromptLearner):
    """Context for all classes, and a network that makes tokens of each class's own feature.

    Args:
        clip_template: the sentence of CLIP's own feature of a class.
        template: the sentence that is prompted; its first four tokens are the learner's.
        ctx_init: words that the context starts from; "" for noise.
        block: before which the tokens of each class take the context's place, counted from 0.
    """

    clip_features: Tensor  # (class feature): CLIP's own, of length 1

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        clip_template: str = "a photo of a {}.",
        template: str = "X X X X {}.",
        ctx_init: str = "",
        block: int = 8,
    ) -> None:
        super().__init__(class_sentences(clip_model, classnames, template, TOKENS))
        context, _ = initial_context(clip_model, TOKENS, ctx_init)
        width, feature = clip_model.text_projection.shape
        self.block = block
        self.ctx = nn.Parameter(context)
        layers = {
            "linear1": nn.Linear(feature, feature // 4),
            "relu": QuickGELU(),  # its name in the reference
            "linear2": nn.Linear(feature // 4, TOKENS * width),
        }
        self.meta_net = nn.Sequential(OrderedDict(layers))
        with torch.no_grad():
            features = class_sentences(clip_model, classnames, clip_template).encode(clip_model)
        features = F.normalize(at_least_float32(features), dim=-1)
        self.register_buffer("clip_features", features, persistent=False)
        self.to(clip_model.text_projection.device)

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts:
        of_classes = self.meta_net(self.clip_features).unflatten(-1, (TOKENS, -1))
        deep = [None] * (self.block - 1) + [of_classes]
        return Prompts(self.ctx, deep, class_specific=True)


@TRAINER_REGISTRY.register()
class TCP(CLIPPromptTrainer):
    """Cross entropy, and `W` times the distance of the text features from CLIP's own.

    The reference is `trainers/tcp.py` in github.com/htyao89/Textual-based_Class-aware_prompt_tuning.
    """

    settings: ClassVar = {
        "CTX_INIT": "",  # words that the four learned tokens start from; "": noise
        "PREC": "fp16",
        # The block of the text encoder before which the tokens of each class enter, counted from 0; -1: as
        # published, 8 of 12 blocks, and in proportion in other encoders.
        "BLOCK": IN_PROPORTION,
        "W": 8.0,  # weight of the knowledge-guided loss, 0 or more
    }
    prefixed_keys = False
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
        "OPTIM.NAME": "adam",
        "OPTIM.EPS": 1e-3,
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": 50,
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "W", at_least=0, why="the paper uses 8")

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, layers, dataset = self.own_settings, clip_model.transformer.layers, self.cfg.DATASET.NAME
        block = in_proportion(8, layers) if own.BLOCK == IN_PROPORTION else own.BLOCK
        if not 1 <= block < layers:
            raise UserError(
                f"TRAINER.{self.settings_key()}.BLOCK is {own.BLOCK}; this text encoder has {layers} blocks, "
                f"allowed are 1 to {layers - 1}, and -1."
            )
        return ClassAwareLearner(
            clip_model,
            classnames,
            TEMPLATES.get(dataset, template_of(self.dm.dataset)),
            PROMPTED.get(dataset, "X X X X {}."),
            own.CTX_INIT,
            block,
        )

    @cuda_graph_safe
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        text_features, learner = self.model.encode_text(), self.model.prompt_learner
        assert isinstance(learner, ClassAwareLearner)
        logits = self.model.logits(self.frozen_image_features(images), text_features)
        distance = knowledge_loss(text_features, learner.clip_features)
        return {"loss_ce": F.cross_entropy(logits, labels), "loss_kg": self.own_settings.W * distance}
