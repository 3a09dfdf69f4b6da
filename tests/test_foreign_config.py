"""Configurations of foreign projects: they lack the keys that only our engine has, and hold None."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from foreign.prompts import LearnedContext, run_and_read, without_tensorboard
from foreign.toy import toy_cfg
from yacs.config import CfgNode

from dassl.config import get_cfg_default

assert without_tensorboard  # a fixture for each test here

LOG = Path(__file__).parent / "golden" / "logs" / "train_base" / "seed1" / "log.txt"


def leaves(node, prefix=""):
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def upstream_keys():
    """The keys of upstream's `get_cfg_default()`, as a run of the reference printed them."""
    text = LOG.read_text().split("** Config **\n************\n")[1].split("Collecting env info")[0]
    return set(leaves(yaml.safe_load(text)))


OWN_KEYS = sorted(set(leaves(get_cfg_default())) - upstream_keys())


def delete(cfg, key):
    *sections, name = key.split(".")
    for section in sections:
        cfg = cfg[section]
    del cfg[name]


def train(folder, capsys, *without):
    cfg = toy_cfg(folder, DATASET__ALL_AS_UNLABELED=True, DATALOADER__TRAIN_U__SAME_AS_X=False)
    if "DATALOADER.TRAIN_U" in without:
        cfg.DATASET.ALL_AS_UNLABELED = False
    for key in without:
        delete(cfg, key)
    cfg = CfgNode(cfg)  # yacs' own, as a project that builds its configuration by itself has it
    cfg.freeze()
    return run_and_read(capsys, LearnedContext(cfg).train)


def test_there_are_keys_of_our_own():
    assert "TRAIN.CHECKPOINTS_KEPT" in OWN_KEYS
    assert "OPTIM.LR" not in OWN_KEYS


@pytest.mark.parametrize(
    "keys", [*([key] for key in OWN_KEYS), OWN_KEYS, ["DATALOADER.TRAIN_U"]], ids=",".join
)
def test_a_configuration_without_our_keys_trains_the_same(tmp_path, capsys, keys):
    whole = train(tmp_path / "whole", capsys)
    printed = train(tmp_path / "without", capsys, *keys)
    assert len(printed.losses) == 8
    assert printed.losses == whole.losses
    assert printed.accuracies == whole.accuracies


@pytest.mark.parametrize("key", sorted(leaves(get_cfg_default())))
def test_none_may_stand_in_place_of_any_type(key, tmp_path):
    cfg = get_cfg_default()
    cfg.merge_from_list([key, "None"])
    values = None
    for part in reversed(key.split(".")):
        values = {part: values}
    (tmp_path / "none.yaml").write_text(yaml.safe_dump(values))
    from_file = get_cfg_default()
    from_file.merge_from_file(str(tmp_path / "none.yaml"))
    assert cfg == from_file
    node = cfg
    for part in key.split("."):
        node = node[part]
    assert node is None
    cfg.merge_from_list([key, "5"])  # and any type in place of None
    with pytest.raises(ValueError, match="is a section of keys"):
        cfg.merge_from_list(["OPTIM", "5"])


def test_none_where_the_engine_needs_no_number(tmp_path, capsys):
    nothing = ["DATALOADER.CACHE_GB", "DATALOADER.TEST_CACHE", "DATALOADER.TEST_CACHE_GB"]
    nothing += ["TRAIN.CHECKPOINTS_KEPT", "TEST.SAVE_PREDICTIONS", "OPTIM.STEPSIZE", "INPUT.CROP_PADDING"]
    cfg = toy_cfg(tmp_path)
    cfg.merge_from_list([part for key in nothing for part in (key, "None")])
    assert len(run_and_read(capsys, LearnedContext(cfg).train).losses) == 8


# ProGrad


class Prograd(LearnedContext):
    """Two losses of one linear layer, whose gradients are known."""

    def build_model(self):
        self.model = torch.nn.ParameterDict(
            {name: torch.nn.Parameter(torch.zeros(2)) for name in ("a", "b", "c", "frozen", "unused")}
        )
        self.model["frozen"].requires_grad_(False)
        self.register_model("model", self.model, torch.optim.SGD(self.model.parameters(), 1.0))
        self.register_model("other", torch.nn.Linear(1, 1))


@pytest.mark.parametrize("lambda_", [1, 0.5])
def test_prograd_takes_out_what_raises_the_second_loss(tmp_path, lambda_):
    trainer = Prograd(toy_cfg(tmp_path))
    against, along, at_rest = torch.tensor([[2.0, 3.0], [2.0, 3.0], [2.0, 3.0]])
    weights = trainer.model
    loss_a = (against * weights["a"] + along * weights["b"] + at_rest * weights["c"]).sum()
    # Against a's gradient in its first entry; along it; of gradient 0.
    loss_b = (torch.tensor([-5.0, 0.0]) * weights["a"] + torch.tensor([0.0, 7.0]) * weights["b"]).sum()
    loss_b = loss_b + (0 * weights["c"]).sum()
    trainer.prograd_backward_and_update(loss_a, loss_b, lambda_, names="model")
    assert weights["a"].tolist() == [-2.0 * (1 - lambda_), -3.0]
    assert weights["b"].tolist() == weights["c"].tolist() == [-2.0, -3.0]
    assert weights["frozen"].tolist() == weights["unused"].tolist() == [0.0, 0.0]


def test_prograd_of_a_loss_that_is_not_finite(tmp_path):
    trainer = Prograd(toy_cfg(tmp_path))
    loss = trainer.model["a"].sum()
    for losses in ((loss, loss / 0), (loss / 0, loss)):
        with pytest.raises(FloatingPointError):
            trainer.prograd_backward_and_update(*losses)
    assert trainer.model["a"].tolist() == [0.0, 0.0]
