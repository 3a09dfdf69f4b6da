"""Which test images a run got right, from the predictions that are stored with its result."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path

import numpy as np

from prompted_clip.errors import UserError


@functools.lru_cache(maxsize=10_000)  # a byte per image
def hits_of(path: Path) -> tuple[str, np.ndarray] | None:
    """A hash of the images, and whether each was hit, in the order of their names; None without a file."""
    from dassl.evaluation import read_predictions  # here, since it imports torch

    try:
        rows = sorted(read_predictions(path), key=lambda row: row.image)
    except (UserError, OSError):
        return None
    images = "\n".join(row.image for row in rows).encode("utf-8", "surrogateescape")
    return hashlib.sha256(images).hexdigest(), np.array([row.label == row.predicted for row in rows])
