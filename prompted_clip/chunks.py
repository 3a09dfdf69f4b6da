"""How many classes run through the text encoder at once, by the memory there is.

A training step keeps what each class's tokens leave in each block, for the backward pass. Where that is too
much, classes run in chunks, and each chunk is computed again when the backward pass comes to it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import torch

AUTOMATIC, NEVER = 0, -1
# Part of the free memory that text may take: the image encoder, and the backward pass itself, need theirs.
SHARE = 0.5
# Widths that a token leaves in a block: two inputs of norms; queries; keys and values, and once more in their
# bins; attention's result; a hidden layer of four.
WIDTHS_KEPT = 12
# Linux alone has these.
MEMORY = Path("/proc/meminfo")
GROUPS_OF_THIS, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


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
        available = [1024 * int(lines["MemAvailable"].split()[0])] if "MemAvailable" in lines else []
        return min(available + left_to_groups(), default=None)
    return None


def left_to_groups() -> list[int]:
    """Bytes left to each control group around this process that has a limit, as those of containers and jobs.

    Files that the system keeps in memory, and would give up, count as left.
    """
    left = []
    for folder, (limit_name, used_name, kept_name) in _groups():
        try:
            limit, used = ((folder / name).read_text().strip() for name in (limit_name, used_name))
            kept = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        except OSError:  # the root, which has no limit; or, in a container, a group outside of it
            continue
        if limit != "max":
            left.append(max(0, int(limit) - int(used) + int(kept.get(kept_name, 0))))
    return left


def _groups() -> Iterator[tuple[Path, tuple[str, str, str]]]:
    """The folders of the groups, from the innermost on; and the names of limit, use, and files in memory."""
    for line in GROUPS_OF_THIS.read_text().splitlines() if GROUPS_OF_THIS.exists() else ():
        _, kinds, path = line.split(":", 2)
        if not kinds:  # version 2
            root, names = GROUPS, ("memory.max", "memory.current", "inactive_file")
        elif "memory" in kinds.split(","):
            root = GROUPS / "memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        steps = [step for step in path.split("/") if step]
        for count in range(len(steps), -1, -1):
            yield root.joinpath(*steps[:count]), names
