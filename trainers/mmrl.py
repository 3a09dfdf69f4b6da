"""MMRL: Multi-Modal Representation Learning. Guo and Gu, CVPR 2025, arXiv 2503.08497.

Tokens of a space of their own are mapped into the deeper blocks of both encoders (section 3.2). The image has
two features then: that of its class token, held near CLIP's own, and that of the tokens, which is free.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from prompted_clip import Prompts
from prompted_clip.errors import UserError
from prompted_clip.kept import KeptImages
from prompted_clip.model import CLIP, VisionTransformer
from prompted_clip.prompt_learner import PromptLearner, at_least_float32, class_sentences, noise

from .clip_trainer import CLIPPromptTrainer
from .kgcoop import knowledge_loss
from .settings import in_proportion
from .step_graph import cuda_graph_safe
from .templates import template_of

LOGIT_SCALE = 100  # typed in: `trainers/mmrl.py` of the reference, lines 231 and 232
TEST_LOGITS = ("published", "class", "fused")


class MultiModalRepresentationLearner(PromptLearner):
    """Representation tokens, what maps them into the encoders, and the projection of their own feature.

    Args:
        blocks: those that get tokens, counted from 1; before the first they are inserted, later overwritten.
        tokens: how many.
        width: of the space that they are learned in.
        alpha: share of the class token's logits in the fused ones.
        test_logits: `fused`, `class`, or `published`: fused for the classes and the dataset trained on.
    """

    COUPLINGS: ClassVar = {"image": "compound_rep_tokens_r2vproj", "text": "compound_rep_tokens_r2tproj"}
    blend = 1.0  # of tokens that overwrite earlier ones

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        template: str = "a photo of a {}.",
        blocks: Sequence[int] = (6, 7, 8, 9, 10, 11, 12),
        tokens: int = 5,
        width: int = 512,
        alpha: float = 0.7,
        test_logits: str = "published",
    ) -> None:
        super().__init__(class_sentences(clip_model, classnames, template))
        assert isinstance(clip_model.visual, VisionTransformer)
        self.blocks, self.alpha, self.test_logits = list(blocks), alpha, test_logits
        self.representation_learner = nn.Module()
        (self.representation_learner.compound_rep_tokens,) = noise(1, tokens, width)
        encoders = {"image": clip_model.visual.transformer.width, "text": clip_model.transformer.width}
        for encoder, own in encoders.items():
            self.representation_learner.add_module(self.COUPLINGS[encoder], self.couplings(width, own))
        projection = self.projection_tensors(*clip_model.visual.proj.shape)
        self.image_encoder = nn.ParameterDict(projection)  # its name in published checkpoints
        self.to(clip_model.text_projection.device)

    def couplings(self, width: int, encoder_width: int) -> nn.Module:
        """A linear layer for each block; all start as clones of one."""
        first = nn.Linear(width, encoder_width)
        return nn.ModuleList(copy.deepcopy(first) for _ in self.blocks)

    def projection_tensors(self, width: int, feature: int) -> dict[str, nn.Parameter]:
        """What `projection` is made of."""
        return {"proj_rep": nn.Parameter(width**-0.5 * torch.randn(width, feature))}

    def projection(self, clip_model: CLIP) -> Tensor:
        """Maps the image encoder's output at the tokens to their feature, `(width feature)`."""
        return self.image_encoder["proj_rep"]

    def text_prompts(self, image_features: Tensor | None = None) -> Prompts:
        return self._prompts("text")

    def image_prompts(self) -> Prompts:
        return self._prompts("image")

    def _prompts(self, encoder: str) -> Prompts:
        learner = self.representation_learner
        couplings = learner.get_submodule(self.COUPLINGS[encoder])
        first, *later = [coupling(learner.compound_rep_tokens) for coupling in couplings]  # type: ignore
        deep: list[Tensor | None] = [None] * (self.blocks[-1] - 1)
        for block, tokens in zip(self.blocks[1:], later, strict=True):
            deep[block - 2] = tokens
        return Prompts(first, deep, self.blocks[0] - 1, self.blend, insert=True)

    def image_features(self, clip_model: CLIP, image: Tensor | KeptImages) -> Tensor:
        """The features of the class token and of the representation tokens, `(batch 2 feature)`."""
        visual, prompts = clip_model.vision_transformer(), self.image_prompts()
        end = len(visual.positional_embedding)
        positions = [0, *range(end, end + prompts.inserted())]
        hidden = visual.hidden_states(image, prompts, positions=positions)
        own = at_least_float32(visual.ln_post(hidden[:, 1:]).mean(dim=1)) @ self.projection(clip_model)
        return torch.stack([at_least_float32(visual.project(hidden[:, 0])), own], dim=1)

    def logits_of_each(self, image_features: Tensor, text_features: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the class token and of the representation tokens, `(batch class)` each."""
        both = at_least_float32(LOGIT_SCALE * image_features @ text_features.t())
        return both[:, 0], both[:, 1]

    def logits(self, clip_model: CLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
        of_class, of_tokens = self.logits_of_each(image_features, text_features)
        if self.test_logits == "class" or (
            self.test_logits == "published" and not self.is_asked_what_it_learned()
        ):
            return of_class
        return self.alpha * of_class + (1 - self.alpha) * of_tokens


@TRAINER_REGISTRY.register()
class MMRL(CLIPPromptTrainer):
    """Cross entropy of both features' logits, and `REG_WEIGHT` times the distance to CLIP's own features.

    The reference is `trainers/mmrl.py` in github.com/yunncheng/MMRL.
    """

    settings: ClassVar = {
        "ALPHA": 0.7,  # share of the class token in losses and fused logits, 0 to 1
        "REG_WEIGHT": 0.5,  # weight of the distances to CLIP's own features, 0 or more
        # Blocks of both encoders that get tokens, counted from 1; (): as published, 6 to 12 of 12 blocks, and
        # in proportion in other encoders.
        "REP_LAYERS": (),
        "REP_DIM": 512,  # width of the space that the tokens are learned in
        "N_REP_TOKENS": 5,  # representation tokens, 1 or more
        # What a test takes: `published`, fused logits where it asks for the classes and the dataset trained
        # on, the class token's elsewhere, so that it knows which are new; `class` or `fused`: one rule.
        "TEST_LOGITS": "published",
        "PREC": "amp",
    }
    test_settings: ClassVar[tuple[str, ...]] = ("TEST_LOGITS",)
    adapts_blocks = True
    model_name = "MultiModalRepresentationLearner"
    prefixed_keys = False
    recipe: ClassVar = {
        "INPUT.RRCROP_SCALE": (0.5, 1.0),
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 0.001,
        "OPTIM.MAX_EPOCH": 10,
    }
    learner_class: ClassVar[type[MultiModalRepresentationLearner]] = MultiModalRepresentationLearner

    @classmethod
    def oracle(cls, cfg) -> str:
        """What a test is told beside the images; "" for nothing."""
        published = cfg.TRAINER[cls.settings_key()].TEST_LOGITS == "published"
        return "whether the classes and the dataset are those trained on" if published else ""

    def has_image_tokens(self, cfg) -> bool:
        return True

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "ALPHA", at_least=0, why="the paper uses 0.7")
        self.check_setting(cfg, "REG_WEIGHT", at_least=0, why="the paper uses 0.01 to 7")
        self.check_setting(cfg, "REP_DIM", at_least=1, why="the paper uses 512, and 2048")
        self.check_setting(cfg, "N_REP_TOKENS", at_least=1, why="the paper uses 5")
        self.check_setting(cfg, "TEST_LOGITS", one_of=TEST_LOGITS)

    def learner_options(self) -> dict[str, Any]:
        """More arguments of the learner."""
        return {}

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, image_encoder = self.own_settings, clip_model.visual
        assert isinstance(image_encoder, VisionTransformer)
        layers = min(clip_model.transformer.layers, image_encoder.transformer.layers)
        blocks = list(own.REP_LAYERS) or list(range(in_proportion(6, layers), layers + 1))
        if blocks != sorted(set(blocks) & set(range(1, layers + 1))):
            raise UserError(
                f"TRAINER.{self.settings_key()}.REP_LAYERS is {own.REP_LAYERS}; allowed are blocks from 1 to "
                f"{layers}, each once and in order, such as {tuple(range(layers // 2, layers + 1))}."
            )
        return self.learner_class(
            clip_model,
            classnames,
            template_of(self.dm.dataset),
            blocks,
            own.N_REP_TOKENS,
            own.REP_DIM,
            own.ALPHA,
            own.TEST_LOGITS,
            **self.learner_options(),
        )

    @cached_property
    def clip_text_features(self) -> Tensor:
        return self.frozen_text_features([template_of(self.dm.dataset)])

    @cuda_graph_safe
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        own, learner = self.own_settings, self.model.prompt_learner
        assert isinstance(learner, MultiModalRepresentationLearner)
        image_features, text_features = self.model.encode_image(images), self.model.encode_text()
        of_class, of_tokens = learner.logits_of_each(image_features, text_features)
        moved = knowledge_loss(image_features[:, 0], self.frozen_image_features(images))
        return {
            "loss_ce": own.ALPHA * F.cross_entropy(of_class, labels),
            "loss_ce_tokens": (1 - own.ALPHA) * F.cross_entropy(of_tokens, labels),
            "loss_image": own.REG_WEIGHT * moved,
            "loss_text": own.REG_WEIGHT * knowledge_loss(text_features, self.clip_text_features),
        }
