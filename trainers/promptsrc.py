"""PromptSRC: Self-regulating Prompts. Khattak et al., ICCV 2023, arXiv 2307.06948.

Prompts of both encoders, as IVLP's, held near the frozen CLIP in three ways (section 3.2): its features of
many hand-written sentences for each class, its features of the image, and its logits. At the end the prompts
are a mean over the epochs, weighted by a Gaussian.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.checkpoints import check_state
from dassl.utils.checkpoint_parts import check_numbers
from prompted_clip.errors import UserError

from .clip_trainer import CLIPPromptTrainer
from .ivlp import IVLP
from .maple import MaPLe
from .step_graph import cuda_graph_safe
from .templates import embedded_templates, imagenet_templates

TEMPLATES = 60  # the authors took the first ones of OpenAI's 80


class SelfRegulation(CLIPPromptTrainer):
    """What PromptSRC adds to a method that prompts both encoders; put it before that method's class."""

    regulation: ClassVar = {
        "TEXT_LOSS_WEIGHT": 25.0,  # weight of the distance to CLIP's text features, 0 or more
        "IMAGE_LOSS_WEIGHT": 10.0,  # weight of the distance to CLIP's image features, 0 or more
        "GPA_MEAN": 15.0,  # mean of the Gaussian that weights the epochs, in epochs
        "GPA_STD": 1.0,  # std of the Gaussian that weights the epochs, in epochs, above 0
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "TEXT_LOSS_WEIGHT", at_least=0, why="the paper uses 25")
        self.check_setting(cfg, "IMAGE_LOSS_WEIGHT", at_least=0, why="the paper uses 10")
        std = cfg.TRAINER[self.settings_key()].GPA_STD
        if std <= 0:
            raise UserError(f"TRAINER.{self.settings_key()}.GPA_STD is {std}; allowed is more than 0 epochs.")

    def build_model(self) -> None:
        super().build_model()
        own = self.own_settings
        self.gpa_weights = gaussian_weights(self.max_epoch, own.GPA_MEAN, own.GPA_STD)
        self.average: dict[str, Tensor] = {}  # of the learned tensors, up to the last finished epoch

    @cached_property
    def clip_text_features(self) -> Tensor:
        templates = embedded_templates(self.model.clip_model, imagenet_templates()[:TEMPLATES])
        return self.frozen_text_features(templates, normalise_each=False)

    @cuda_graph_safe
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        own, model = self.own_settings, self.model
        image_features, text_features = model.encode_image(images), model.encode_text()
        logits = model.logits(image_features, text_features)
        clip_image_features = self.frozen_image_features(images)
        with torch.no_grad():
            clip_logits = model.logits(clip_image_features, self.clip_text_features)
        return {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_text": own.TEXT_LOSS_WEIGHT * F.l1_loss(text_features, self.clip_text_features),
            "loss_image": own.IMAGE_LOSS_WEIGHT * F.l1_loss(image_features, clip_image_features),
            "loss_logits": logit_loss(logits, clip_logits),
        }

    # --- the mean over the epochs -----------------------------------------------------------------------

    def after_epoch(self) -> None:
        learned = dict(self.model.prompt_learner.named_parameters())
        weight = self.gpa_weights[self.epoch]
        for name, tensor in learned.items():
            self.average[name] = self.average.get(name, 0) + weight * tensor.detach()
        if self.epoch + 1 == self.max_epoch:
            print("Using the Gaussian-weighted mean of the prompts over the epochs")
            for name, tensor in learned.items():
                tensor.data.copy_(self.average[name])
        super().after_epoch()

    def checkpoint_state(self, name: str) -> dict[str, Any]:
        return {**super().checkpoint_state(name), "average": self.average}

    def check_resumable(self, name: str, checkpoint: Mapping[str, Any], directory: str) -> None:
        super().check_resumable(name, checkpoint, directory)
        if "average" not in checkpoint:
            raise UserError(
                f"The checkpoint of {name} has no mean over its epochs and cannot be continued; test it with "
                "--eval-only, or give another --output-dir to start a new run."
            )
        learned, average = dict(self.model.prompt_learner.named_parameters()), checkpoint["average"]
        where = f"The mean over the epochs in the checkpoint of {name}"
        if not isinstance(average, Mapping):
            raise UserError(f"{where} is not a dictionary of tensors.")
        check_state(learned, average, "what is learned", where)
        check_numbers(average, learned, where)

    def restore_state(self, name: str, checkpoint: Mapping[str, Any]) -> None:
        super().restore_state(name, checkpoint)
        self.average = {key: tensor.to(self.device) for key, tensor in checkpoint["average"].items()}


def logit_loss(logits: Tensor, clip_logits: Tensor) -> Tensor:
    """KL divergence of the prompted prediction from CLIP's, D(CLIP's ‖ prompted), a mean over the images.

    Divided by the number of classes, too, as in the authors' code. Both `(batch class)`.
    """
    ours, clips = logits.log_softmax(dim=-1), clip_logits.log_softmax(dim=-1)
    return F.kl_div(ours, clips, reduction="sum", log_target=True) / logits.numel()


def gaussian_weights(epochs: int, mean: float, std: float) -> list[float]:
    """The weight of each epoch: the density of N(mean, std²) at 1, 2, ..., scaled to a sum of 1."""
    epoch = torch.arange(1, epochs + 1, dtype=torch.float64)
    return torch.softmax(-0.5 * ((epoch - mean) / std) ** 2, dim=0).tolist()


@TRAINER_REGISTRY.register()
class PromptSRC(SelfRegulation, IVLP):
    """Self-regulating prompts."""

    settings: ClassVar = {
        **IVLP.settings,
        **SelfRegulation.regulation,
        "N_CTX_VISION": 4,
        "N_CTX_TEXT": 4,
    }
    recipe: ClassVar = {"OPTIM.LR": 0.0025, "OPTIM.MAX_EPOCH": 20}


@TRAINER_REGISTRY.register()
class MaPLeSRC(SelfRegulation, MaPLe):
    """PromptSRC's losses and mean on MaPLe's coupled prompts."""

    settings: ClassVar = {**MaPLe.settings, **SelfRegulation.regulation}
    recipe: ClassVar = {"OPTIM.LR": 0.0035, "OPTIM.MAX_EPOCH": 20}
