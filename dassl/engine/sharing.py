"""One job on several processes: what each of them does, and which jobs cannot be shared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from yacs.config import CfgNode

from dassl.data.samplers import SharedBatches
from dassl.evaluation import EVALUATOR_REGISTRY, Classification
from dassl.utils import set_random_seed
from dassl.utils.distributed import broadcast_tensors, this_process
from dassl.utils.torchrun import check_devices


def device_of_process(cfg: CfgNode) -> torch.device:
    """The GPU where there is one and `USE_CUDA` is set; of several processes, each has its own."""
    check_devices(cfg.USE_CUDA)
    if not (torch.cuda.is_available() and cfg.USE_CUDA):
        return torch.device("cpu")
    several = this_process()[1] > 1
    return torch.device("cuda", torch.cuda.current_device()) if several else torch.device("cuda")


def shared_test(cfg: CfgNode, trainer_class: Any) -> CfgNode:
    """The configuration in which each of several processes tests a share, where the figures stay the same.

    So it is for a trainer of which batches can be shared and an evaluator that gathers, `Classification`.
    Other tests are run whole by each process.
    """
    if this_process()[1] == 1 or cfg.DATALOADER.TEST.SAMPLER != "SequentialSampler":
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


def check_shared_training(trainer: Any) -> None:
    """Refuses a training that several processes cannot share, before anything of it is written.

    Raises:
        ValueError: the trainer takes its steps in a way of its own, its images come from a loader that does
            not share them, or a batch cannot be shared equally.
    """
    processes = this_process()[1]
    has_something_to_train = getattr(trainer, "has_something_to_train", lambda: True)
    if processes == 1 or not has_something_to_train():
        return
    if not _can_share(type(trainer)):
        raise ValueError(
            f"TRAINER.NAME is {trainer.cfg.TRAINER.NAME}, which takes its steps in a way of its own: "
            f"{processes} processes cannot share them. Train with python train.py, without torchrun."
        )
    if trainer.train_loader_x is None:  # said where it is needed
        return
    batches = getattr(trainer.train_loader_x, "batch_sampler", None)
    if not isinstance(batches, SharedBatches):
        raise ValueError(
            f"DATALOADER.TRAIN_X.LOADER is {trainer.cfg.DATALOADER.TRAIN_X.LOADER}, whose batches "
            f"{processes} processes cannot share. Choose build_data_loader, or train without torchrun."
        )
    given = f"DATALOADER.TRAIN_X.BATCH_SIZE is {batches.batch_size}"
    allowed = f"which {processes} processes cannot share equally; allowed are multiples of {processes}"
    if batches.batch_size % processes:
        raise ValueError(f"{given}, {allowed}. Choose one, or another --nproc-per-node.")
    if batches.smallest % processes:
        raise ValueError(
            f"{given}, but there are {batches.smallest} images to train on, {allowed} up to that number. "
            "Choose one, or train without torchrun."
        )


def begin_alike(models: Any) -> None:
    """What is learned starts as in the first process; then each has random numbers of its own."""
    process, processes = this_process()
    if processes == 1:
        return
    for model in models:
        if isinstance(model, nn.Module):
            broadcast_tensors(model.state_dict())
    if process > 0:
        sequence = np.random.SeedSequence([torch.initial_seed(), process])
        set_random_seed(int(sequence.generate_state(1)[0]))


def _can_share(trainer_class: Any) -> bool:
    can_share = getattr(trainer_class, "can_share_batches", None)
    return can_share is not None and can_share()
