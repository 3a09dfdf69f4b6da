"""The process group of `torchrun --nproc-per-node N`: how it starts, and how it ends."""

from __future__ import annotations

import contextlib
import datetime
import os
import signal
import traceback
from collections.abc import Iterator
from types import FrameType
from typing import Any, NoReturn

import torch
import torch.distributed as dist

from prompted_clip.errors import UserError

from .distributed import broadcast, get_world_size
from .rng import restore_rng_state, rng_state

# How long one process may wait for another, such as for rank zero to download and read the data.
TIMEOUT = datetime.timedelta(days=2)

_store: Any = None  # what all processes can read, also when one of them has failed


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Makes this process a member of the group within: with NCCL between GPUs, with gloo between CPUs.

    All start with the random state of rank zero, which alone prints. The first process to fail says why; the
    others end silently, since they fail for the same reason, or because that one is gone.
    """
    global _store
    store, process, processes = next(iter(dist.rendezvous("env://")))
    backend = "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    dist.init_process_group(
        backend, store=dist.PrefixStore("group", store), rank=process, world_size=processes, timeout=TIMEOUT
    )
    _store = store
    signal.signal(signal.SIGINT, _stop_once)
    try:
        with contextlib.ExitStack() as stack:
            if process > 0:
                nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
                stack.enter_context(contextlib.redirect_stdout(nothing))
            restore_rng_state(broadcast(rng_state()))
            yield
    except Exception:
        if is_first_to_fail():
            traceback.print_exc()  # now: torchrun ends this process as soon as another one ends
        raise SystemExit(1) from None
    except SystemExit as end:
        if end.code:
            is_first_to_fail()
        raise
    finally:
        _store = None
        dist.destroy_process_group()


def is_first_to_fail() -> bool:
    """Whether this process is the first one to fail, and has to say why. Each asks once."""
    try:
        return _store is None or _store.add("failures", 1) == 1
    except RuntimeError:  # the store was in a process that is gone
        return False


def check_devices(use_cuda: bool) -> None:
    """Raises a ValueError where there are more processes than GPUs for them."""
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if get_world_size() > 1 and use_cuda and torch.cuda.is_available() and here > gpus:
        raise UserError(
            f"--nproc-per-node is {here}, but there are {gpus} GPUs; allowed is one process per GPU: start "
            f"{gpus}, or set USE_CUDA to False."
        )


def _stop_once(number: int, frame: FrameType | None) -> NoReturn:
    # A terminal sends Ctrl-C to all processes, and torchrun hands it on to them once more.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
