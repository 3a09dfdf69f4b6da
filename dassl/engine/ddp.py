"""Distributed data parallel: one training on several processes, `torchrun --nproc-per-node N train.py ...`.

Each process computes an equal share of a batch. See docs/several_gpus.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from yacs.config import CfgNode

from dassl.config import key_or_default
from dassl.data.samplers import DistributedBatchSampler
from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from dassl.utils import set_random_seed
from dassl.utils.distributed import broadcast_tensors, get_rank, get_world_size
from dassl.utils.torchrun import check_devices
from prompted_clip.errors import UserError

Losses = Callable[..., dict[str, Tensor]]


def wrap_ddp(losses: Losses, learned: Iterable[nn.Parameter]) -> Losses:
    """`losses`, such that the backward pass gives each process the mean of all processes' gradients.

    Where each has an equal share of a batch and the losses are means over it, that is the gradient of the
    whole batch. All start with the tensors of rank zero. Without torch.distributed, `losses` itself.

    Args:
        losses: of tensors, such as images `(batch 3 height width)` and labels `(batch)`.
        learned: the tensors that gradients are of.
    """
    if get_world_size() == 1:
        return losses
    # Static: some learned tensors never get a gradient, such as MaPLe's prompts beyond an encoder's depth.
    return DistributedDataParallel(_Step(losses, learned), static_graph=True)


class _Step(nn.Module):
    """The losses as a forward pass, which is what DistributedDataParallel takes.

    It holds what is learned alone: frozen weights, the same in all processes, are not sent around.
    """

    def __init__(self, losses: Losses, learned: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.losses = losses
        self.learned = nn.ParameterList(learned)

    def forward(self, *inputs: Tensor) -> dict[str, Tensor]:
        return self.losses(*inputs)


def select_device(cfg: CfgNode) -> torch.device:
    """The GPU where there is one and `USE_CUDA` is set; of several processes, each has its own."""
    check_devices(cfg.USE_CUDA)
    if not (torch.cuda.is_available() and cfg.USE_CUDA):
        return torch.device("cpu")
    several = get_world_size() > 1
    return torch.device("cuda", torch.cuda.current_device()) if several else torch.device("cuda")


def shard_test(cfg: CfgNode, trainer_class: Any) -> CfgNode:
    """The configuration with which each of several processes tests a shard, where the metrics stay the same.

    That takes a trainer that can share batches, and an evaluator that gathers, `Classification`. Otherwise
    each process runs the whole test.
    """
    if get_world_size() == 1 or cfg.DATALOADER.TEST.SAMPLER != "SequentialSampler":
        return cfg
    evaluator = EVALUATOR_REGISTRY.get(cfg.TEST.EVALUATOR)
    gathers = getattr(evaluator, "evaluate", None) is Classification.evaluate
    if not (gathers and _can_share(trainer_class)):
        return cfg
    cfg = cfg.clone()
    cfg.defrost()
    cfg.DATALOADER.TEST.SAMPLER = "DistributedEvalSampler"
    cfg.freeze()
    return cfg


def check_ddp(trainer: Any) -> None:
    """Refuses a training that several processes cannot share, before anything of it is written.

    Raises:
        ValueError: the trainer has a training step of its own, its images come from a loader that does not
            share them, or a batch cannot be shared equally.
    """
    processes = get_world_size()
    has_something_to_train = getattr(trainer, "has_something_to_train", lambda: True)
    if processes == 1 or not has_something_to_train():
        return
    if not _can_share(type(trainer)):
        raise UserError(
            f"TRAINER.NAME is {trainer.cfg.TRAINER.NAME}, which has a training step of its own: "
            f"{processes} processes cannot share it. Train with python train.py, without torchrun."
        )
    if trainer.train_loader_x is None:  # said where it is needed
        return
    batches = getattr(trainer.train_loader_x, "batch_sampler", None)
    if not isinstance(batches, DistributedBatchSampler):
        loader = key_or_default(trainer.cfg.DATALOADER.TRAIN_X, "DATALOADER.TRAIN_X.LOADER")
        raise UserError(
            f"DATALOADER.TRAIN_X.LOADER is {loader}, whose batches {processes} processes cannot share. "
            "Choose build_data_loader, or train without torchrun."
        )
    key = f"DATALOADER.TRAIN_X.BATCH_SIZE is {batches.batch_size}"
    allowed = f"which {processes} processes cannot share equally; allowed are multiples of {processes}"
    if batches.batch_size % processes:
        raise UserError(f"{key}, {allowed}. Choose one, or another --nproc-per-node.")
    if batches.smallest % processes:
        raise UserError(
            f"{key}, but there are {batches.smallest} images to train on, {allowed} up to that number. "
            "Choose one, or train without torchrun."
        )


def broadcast_initial_state(models: Any) -> None:
    """Overwrites the models by those of rank zero, and gives each process random numbers of its own."""
    if get_world_size() == 1:
        return
    for model in models:
        if isinstance(model, nn.Module):
            broadcast_tensors(model.state_dict())
    if get_rank() > 0:
        sequence = np.random.SeedSequence([torch.initial_seed(), get_rank()])
        set_random_seed(int(sequence.generate_state(1)[0]))


def _can_share(trainer_class: Any) -> bool:
    can_share = getattr(trainer_class, "can_share_batches", None)
    return can_share is not None and can_share()
