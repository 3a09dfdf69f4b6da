"""The state of all random generators, so that a run can be continued as if it had not stopped."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def rng_state() -> dict[str, Any]:
    """The states of Python's, numpy's, torch's and each GPU's generator, as plain containers and tensors."""
    algorithm, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (algorithm, [int(key) for key in keys], int(position), int(has_gauss), float(cached)),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all()
        if torch.cuda.is_initialized()
        else [],  # asking would start it
    }


def restore_rng_state(state: dict[str, Any]) -> None:
    """Puts all generators back to a state of `rng_state()`; GPUs that it does not know stay as they are."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    algorithm, keys, *rest = state["numpy"]
    if not 0 <= rest[0] <= len(keys):  # numpy would read beyond them
        raise ValueError(f"numpy's generator is at {rest[0]} of {len(keys)} numbers")
    np.random.set_state((algorithm, np.array(keys, dtype=np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda_state in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):
        torch.cuda.set_rng_state(cuda_state.cpu(), device)


@contextmanager
def seeded(*seed: int) -> Iterator[None]:
    """Within, the CPU's generators start from `seed`, numbers from 0 on; afterwards, they are as before."""
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    python, numpy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            random.seed(start)
            np.random.seed(start)
            torch.random.default_generator.manual_seed(start)  # not torch's own, which would seed the GPUs
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
