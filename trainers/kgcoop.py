"""KgCoOp: Knowledge-guided Context Optimization. Yao et al., CVPR 2023, arXiv 2303.13283.

CoOp, held near CLIP's own text features of a hand-written sentence for each class.
"""

from __future__ import annotations

from functools import cached_property
from typing import ClassVar

import torch.nn.functional as F
from torch import Tensor

from dassl.engine import TRAINER_REGISTRY

from .coop import CoOp
from .step_graph import cuda_graph_safe
from .templates import template_of


@TRAINER_REGISTRY.register()
class KgCoOp(CoOp):
    """CoOp's cross entropy, and `W` times the distance of the learned text features from CLIP's own."""

    settings: ClassVar = {
        **CoOp.settings,
        "N_CTX": 4,
        "CTX_INIT": "a photo of a",
        "W": 8.0,  # weight of the knowledge-guided loss, 0 or more; 0 is CoOp
    }
    recipe: ClassVar = {
        "DATALOADER.TRAIN_X.BATCH_SIZE": 128,
        "OPTIM.LR": 0.002,
        "OPTIM.MAX_EPOCH": 100,
    }

    def check_cfg(self, cfg) -> None:
        super().check_cfg(cfg)
        self.check_setting(cfg, "W", at_least=0, why="the paper uses 8; 0 is CoOp")

    @cached_property
    def clip_text_features(self) -> Tensor:
        return self.frozen_text_features([template_of(self.dm.dataset)])

    @cuda_graph_safe
    def losses(self, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
        text_features = self.model.encode_text()
        logits = self.model.logits(self.model.encode_image(images), text_features)
        return {
            "loss_ce": F.cross_entropy(logits, labels),
            "loss_kg": self.own_settings.W * knowledge_loss(text_features, self.clip_text_features),
        }


def knowledge_loss(text_features: Tensor, clip_text_features: Tensor) -> Tensor:
    """1 − cos of each class's two features, both `(class feature)` and of length 1, in the mean.

    The paper has ‖w − w_clip‖², which is twice that; the published results are of the authors' code, which
    has the cosine and W = 8.
    """
    return 1 - (text_features * clip_text_features).sum(dim=-1).mean()
