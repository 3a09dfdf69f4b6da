"""A plain network for image classification."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from yacs.config import CfgNode

from dassl.modeling import build_backbone, build_head


class SimpleNet(nn.Module):
    """A backbone, a head where one is named, and a linear classifier where there are classes.

    Args:
        cfg: reads `VERBOSE`.
        model_cfg: the node that describes the model, `cfg.MODEL` or one like it.
        num_classes: 0 leaves the classifier out.
        kwargs: handed to the backbone and to the head.
    """

    def __init__(self, cfg: CfgNode, model_cfg: CfgNode, num_classes: int, **kwargs: Any) -> None:
        super().__init__()
        self.backbone = build_backbone(
            model_cfg.BACKBONE.NAME,
            verbose=cfg.VERBOSE,
            pretrained=model_cfg.BACKBONE.PRETRAINED,
            **kwargs,
        )
        self._fdim = self.backbone.out_features
        self.head = None
        head_cfg = model_cfg.HEAD
        if head_cfg.NAME and head_cfg.HIDDEN_LAYERS:
            self.head = build_head(
                head_cfg.NAME,
                verbose=cfg.VERBOSE,
                in_features=self._fdim,
                hidden_layers=head_cfg.HIDDEN_LAYERS,
                activation=head_cfg.ACTIVATION,
                bn=head_cfg.BN,
                dropout=head_cfg.DROPOUT,
                **kwargs,
            )
            self._fdim = self.head.out_features
        self.classifier = nn.Linear(self._fdim, num_classes) if num_classes > 0 else None

    @property
    def fdim(self) -> int:
        """Width of the features."""
        return self._fdim

    def forward(self, x: Tensor, return_feature: bool = False) -> Any:
        """Scores `(batch class)`, or features `(batch width)` where there are no classes.

        With `return_feature` a pair of both.
        """
        features = self.backbone(x)
        if self.head is not None:
            features = self.head(features)
        if self.classifier is None:
            return features
        scores = self.classifier(features)
        return (scores, features) if return_feature else scores
