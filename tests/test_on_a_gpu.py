"""What only a GPU can show; left out on a machine without one, where a stand-in has its place elsewhere."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers import ROOT

from trainers.step_graph import WARM_UPS, replayable

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

NAMES = ["abyssinian", "bengal", "german shorthaired", "siamese"]
METHODS = ["CoOp", "CoCoOp", "KgCoOp", "VPT", "IVLP", "MaPLe", "PromptSRC", "MaPLeSRC"]
NOTICE = "The training step is not replayed as a CUDA graph"
STEPS = 8


@pytest.fixture
def make_trainer(bare_trainer, golden_checkpoint):
    def make(name: str, prec: str = "fp32", *options: Any) -> Any:
        words = ["USE_CUDA", True, "INPUT.SIZE", (32, 32), f"TRAINER.{name.upper()}.PREC", prec]
        words += ["OPTIM.LR", 0.01, *options]
        torch.manual_seed(0)
        run = bare_trainer(
            name, golden_checkpoint("tiny_public"), NAMES, words, "vit_b16.yaml", template="a {}."
        )
        run.num_batches = STEPS
        return run

    return make


def train(run: Any, epochs: int = 2) -> list[float]:
    """The loss of each step; the last batch of an epoch is not complete."""
    torch.manual_seed(1)
    losses = []
    for epoch in range(epochs):
        run.epoch = epoch
        run.before_epoch()
        for index in range(STEPS):
            run.batch_idx = index
            size = 2 if index < STEPS - 1 else 1
            batch = {"img": torch.randn(size, 3, 32, 32), "label": torch.randint(4, (size,))}
            losses.append(run.forward_backward(batch)["loss"])
    return [float(each) for each in losses]


@pytest.mark.parametrize("prec", ["fp32", "fp16", "bf16", "amp"])
@pytest.mark.parametrize("name", METHODS)
def test_a_graph_takes_the_steps_computed_anew(name, prec, make_trainer, capsys):
    run = make_trainer(name, prec)
    losses = train(run)
    assert run.replayed_step.recording is not None
    assert NOTICE not in capsys.readouterr().out
    right = train(make_trainer(name, prec, "TRAIN.CUDA_GRAPHS", "off"))
    assert losses == pytest.approx(right, rel=1e-4 if prec == "fp32" else 3e-2)


def test_chunks_of_classes_are_replayed(make_trainer, capsys):
    run = make_trainer("MaPLe", "fp32", "MODEL.TEXT_CHUNK", 2)
    losses = train(run)
    assert run.replayed_step.recording is not None
    assert NOTICE not in capsys.readouterr().out
    assert losses == pytest.approx(train(make_trainer("MaPLe", "fp32", "TRAIN.CUDA_GRAPHS", "off")), rel=1e-4)


def test_a_step_that_waits_for_the_gpu_is_computed_anew(make_trainer, capsys):
    run = make_trainer("CoOp")

    @replayable
    def losses(images: Any, labels: Any) -> dict[str, Any]:
        logits = run.model(images)
        return {"loss_ce": F.cross_entropy(logits, labels) * (1 if logits.max().item() < 1e9 else 2)}

    run.losses = losses
    ours = train(run)
    printed = capsys.readouterr().out
    assert printed.count(NOTICE) == 1
    assert "it cannot run without waiting for the GPU" in printed
    assert ours == pytest.approx(train(make_trainer("CoOp", "fp32", "TRAIN.CUDA_GRAPHS", "off")), rel=1e-4)


def test_a_recording_that_fails_leaves_the_device_as_it_was(make_trainer, capsys):
    run = make_trainer("CoOp")
    calls = []

    @replayable
    def losses(images: Any, labels: Any) -> dict[str, Any]:
        calls.append(1)
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()  # is not allowed there
        return {"loss_ce": F.cross_entropy(run.model(images), labels)}

    run.losses = losses
    ours = train(run)
    assert len(calls) > WARM_UPS
    printed = capsys.readouterr().out
    assert printed.count(NOTICE) == 1
    assert "it cannot be recorded" in printed
    assert ours == pytest.approx(train(make_trainer("CoOp", "fp32", "TRAIN.CUDA_GRAPHS", "off")), rel=1e-4)
    torch.rand(3, device="cuda")


def command(folder: Path, *flags: str, options: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """A short training of MaPLe on the embedded dataset."""
    words = [sys.executable, "train.py", "--trainer", "MaPLe", *flags, "--output-dir", str(folder)]
    words += ["OPTIM.MAX_EPOCH", "2", *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)


def test_a_run_of_the_embedded_dataset(tmp_path):
    done = command(tmp_path / "run")
    assert done.returncode == 0, done.stderr
    assert NOTICE not in done.stdout
    assert "prototype" not in done.stderr
    assert "accuracy" in done.stdout


def test_a_loss_that_is_not_finite_ends_the_run(tmp_path):
    done = command(tmp_path / "run", options=("OPTIM.LR", "1e30"))
    assert done.returncode == 2
    assert "Loss is infinite or NaN! (epoch 2, batch " in done.stderr
    assert "Traceback" not in done.stderr
