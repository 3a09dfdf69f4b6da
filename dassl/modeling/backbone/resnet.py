"""ResNets (https://arxiv.org/abs/1512.03385) from torchvision, without the classifier."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .backbone import Backbone
from .build import BACKBONE_REGISTRY


class ResNet(Backbone):
    """torchvision's ResNet up to the pooled features; parameters keep torchvision's names.

    Args:
        name: torchvision's name.
        pretrained: weights trained on ImageNet, downloaded once by torchvision.
    """

    def __init__(self, name: str, pretrained: bool) -> None:
        from torchvision.models import get_model, get_model_weights  # here, as it takes seconds

        super().__init__()
        weights = get_model_weights(name)["IMAGENET1K_V1"] if pretrained else None
        network = get_model(name, weights=weights)
        for child_name, child in network.named_children():
            if child_name != "fc":
                self.add_module(child_name, child)
        self._out_features = network.fc.in_features

    def forward(self, x: Tensor) -> Tensor:
        """From images `(batch 3 height width)` to features `(batch out_features)`."""
        for child in self.children():  # conv1 bn1 relu maxpool layer1 layer2 layer3 layer4 avgpool
            x = child(x)
        return x.flatten(1)


@BACKBONE_REGISTRY.register()
def resnet18(pretrained: bool = True, **kwargs: Any) -> ResNet:
    return ResNet("resnet18", pretrained)


@BACKBONE_REGISTRY.register()
def resnet34(pretrained: bool = True, **kwargs: Any) -> ResNet:
    return ResNet("resnet34", pretrained)


@BACKBONE_REGISTRY.register()
def resnet50(pretrained: bool = True, **kwargs: Any) -> ResNet:
    return ResNet("resnet50", pretrained)


@BACKBONE_REGISTRY.register()
def resnet101(pretrained: bool = True, **kwargs: Any) -> ResNet:
    return ResNet("resnet101", pretrained)


@BACKBONE_REGISTRY.register()
def resnet152(pretrained: bool = True, **kwargs: Any) -> ResNet:
    return ResNet("resnet152", pretrained)
