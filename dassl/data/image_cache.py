"""Decoded training images in memory, so that each is decoded once and not once per epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from multiprocessing.context import get_spawning_popen
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info
from tqdm import tqdm

from dassl.utils.distributed import is_rank_zero

GB = 2**30  # bytes
WORTHWHILE = 1 / 4  # of the images: if a smaller share fits, memory is better left to others
BLOCKS = 64  # of memory at most, as each that is shared takes a file descriptor
SMALLEST_BLOCK = 2**26  # bytes


class ImageCache:
    """Images by their paths, uncompressed: three bytes per pixel.

    Images are added as they are read, until the next one would go beyond the budget; the others are decoded
    each time. None is cached where less than a quarter of them would fit, by the size of the first. What
    `read` returns has the pixels and the `info` of the image as decoded, and is the caller's own. It costs no
    random number: an epoch is the same with the cache and without.

    Worker processes of a loader are started anew for each epoch, and would lose what they decode. So `fill`
    decodes for them, with threads (Pillow decodes outside of Python's lock), before they are started. They
    share that memory: forked ones by themselves, spawned ones after `share`.

    Args:
        budget: bytes.
        count: images there are.
        read: decodes the image at a path, as RGB.
    """

    def __init__(self, budget: float, count: int, read: Callable[[str], Image.Image]) -> None:
        self.budget = budget
        self.count = count
        self._read = read
        self._blocks: list[Tensor] = []  # of uint8, `(bytes)`
        self._left = 0  # bytes in the last block
        # Size of each image, its block and first byte there, and its info.
        self._entries: dict[str, tuple[tuple[int, int], int, int, dict[Any, Any]]] = {}
        self.used = 0  # bytes
        self.full = budget <= 0
        self._filled = False

    def __getstate__(self) -> dict[str, Any]:
        if get_spawning_popen() is not None:  # torch hands shared memory over, without a copy
            return self.__dict__
        return {**self.__dict__, "_blocks": [], "_left": 0, "_entries": {}, "used": 0, "full": True}

    def share(self) -> None:
        """Moves all images to shared memory, for workers that are not forked; drops all if it is full."""
        try:
            for block in self._blocks:
                block.share_memory_()
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            print(f"Note: decoded images are not shared with the workers, which decode each time ({reason})")
            self._blocks, self._entries, self.used, self.full = [], {}, 0, True

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, path: str) -> Image.Image:
        """The image at a path. Raises what `read` does."""
        if path in self._entries:
            (width, height), block, start, info = self._entries[path]
            pixels = self._blocks[block][start : start + 3 * width * height].numpy()
            image = Image.frombytes("RGB", (width, height), pixels)
            image.info = dict(info)
            return image
        image = self._read(path)
        if not self.full and get_worker_info() is None:
            self._add(path, image)
        return image

    def fill(self, paths: Iterable[str], threads: int) -> None:
        """Decodes and caches as many images as fit. One that cannot be read is an error at its turn."""
        if self._filled:
            return
        self._filled = True
        wanted = (path for path in paths if path not in self._entries)
        others = not is_rank_zero() or None  # one bar for all processes, and on a terminal only
        progress = tqdm(desc="Decoding images", unit="image", delay=2, leave=False, disable=others)
        with progress, ThreadPoolExecutor(threads) as pool:
            # A few at a time: those that do not fit must not be in memory all together.
            while not self.full and (some := dict.fromkeys(islice(wanted, 4 * threads))):
                for path, image in zip(some, pool.map(self._read_or_none, some), strict=True):
                    if image is not None and not self.full:
                        self._add(path, image)
                progress.update(len(some))

    def _read_or_none(self, path: str) -> Image.Image | None:
        try:
            return self._read(path)
        except (OSError, ValueError):
            return None

    def _add(self, path: str, image: Image.Image) -> None:
        pixels = np.asarray(image)
        size = pixels.size
        too_few = not self._entries and self.budget < WORTHWHILE * self.count * size
        self.full = too_few or self.used + size > self.budget
        if self.full:
            return
        if size > self._left:
            most = min(self.budget - self.used, max(self.budget / BLOCKS, SMALLEST_BLOCK))
            self._left = max(int(min(most, self.count * size)), size)
            self._blocks.append(torch.empty(self._left, dtype=torch.uint8))
        start = len(self._blocks[-1]) - self._left
        self._blocks[-1].numpy()[start : start + size] = pixels.reshape(-1)
        self._entries[path] = image.size, len(self._blocks) - 1, start, image.info
        self._left -= size
        self.used += size
