"""What tests/test_data_parallel.py runs in one process, and this file, as a script, in two.

`python data_parallel_job.py FOLDER` leaves what each process has seen in `FOLDER/<process>.pt`.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from dassl.engine import TRAINER_REGISTRY, TrainerX, build_trainer
from dassl.utils import set_random_seed
from dassl.utils.distributed import all_reduce_mean, get_rank, rank_zero_first
from dassl.utils.torchrun import process_group
from datasets import shapes
from train import _check_processes, build_parser, command_line, setup_cfg
from trainers.maple import MaPLe

IMAGES = {"train": 2, "val": 1, "test": 3}  # of each class: quickly drawn
METHODS = ("CoOp", "CoCoOp", "VPT", "IVLP", "MaPLe", "KgCoOp", "PromptSRC", "MaPLeSRC")
METHODS += ("MMA", "MMRL", "MMRLpp", "TCP", "TwoStageFS")
CASES: dict[str, tuple[str, list[Any]]] = {name: (name, []) for name in METHODS} | {
    "CLIPLoRA": ("CLIPLoRA", ["TRAINER.CLIPLORA.DROPOUT", 0.0]),  # which each process draws by itself
    "CoPrompt": ("CoPrompt", ["TRAINER.COPROMPT.DESCRIPTIONS", "template", "DATALOADER.K_TRANSFORMS", 2]),
    "MaPLe, deeper than the encoders": ("MaPLe", ["TRAINER.MAPLE.PROMPT_DEPTH", 9]),
    "MaPLe, with workers": ("MaPLe", ["DATALOADER.NUM_WORKERS", 1]),
    "MaPLe, a batch of all": ("MaPLe", ["DATALOADER.TRAIN_X.BATCH_SIZE", 32]),
    "two views": ("TwoViews", ["DATALOADER.K_TRANSFORMS", 2]),
    "CoOp, by classes": (
        "CoOp",
        ["DATALOADER.TRAIN_X.SAMPLER", "RandomClassSampler", "DATALOADER.TRAIN_X.N_INS", 2],
    ),
}
AUGMENTED = ["INPUT.TRANSFORMS", ("random_resized_crop", "random_flip", "normalize")]
THREE_EPOCHS = ["OPTIM.MAX_EPOCH", 3, "TRAIN.CHECKPOINT_FREQ", 1, "TEST.NO_TEST", True]
RESUMED: dict[str, list[Any]] = {"no workers": [], "workers": ["DATALOADER.NUM_WORKERS", 1]}
REFUSED: dict[str, tuple[str, list[Any]]] = {
    "odd batch": ("MaPLe", ["DATALOADER.TRAIN_X.BATCH_SIZE", 3]),
    "own step": ("OwnStep", []),
    "foreign": ("Foreign", []),
}


class TwoViews(MaPLe):
    """A method that takes two views of each image, and the images' numbers."""

    settings = MaPLe.settings
    takes_views = True

    def parse_batch_train(self, batch: Any) -> Any:
        return *super().parse_batch_train(batch), batch["index"]

    def losses(self, views: Any, labels: Any, numbers: Any) -> Any:
        first, second = (self.model.encode_image(images) for images in views)
        terms = super().losses(views[0], labels)
        return {**terms, "loss_views": ((1 + numbers) * (first - 2 * second).square().sum(dim=1)).mean()}


class OwnStep(MaPLe):
    """A method that takes its steps itself."""

    settings = MaPLe.settings

    def forward_backward(self, batch: Any) -> dict[str, float]:
        return super().forward_backward(batch)


class Foreign(TrainerX):
    """A trainer of some other project, with training of its own."""

    def build_model(self) -> None:
        self.model = torch.nn.Linear(1, 1)
        self.register_model("model", self.model)

    def train(self) -> None:  # type: ignore[override]
        raise AssertionError("it is refused")


class Failing(MaPLe):
    """Its loss is infinite in the second process."""

    settings = MaPLe.settings

    def losses(self, images: Any, labels: Any) -> Any:
        factor = float("inf") if get_rank() == 1 else 1.0
        return {name: factor * term for name, term in super().losses(images, labels).items()}


