"""Decoded training images kept in memory, so that each is decoded once and not once an epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

import torch.multiprocessing
from PIL import Image
from torch.utils.data import get_worker_info
from tqdm import tqdm

from dassl.utils.distributed import this_process

GB = 2**30  # bytes
WORTHWHILE = 1 / 4  # of the images: if a smaller share fits, memory is better left to others


class ImageCache:
    """Images by their paths, uncompressed: three bytes a pixel.

    Images are kept as they are read, until the next one would go beyond the budget; the others are decoded
    each time. None is kept where less than a quarter of them would fit, by the size of the first. What `read`
    gives has the pixels and the `info` of the image as decoded, and is the caller's own. It costs no random
    number: an epoch is the same with the cache and without.

    Worker processes of a loader are started anew for each epoch, and would forget what they decode. So `fill`
    decodes for them, with threads (Pillow decodes outside of Python's lock), before they are forked: they
    share that memory and add nothing to it. Where processes are not forked (Windows, macOS), they get an
    empty cache and decode as without it; see `is_shared`.

    Args:
        budget: bytes.
        count: images there are.
        read: decodes the image at a path, as RGB.
    """

    def __init__(self, budget: float, count: int, read: Callable[[str], Image.Image]) -> None:
        self.budget = budget
        self.count = count
        self._read = read
        self._kept: dict[str, tuple[tuple[int, int], bytes, dict[Any, Any]]] = {}
        self.used = 0  # bytes
        self.full = budget <= 0
        self._filled = False

    def __getstate__(self) -> dict[str, Any]:
        # For a process that is not forked: to send all images to each would take their memory many times.
        return {**self.__dict__, "_kept": {}, "used": 0, "full": True}

    @staticmethod
    def is_shared(loader: Any) -> bool:
        """Whether the workers of a DataLoader have what was kept before they are started."""
        context = loader.multiprocessing_context or torch.multiprocessing
        return context.get_start_method() == "fork"

    def __len__(self) -> int:
        return len(self._kept)

    def read(self, path: str) -> Image.Image:
        """The image at a path. Raises what `read` does."""
        if path in self._kept:
            size, pixels, info = self._kept[path]
            image = Image.frombytes("RGB", size, pixels)
            image.info = dict(info)
            return image
        image = self._read(path)
        if not self.full and get_worker_info() is None:
            self._keep(path, image)
        return image

    def fill(self, paths: Iterable[str], threads: int) -> None:
        """Decodes and keeps as many images as fit. One that cannot be read is left for its turn to come."""
        if self._filled:
            return
        self._filled = True
        wanted = (path for path in paths if path not in self._kept)
        others = this_process()[0] > 0 or None  # one bar for all processes, and on a terminal only
        progress = tqdm(desc="Decoding images", unit="image", delay=2, leave=False, disable=others)
        with progress, ThreadPoolExecutor(threads) as pool:
            # A few at a time: those that do not fit must not be in memory all together.
            while not self.full and (some := dict.fromkeys(islice(wanted, 4 * threads))):
                for path, image in zip(some, pool.map(self._read_or_none, some), strict=True):
                    if image is not None and not self.full:
                        self._keep(path, image)
                progress.update(len(some))

    def _read_or_none(self, path: str) -> Image.Image | None:
        try:
            return self._read(path)
        except (OSError, ValueError):
            return None

    def _keep(self, path: str, image: Image.Image) -> None:
        pixels = image.tobytes()
        too_few = not self._kept and self.budget < WORTHWHILE * self.count * len(pixels)
        self.full = too_few or self.used + len(pixels) > self.budget
        if not self.full:
            self._kept[path] = image.size, pixels, image.info
            self.used += len(pixels)
