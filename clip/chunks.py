"""How many classes run through the text encoder at once, by the memory there is.

A training step keeps what each class's tokens leave in each block, for the backward pass. Where that is too
much, classes run in chunks, and each chunk is computed again when the backward pass comes to it.
"""

from __future__ import annotations

import math
from pathlib import Path

import torch

AUTOMATIC, NEVER = 0, -1
# Part of the free memory that text may take: the image encoder, and the backward pass itself, need theirs.
SHARE = 0.5
# Widths that a token leaves in a block: two inputs of norms; queries; keys and values, and once more in their
# bins; attention's result; a hidden layer of four.
WIDTHS_KEPT = 12
MEMORY = Path("/proc/meminfo")  # Linux alone has it


def classes_at_once(classes: int, kept: int, free: int | None) -> int:
    """The fewest chunks of equal size of which one fits.

    Args:
        kept: bytes that a step keeps of all classes.
        free: bytes of free memory; None where it is unknown, and all classes run at once.
    """
    if free is None or kept <= SHARE * free:
        return classes
    chunks = math.ceil(kept / max(1, SHARE * free))
    return max(1, math.ceil(classes / chunks))


def bytes_kept(tokens: int, width: int, layers: int, itemsize: int) -> int:
    """Bytes that a training step keeps of the classes' own tokens.

    Args:
        itemsize: bytes of a number.
    """
    return WIDTHS_KEPT * tokens * width * layers * itemsize


def free_memory(device: torch.device) -> int | None:
    """Bytes that a step may still take on a device; None where it does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    if device.type == "cpu" and MEMORY.exists():
        lines = dict(line.split(":") for line in MEMORY.read_text().splitlines())
        return 1024 * int(lines["MemAvailable"].split()[0]) if "MemAvailable" in lines else None
    return None
