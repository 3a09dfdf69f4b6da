"""Tip-Adapter: Training-free Adaption of CLIP. Zhang et al., ECCV 2022, arXiv 2207.09519.

The training images are a cache: their features are keys, their labels values. How near an image's features
are to the keys is added to the logits of zero-shot CLIP. Tip-Adapter-F goes on to learn the keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dassl.engine import TRAINER_REGISTRY
from dassl.engine.identity import image_root, sha256_of_images
from prompted_clip.errors import UserError
from prompted_clip.model import CLIP
from prompted_clip.prompt_learner import FrozenText, PromptLearner, at_least_float32

from . import features
from .clip_trainer import CLIPPromptTrainer
from .templates import COUNTS, templates_of

SCALE = 100.0  # of the zero-shot logits, whatever CLIP's own is


class Cache(FrozenText):
    """Keys, `(image feature)`, and the labels of their images; zero-shot CLIP until they are made.

    Args:
        images: how many there are.
        alpha: weight of the cache.
        beta: how much nearer keys count more.
        learns: whether the keys are learned.
    """

    class_specific = True
    labels: Tensor  # (image)
    alpha: Tensor
    beta: Tensor

    def __init__(
        self,
        clip_model: CLIP,
        classnames: Sequence[str],
        templates: Sequence[str],
        images: int,
        alpha: float = 1.0,
        beta: float = 1.0,
        learns: bool = True,
        keep: bool = False,
    ) -> None:
        super().__init__(clip_model, classnames, templates, keep_underscores=keep)
        keys = torch.zeros(images, clip_model.text_projection.shape[1])
        self.weight = nn.Parameter(keys, requires_grad=learns)
        self.register_buffer("labels", torch.arange(images) % len(classnames))
        self.register_buffer("alpha", torch.tensor(float(alpha)))
        self.register_buffer("beta", torch.tensor(float(beta)))

    def make_room(self, state: Mapping[str, Any]) -> None:
        images = getattr(state.get("labels"), "shape", ())
        if len(images) == 1 and images != self.labels.shape:
            self.weight.data = self.weight.new_zeros(*images, self.weight.shape[1])
            self.labels = self.labels.new_zeros(images)

    def cached(self, image_features: Tensor, beta: Tensor | float, classes: int) -> Tensor:
        """What the cache says of normalised image features, `(batch class)`."""
        affinity = at_least_float32(image_features @ self.weight.t())
        values = self.labels[:, None] == torch.arange(classes, device=affinity.device)
        return (beta * (affinity - 1)).exp() @ values.to(affinity.dtype)

    def logits(self, clip_model: CLIP, image_features: Tensor, text_features: Tensor) -> Tensor:
        zero_shot = SCALE * at_least_float32(image_features @ text_features.t())
        return zero_shot + self.alpha * self.cached(image_features, self.beta, len(text_features))


@TRAINER_REGISTRY.register()
class TipAdapter(CLIPPromptTrainer):
    """Tip-Adapter-F, or Tip-Adapter where FINE_TUNE is False.

    The cache is made of `DATALOADER.VIEWS` views of each image, of one where that is 0; the keys are learned
    from a new augmentation in each epoch. Choices on the test images, which the authors' code has, are not
    offered: the last step is tested.
    """

    settings: ClassVar = {
        "FINE_TUNE": True,  # learns the keys (Tip-Adapter-F); False: nothing is trained (Tip-Adapter)
        "ALPHA": 1.17,  # weight of the cache beside zero-shot CLIP, 0 or more; the authors have 1.17 to 10
        "BETA": 1.0,  # how much nearer keys count more, 0 or more
        "SEARCH": "none",  # `none`; `val`: ALPHA and BETA are chosen on the val images, at the end
        "SEARCH_SCALE": (7.0, 3.0),  # the search ends below this beta and this alpha; both begin at 0.1
        "SEARCH_STEP": (200, 20),  # how many betas and alphas are tried
        # Sentences of a class of ImageNet: 8, seven that OpenAI's search selected and "a photo of a {}."; 7,
        # without that; or 1, that alone.
        "IMAGENET_TEMPLATES": 7,
        "KEEP_UNDERSCORES": False,  # `_` in a class name stays; False: it is a space, as published
        "PREC": "fp32",
    }
    model_name = "tip_adapter"
    prefixed_keys = False
    class_specific = True
    trains_on_views = False
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 256,
        "DATALOADER.TRAIN_X.DROP_LAST": False,
        "DATALOADER.VIEWS": 10,
        "INPUT.RRCROP_SCALE": (0.5, 1.0),
        "OPTIM.NAME": "adamw",
        "OPTIM.LR": 0.001,
        "OPTIM.EPS": 1e-4,
        "OPTIM.WEIGHT_DECAY": 0.01,
        "OPTIM.MAX_EPOCH": 20,
        "OPTIM.SCHEDULE_BY": "iteration",
        "OPTIM.WARMUP_EPOCH": 0,
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        for key in ("ALPHA", "BETA"):
            self.check_setting(cfg, key, at_least=0, why="the authors have 1 or more")
        self.check_setting(cfg, "IMAGENET_TEMPLATES", one_of=COUNTS)
        self.check_setting(cfg, "SEARCH", one_of=("none", "val"))
        own, section = cfg.TRAINER[self.settings_key()], f"TRAINER.{self.settings_key()}"
        for key in ("SEARCH_SCALE", "SEARCH_STEP"):
            if len(own[key]) != 2 or min(own[key]) <= 0:
                raise UserError(f"{section}.{key} is {own[key]}; allowed are two numbers above 0.")
        if own.SEARCH == "val" and cfg.TEST.FINAL_MODEL == "best_val":
            raise UserError(f"{section}.SEARCH is val; TEST.FINAL_MODEL best_val does not go with it.")

    @classmethod
    def selected_on(cls, settings: Mapping[str, Any]) -> str:
        searched = settings.get(f"TRAINER.{cls.settings_key()}.SEARCH") == "val"
        return "val" if searched else super().selected_on(settings)

    def build_learner(self, clip_model: CLIP, classnames: Sequence[str]) -> PromptLearner:
        own, templates = self.own_settings, templates_of(self.cfg, self.dm.dataset)
        loader = getattr(self.dm, "train_loader_x", None)
        images = (
            len(classnames) * max(1, self.cfg.DATASET.NUM_SHOTS) if loader is None else len(loader.dataset)
        )
        return Cache(
            clip_model,
            classnames,
            templates,
            images,
            own.ALPHA,
            own.BETA,
            own.FINE_TUNE,
            own.KEEP_UNDERSCORES,
        )

    def model_parts(self) -> dict[str, str]:
        dataset = self.dm.dataset
        val = (getattr(dataset, "val", None) or ()) if self.own_settings.SEARCH == "val" else ()
        searched = sha256_of_images(val, image_root(self.cfg, dataset)) if val else ""
        return {**super().model_parts(), "searched_images": searched or ""}

    def total_steps(self) -> int:
        # Without training, one epoch, in which there is nothing to do.
        return super().total_steps() if self.own_settings.FINE_TUNE else self.batches_per_epoch()

    def before_train(self) -> None:
        if self.own_settings.SEARCH == "val" and self.val_loader is None:
            raise UserError(
                f"TRAINER.{self.settings_key()}.SEARCH is val, but there are no val images; choose none."
            )
        if not self.cfg.MODEL.INIT_WEIGHTS:
            self.fill_cache()
        super().before_train()

    @torch.no_grad()
    def fill_cache(self) -> None:
        """Has the keys be the mean features of each training image's views, of length 1."""
        learner: Any = self.model.prompt_learner
        views, labels = self.view_features
        learner.weight.copy_(F.normalize(views.mean(dim=0), dim=-1))
        learner.labels.copy_(labels)

    def run_epoch(self) -> None:
        if self.own_settings.FINE_TUNE:
            super().run_epoch()

    def after_epoch(self) -> None:
        if self.own_settings.SEARCH == "val" and self.epoch + 1 == self.max_epoch:
            learner: Any = self.model.prompt_learner
            beta, alpha = self.search()
            learner.alpha.fill_(alpha)
            learner.beta.fill_(beta)
            print(f"Chosen on the val images: alpha {alpha:.4g}, beta {beta:.4g}")
        super().after_epoch()

    @torch.no_grad()
    def search(self) -> tuple[float, float]:
        """Beta and alpha with the best accuracy on the val images; of equals the first; 0 if all have 0."""
        learner: Any = self.model.prompt_learner
        own, text = self.own_settings, self.model.encode_text()
        batches = features.encoded(self, self.val_loader)
        images = F.normalize(torch.cat([batch["img"] for batch in batches]), dim=-1)
        labels = torch.cat([batch["label"] for batch in batches]).to(images.device)
        zero_shot = SCALE * images @ text.t()
        betas, alphas = (
            [0.1 + step * (most - 0.1) / steps for step in range(steps)]
            for most, steps in zip(own.SEARCH_SCALE, own.SEARCH_STEP, strict=True)
        )
        best, found = 0, (0.0, 0.0)
        for beta in betas:
            cached = learner.cached(images, beta, len(text))
            for alpha in alphas:
                right = int(((zero_shot + alpha * cached).argmax(dim=-1) == labels).sum())
                if right > best:
                    best, found = right, (beta, alpha)
        return found