class Stopped(MaPLe):
    """Ctrl-C reaches all processes in the second epoch."""

    settings = MaPLe.settings

    def losses(self, images: Any, labels: Any) -> Any:
        if self.epoch == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return super().losses(images, labels)


TRAINERS = (TwoViews, OwnStep, Foreign, Failing, Stopped)
# Settings and flags of train.py: 24 or 48 images, 144 to test.
SETTINGS = ["MODEL.BACKBONE.NAME", "ViT-Shapes/8", "INPUT.SIZE", (64, 64), "USE_CUDA", False]
SETTINGS += ["DATALOADER.NUM_WORKERS", 0, "DATALOADER.TRAIN_X.BATCH_SIZE", 8, "DATASET.NUM_SHOTS", 1]
SETTINGS += ["OPTIM.MAX_EPOCH", 2, "TRAIN.CHECKPOINT_FREQ", 1, "INPUT.TRANSFORMS", ("normalize",)]
COMMANDS: dict[str, list[Any]] = {
    "failing": ["--trainer", "Failing", "TRAINER.FAILING.PREC", "fp32"],
    "stopped": ["--trainer", "Stopped", "TRAINER.STOPPED.PREC", "fp32"],
    "refused": ["--trainer", "OwnStep", "TRAINER.OWNSTEP.PREC", "fp32"],
    "no flag": ["--trainer", "MaPLe", "--no-such-flag"],
    "no key": ["--trainer", "MaPLe", "NO.SUCH", 1],
    "zero-shot": ["--trainer", "ZeroshotCLIP"],
    "amp": ["--trainer", "MaPLe", "TRAINER.MAPLE.PREC", "amp"],
    "bf16": ["--trainer", "MaPLe", "TRAINER.MAPLE.PREC", "bf16"],
}


def make(root: Path, output: Path, name: str, options: list[Any]) -> Any:
    """A trainer on 24 images, in batches of 8, not augmented."""
    flags = ["--root", root, "--output-dir", output, "--seed", 1, "--trainer", name]
    settings = [*SETTINGS, "DATASET.SUBSAMPLE_CLASSES", "base", "OPTIM.MAX_EPOCH", 1, *options]
    set_random_seed(1)
    return build_trainer(setup_cfg(build_parser().parse_args([str(word) for word in [*flags, *settings]])))


def steps(root: Path, output: Path, name: str, options: list[Any]) -> dict[str, Any]:
    """What is learned at first, its gradients in float64 in each step of an epoch, and what is logged."""
    trainer = make(root, output, name, options)
    trainer.model.double()
    parse = trainer.parse_batch_train
    trainer.parse_batch_train = lambda batch: [
        each.double() if each.is_floating_point() else each for each in parse(batch)
    ]
    learned = dict(trainer.model.prompt_learner.named_parameters())
    gradients, logged = [], {}
    step = trainer.forward_backward

    def recorded(batch: Any) -> Any:
        summary = step(batch)
        gradients.append(
            {key: None if each.grad is None else each.grad.clone() for key, each in learned.items()}
        )
        return summary

    trainer.forward_backward = recorded
    trainer.write_scalar = lambda tag, value, step: logged.update({(tag, step): value})
    start = _clones(learned)
    trainer.run_epoch()
    return {"start": start, "gradients": gradients, "logged": logged}


def resumed(root: Path, output: Path, options: list[Any]) -> dict[str, Any]:
    """What three epochs learn in one go, and interrupted in the second; all three are augmented."""
    options = [*options, *AUGMENTED, *THREE_EPOCHS]
    whole = make(root, output / "whole", "MaPLe", options)
    whole.train()
    cut = make(root, output / "cut", "MaPLe", options)
    step = cut.forward_backward

    def stopped(batch: Any) -> Any:
        if (cut.epoch, cut.batch_idx) == (1, 1):
            raise RuntimeError("stopped")
        return step(batch)

    cut.forward_backward = stopped
    with contextlib.suppress(RuntimeError):
        cut.train()
    again = make(root, output / "cut", "MaPLe", options)
    torch.randn(7 + get_rank())  # what was drawn before does not matter
    again.train()
    learned = [_clones(dict(run.model.prompt_learner.named_parameters())) for run in (whole, again)]
    return {"whole": learned[0], "resumed": learned[1], "start_epoch": again.start_epoch}


