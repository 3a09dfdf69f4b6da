"""Prompt learning as foreign trainers write it, and what a run printed and changed."""

from __future__ import annotations

import math
import re
import sys
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dassl.engine import TrainerX
from dassl.optim import build_lr_scheduler, build_optimizer
from foreign.toy import CLASSES, WIDTH, TinyCLIP


class PromptLearner(nn.Module):
    """Context tokens between buffers of the words, which depend on the classes."""

    def __init__(self, classnames: list[str], clip_model: TinyCLIP, n_ctx: int = 2) -> None:
        super().__init__()
        words = clip_model.token_embedding.weight.detach()[[CLASSES.index(name) for name in classnames]]
        self.ctx = nn.Parameter(torch.zeros(n_ctx, WIDTH))
        self.register_buffer("token_prefix", torch.ones(len(classnames), 1, WIDTH))
        self.register_buffer("token_suffix", words[:, None])

    def forward(self) -> Tensor:
        """`(class token width)`."""
        ctx = self.ctx.expand(len(self.token_prefix), -1, -1)
        return torch.cat([self.token_prefix, ctx, self.token_suffix], dim=1)


class CustomCLIP(nn.Module):
    def __init__(self, classnames: list[str], clip_model: TinyCLIP) -> None:
        super().__init__()
        self.prompt_learner = PromptLearner(classnames, clip_model)
        self.clip_model = clip_model

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(batch class)`."""
        text = self.clip_model.encode_prompts(self.prompt_learner())
        return self.clip_model.logit_scale.exp() * self.clip_model.encode_image(image) @ text.t()


class LearnedContext(TrainerX):
    """The least of a trainer for `CustomCLIP`; others override something of it."""

    def build_model(self):
        self.model = CustomCLIP(self.dm.dataset.classnames, TinyCLIP()).requires_grad_(False)
        self.model.prompt_learner.ctx.requires_grad_(True)
        self.optim = build_optimizer(self.model.prompt_learner, self.cfg.OPTIM)
        self.sched = build_lr_scheduler(self.optim, self.cfg.OPTIM)
        self.register_model("prompt_learner", self.model.prompt_learner, self.optim, self.sched)

    def forward_backward(self, batch):
        image, label, _ = self.parse_batch_train(batch)
        loss = F.cross_entropy(self.model(image), label)
        self.model_backward_and_update(loss)
        if (self.batch_idx + 1) == self.num_batches:
            self.update_lr()
        return {"loss": loss.item()}


class Printed(NamedTuple):
    """What a script reads in the log of a run."""

    text: str
    losses: list[float]
    accuracies: list[float]


def run_and_read(capsys: pytest.CaptureFixture[str], run: Any) -> Printed:
    """Calls `run`; every line of a batch has a finite loss."""
    capsys.readouterr()
    run()
    text = capsys.readouterr().out
    line = r"^epoch \[\d+/\d+\] batch \[\d+/\d+\] time .* data .* loss (\S+) \(\S+\) .*lr \S+ eta \S+$"
    losses = [float(loss) for loss in re.findall(line, text, re.MULTILINE)]
    assert len(losses) == text.count("] batch [")
    assert all(math.isfinite(loss) for loss in losses)
    result = r"^=> result\n\* total: [\d,]+\n\* correct: [\d,]+\n\* accuracy: (\d+\.\d\d)%$"
    return Printed(text, losses, [float(accuracy) for accuracy in re.findall(result, text, re.MULTILINE)])


def tensors(module: nn.Module) -> dict[str, Tensor]:
    """Copies of all parameters."""
    return {name: parameter.detach().clone() for name, parameter in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    """The names of the parameters that are not as they were."""
    return {name for name, now in tensors(module).items() if not torch.equal(now, before[name])}


@pytest.fixture(autouse=True)
def without_tensorboard(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes seconds to import."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
