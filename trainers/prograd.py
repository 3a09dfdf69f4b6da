"""ProGrad: Prompt-aligned Gradient. Zhu et al., ICCV 2023, arXiv 2205.14865.

CoOp, whose gradient is cleared of what would lead it away from zero-shot CLIP: where the gradients of cross
entropy and of the distance to CLIP's own predictions point against each other, the part of the one along the
other is taken out (equation 5).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP

from .coop import ContextLearner, CoOp
from .templates import template_of

TEMPLATE = "template"  # of CTX_INIT
# By DATASET.NAME; other datasets have their own. The class name is last, so that all before it is context.
TEMPLATES = {
    "OxfordPets": "a type of pet, a photo of a {}.",
    "OxfordFlowers": "a type of flower, a photo of a {}.",
    "FGVCAircraft": "a type of aircraft, a photo of a {}.",
    "DescribableTextures": "a texture of {}.",
    "Food101": "a type of food, a photo of {}.",
}


@TRAINER_REGISTRY.register()
class ProGrad(CoOp):
    """CoOp with prompt-aligned gradients; `LAMBDA: 0` is CoOp.

    The reference is `ProGrad.public/trainers/prograd.py` in github.com/BeierZhu/Prompt-align.
    """

    settings: ClassVar = {
        **CoOp.settings,
        # Words that the last tokens of the context start from, while those before them start from 0:
        # `template` for those before the name in the dataset's sentence, or words; "": noise.
        "CTX_INIT": TEMPLATE,
        "LAMBDA": 1.0,  # share of the opposing part that is taken out of the gradient, 0 or more
        "T": 1.0,  # temperature of both predictions in the distance to CLIP's, above 0
    }
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 32,
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": 100,
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "LAMBDA", at_least=0, why="the paper uses 1, and 0.8; 0 is CoOp")
        temperature = cfg.TRAINER[self.settings_key()].T
        if temperature <= 0:
            raise UserError(f"TRAINER.{self.settings_key()}.T is {temperature}; allowed is more than 0.")

    @property
    def template(self) -> str:
        """The sentence that the context starts from, and that zero-shot CLIP is asked with."""
        return TEMPLATES.get(self.cfg.DATASET.NAME, template_of(self.dm.dataset))

    def context_words(self) -> str:
        own = self.own_settings
        words = self.template.partition("{}")[0].strip() if own.CTX_INIT == TEMPLATE else own.CTX_INIT
        if not words:
            return ""
        self.blank = own.N_CTX - len(words.replace("_", " ").split(" "))
        if self.blank < 0:
            raise UserError(
                f"TRAINER.{self.settings_key()}.N_CTX is {own.N_CTX}; allowed is {own.N_CTX - self.blank} or "
                f'more: the context starts from the words "{words}".'
            )
        return "X " * self.blank + words

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> ContextLearner:
        self.blank = 0  # tokens before the words
        learner = super().build_learner(clip_model, classnames)
        learner.ctx.data[..., : self.blank, :] = 0
        return learner

    @cached_property
    def clip_text_features(self) -> Tensor:
        return self.frozen_text_features([self.template])

    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """Cross entropy, which is learned, and the distance to CLIP, which it is not to raise."""
        image_features = self.model.encode_image(images)
        logits = self.model.logits(image_features, self.model.encode_text())
        with torch.no_grad():
            clip_logits = self.model.logits(image_features, self.clip_text_features)
        temperature = self.own_settings.T
        targets = (clip_logits / temperature).softmax(dim=-1)
        return {
            "loss_ce": F.cross_entropy(logits, labels),
            # The KL divergence up to the entropy of CLIP's predictions, as in the reference.
            "loss_kl": temperature**2 * F.cross_entropy(logits / temperature, targets),
        }

    # --- two gradients in place of that of a sum -----------------------------------------------------------

    def summed_losses(self, *inputs: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        _, terms = super().summed_losses(*inputs)
        self.loss_kl = terms["loss_kl"]
        return terms["loss_ce"], terms

    def model_backward_and_update(self, loss: Tensor, names=None) -> None:
        scaled = self.scaler.scale(loss), self.scaler.scale(self.loss_kl)
        self.prograd_backward_and_update(*scaled, self.own_settings.LAMBDA, names)

    def model_update(self, names=None) -> None:
        self.optimizers_step(self.get_model_names(names))
