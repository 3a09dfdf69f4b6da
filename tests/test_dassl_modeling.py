"""Backbones and heads by name."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from dassl.modeling import (
    BACKBONE_REGISTRY,
    HEAD_REGISTRY,
    NETWORK_REGISTRY,
    Backbone,
    build_backbone,
    build_head,
    build_network,
)

WIDTHS = {"resnet18": 512, "resnet34": 512, "resnet50": 2048, "resnet101": 2048, "resnet152": 2048}


@pytest.mark.parametrize("name", WIDTHS)
def test_a_resnet_gives_torchvisions_features(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("meta"):  # only shapes and names
        backbone = build_backbone(name, pretrained=False)
        whole = torchvision.models.get_model(name, weights=None)
        features = backbone(torch.empty(2, 3, 32, 32))
    assert capsys.readouterr().out == f"Backbone: {name}\n"
    assert isinstance(backbone, Backbone)
    assert backbone.out_features == WIDTHS[name]
    assert features.shape == (2, WIDTHS[name])
    assert list(backbone.state_dict()) == [key for key in whole.state_dict() if not key.startswith("fc.")]


def test_features_are_those_before_the_classifier() -> None:
    torch.manual_seed(0)
    whole = torchvision.models.resnet18(weights=None).eval()
    backbone = build_backbone("resnet18", verbose=False, pretrained=False).eval()
    backbone.load_state_dict({k: v for k, v in whole.state_dict().items() if not k.startswith("fc.")})
    images = torch.randn(2, 3, 40, 48)
    assert torch.equal(whole.fc(backbone(images)), whole(images))


def test_an_mlp_head() -> None:
    head = build_head(
        "mlp", verbose=False, in_features=8, hidden_layers=(6, 4), activation="relu", bn=True, dropout=0.5
    )
    kinds = [type(layer) for layer in head.mlp]
    assert kinds == [nn.Linear, nn.BatchNorm1d, nn.ReLU, nn.Dropout] * 2
    assert head(torch.randn(3, 8)).shape == (3, 4)
    assert head.out_features == 4
    plain = build_head(
        "mlp", verbose=False, in_features=8, hidden_layers=5, activation="leaky_relu", bn=False
    )
    assert [type(layer) for layer in plain.mlp] == [nn.Linear, nn.LeakyReLU]


def test_names_can_be_added_and_wrong_ones_are_errors() -> None:
    @NETWORK_REGISTRY.register(force=True)
    def tiny(width: int = 1) -> nn.Module:
        return nn.Linear(width, width)

    assert build_network("tiny", verbose=False, width=3).in_features == 3
    del NETWORK_REGISTRY._obj_map["tiny"]
    for build in (build_backbone, build_head, build_network):
        with pytest.raises(ValueError, match="'resnet19'"):
            build("resnet19")
    with pytest.raises(ValueError, match="did you mean 'resnet1"):
        build_backbone("resnet19")
    with pytest.raises(ValueError, match="HIDDEN_LAYERS"):
        build_head("mlp", verbose=False, in_features=8)
    with pytest.raises(ValueError, match="relu"):
        build_head("mlp", verbose=False, in_features=8, hidden_layers=(4,), activation="reluu")
    assert set(WIDTHS) <= set(BACKBONE_REGISTRY.registered_names())
    assert "mlp" in HEAD_REGISTRY.registered_names()