def refused(root: Path, output: Path, name: str, options: list[Any]) -> str:
    """The message with which training is refused."""
    trainer = make(root, output, name, options)
    try:
        _check_processes(trainer)
        trainer.train()
    except ValueError as error:
        return str(error)
    return ""


def beginning(root: Path, output: Path) -> dict[str, Any]:
    """What is learned and the random numbers behind it, where each process has a seed of its own."""
    own = get_rank()

    class Seeded(MaPLe):
        def build_model(self) -> None:
            set_random_seed(own)
            super().build_model()

    TRAINER_REGISTRY.register(Seeded, force=True)
    trainer = make(root, output, "Seeded", [])
    learned = _clones(dict(trainer.model.prompt_learner.named_parameters()))
    drawn = [float(torch.rand(())), random.random(), float(np.random.rand())]
    return {"learned": learned, "drawn": drawn}


def _clones(tensors: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def job(folder: Path) -> int:
    root, output = folder / "data", folder / "two"
    seen: dict[str, Any] = {"steps": {}, "resumed": {}, "refused": {}}
    with process_group():
        process = get_rank()
        for case, (name, options) in CASES.items():
            seen["steps"][case] = steps(root, output / case, name, options)
        for case, options in RESUMED.items():
            seen["resumed"][case] = resumed(root, output / f"resumed {case}", options)
        for case, (name, options) in REFUSED.items():
            seen["refused"][case] = refused(root, output / f"refused {case}", name, options)
        seen["beginning"] = beginning(root, output / "beginning")
        with rank_zero_first():
            seen["turn"] = len(list(folder.glob("turn*")))
            (folder / f"turn{process}").touch()
        seen["mean"] = all_reduce_mean({"loss": process, "other": 3})
        torch.save(seen, folder / f"{process}.pt")
    return 0


def in_two_processes(folder: Path, run: Callable[[], int]) -> list[int | None]:
    """Runs in two processes that are forked, not started anew, with torchrun's environment.

    What they print is left in `folder`, as `out0`, `err0`, `out1` and `err1`. Returns their exit codes.
    """
    folder.mkdir()
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)  # as torchrun has one

    def process(rank: int) -> None:
        place = {"MASTER_ADDR": "localhost", "MASTER_PORT": store.port, "TORCHELASTIC_USE_AGENT_STORE": True}
        place |= {"WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}
        os.environ.update({name: str(value) for name, value in place.items()})
        os.environ["RANK"] = os.environ["LOCAL_RANK"] = str(rank)
        for stream, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(folder / f"{name}{rank}", os.O_WRONLY | os.O_CREAT), stream)
        sys.exit(run())

    started = [multiprocessing.get_context("fork").Process(target=process, args=(rank,)) for rank in range(2)]
    for each in started:
        each.start()
    for each in started:
        each.join()
    return [each.exitcode for each in started]


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    sys.modules["torch.utils.tensorboard"] = None  # type: ignore[assignment]  # its import takes seconds
    shapes.IMAGES = IMAGES
    for trainer in TRAINERS:
        TRAINER_REGISTRY.register(trainer)
    make(folder / "data", folder / "alone", "MaPLe", [])  # draws, and imports what all need
    codes = {"job": in_two_processes(folder / "job", lambda: job(folder))}
    for name, words in COMMANDS.items():
        flags = ["--root", folder / "data", "--output-dir", folder / name / "run", "--seed", 1, *words]
        argv = [str(word) for word in [*flags, *SETTINGS]]
        codes[name] = in_two_processes(folder / name, lambda argv=argv: command_line(argv))
    (folder / "codes.json").write_text(json.dumps(codes))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
