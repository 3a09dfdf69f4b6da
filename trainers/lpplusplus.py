"""LP++: a linear probe with class-wise multipliers of the text. Huang et al., CVPR 2024, arXiv 2404.02285.

z = f wᵀ + b + α ⊙ (f tᵀ) of normalised image features f and text features t, without a temperature; w, b and
α, a number for each class, are learned on all training images at once, at learning rates that they give.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl.optim import build_lr_scheduler, build_optimizer
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import FrozenText, PromptLearner

from .clip_trainer import CLIPPromptTrainer
from .features import ViewLoader
from .templates import COUNTS, templates_of

ALPHA = 250.0  # α starts from this times the mean cosine of images and their own text


class Probe(FrozenText):
    """w `(class feature)`, b `(class)` and α `(1 class)`; zero-shot CLIP but for b, until training begins."""

    class_specific = True

    def __init__(
        self, clip_model: CLIP, classnames: Sequence[str], templates: Sequence[str], keep: bool = False
    ) -> None:
        super().__init__(clip_model, classnames, templates, keep_underscores=keep)
        width, classes = clip_model.text_projection.shape[1], len(classnames)
        self.weight = nn.Parameter(torch.zeros(classes, width))
        self.bias = nn.Parameter(torch.empty(classes).uniform_(-(width**-0.5), width**-0.5))  # as nn.Linear
        self.alpha = nn.Parameter(clip_model.logit_scale.detach().exp().cpu().repeat(1, classes))

    def logits(self, clip_model: CLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
        cosines = image_features @ text_features.t()
        return F.linear(image_features, self.weight, self.bias) + self.alpha * cosines


@TRAINER_REGISTRY.register()
class LPPlusPlus(CLIPPromptTrainer):
    """LP++; it trains on features of `DATALOADER.VIEWS` views, of one where that is 0, all in one batch."""

    settings: ClassVar = {
        "ALPHA_EVERY": 10,  # epochs from one step of α to the next, 1 or more
        # Gradient of α in its step: `published`, the sum over all epochs so far, as the authors' code never
        # clears it; `true`, of this epoch alone.
        "ALPHA_GRADIENT": "published",
        # Sentences of a class of ImageNet: 8, seven that OpenAI's search selected and "a photo of a {}."; 7,
        # without that; or 1, that alone.
        "IMAGENET_TEMPLATES": 7,
        "KEEP_UNDERSCORES": False,  # `_` in a class name stays; False: it is a space, as published
        "PREC": "fp32",
    }
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 256,  # not used: all images are one batch
        "DATALOADER.VIEWS": 1,
        "INPUT.RRCROP_SCALE": (0.5, 1.0),
        "OPTIM.LR": 1.0,  # a factor of the learning rates
        "OPTIM.LR_SCHEDULER": "single_step",  # constant
        "OPTIM.MAX_EPOCH": 300,
        "OPTIM.WARMUP_EPOCH": 0,
        "OPTIM.WEIGHT_DECAY": 0.0,
    }
    model_name = "lpplusplus"
    prefixed_keys = False
    class_specific = True

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "ALPHA_EVERY", at_least=1, why="the authors have 10")
        self.check_setting(cfg, "ALPHA_GRADIENT", one_of=("published", "true"))
        self.check_setting(cfg, "IMAGENET_TEMPLATES", one_of=COUNTS)
        if cfg.OPTIM.NAME != "sgd":
            raise UserError(
                f"OPTIM.NAME is {cfg.OPTIM.NAME}; allowed is sgd: LP++ has learning rates for it, which "
                "OPTIM.LR multiplies."
            )

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        templates = templates_of(self.cfg, self.dm.dataset)
        return Probe(clip_model, classnames, templates, self.own_settings.KEEP_UNDERSCORES)

    def build_model(self) -> None:
        super().build_model()
        self.scaler = torch.amp.GradScaler(enabled=False)  # α's gradients are added up, of one scale

    def build_data_loader(self) -> None:
        super().build_data_loader()
        if self.train_loader_x is not None:
            self.train_loader_x = ViewLoader(self.dm.train_loader_x, self, whole=True)

    def before_train(self) -> None:
        """Has what is learned start from the training images, and learn by the rates that they give."""
        learner = self.model.prompt_learner
        rates, start = self.start()
        if not self.cfg.MODEL.INIT_WEIGHTS:
            for name, value in start.items():
                getattr(learner, name).data.copy_(value)
        self.rates = tuple(self.cfg.OPTIM.LR * rate for rate in rates)
        print("Learning rates of the weights and of alpha: {:.4g}, {:.4g}".format(*self.rates))
        self.optim = build_optimizer(learner, self.cfg.OPTIM, self.parameter_groups(learner))
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM, self.schedule_phases())
        self.register_model(self.model_name, learner, self.optim, self.sched)
        super().before_train()

    @torch.no_grad()
    def start(self) -> tuple[tuple[float, float], dict[str, Tensor]]:
        """The learning rates of w and α of the formulas, and what w and α start from."""
        features, labels = self.view_features.rows()
        images, text = F.normalize(features, dim=-1), self.model.encode_text()
        of_class = F.one_hot(labels, len(text)).to(images.dtype)  # (row class)
        cosines = images @ text.t()
        own = (cosines * of_class).sum(dim=0) / of_class.sum(dim=0).clamp(min=1)
        alpha = ALPHA * own.mean()
        if alpha < 0:
            print(
                f"Warning: alpha starts from {alpha:.4g}, so that it speaks against CLIP's text, as published"
            )
        largest = torch.linalg.eigvalsh((images.t() @ images).double())[-1]
        rates = 4 * len(images) / float(largest), len(images) / (4 * float(cosines.square().sum(dim=0).max()))
        return rates, {"weight": of_class.t() @ images, "alpha": alpha}  # w: the sum of a class's features

    def parameter_groups(self, learner: PromptLearner) -> list[dict[str, Any]]:
        rate, alpha_rate = getattr(self, "rates", 2 * (self.cfg.OPTIM.LR,))  # until the images are known
        return [
            {"params": [learner.weight, learner.bias], "lr": rate},
            {"params": [learner.alpha], "lr": alpha_rate, "momentum": 0.0},
        ]

    def optimizers_step(self, names: Sequence[str]) -> None:
        """A step of w and b; of α where it is its turn."""
        learner: Any = self.model.prompt_learner
        alpha = learner.alpha
        if self.own_settings.ALPHA_GRADIENT == "published":
            state = self.optim.state[alpha]  # which is saved
            alpha.grad = state["gradient"] = alpha.grad + state.get("gradient", 0)
        if (self.epoch + 1) % self.own_settings.ALPHA_EVERY:
            alpha.grad = None
        super().optimizers_step(names)

    def is_better(self, result: float) -> bool:
        return result >= self.best_result  # of equals the latest, as published
