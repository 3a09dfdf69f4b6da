"""Images a second from files to a model's input, and at which speed of a model the loader is too slow for it.

    python -m benchmarks.loader                        # on drawn JPEGs of 500 × 375 pixels
    python -m benchmarks.loader --folder FOLDER        # on the JPEGs in a folder and those below it

Compared are the reference's pipeline, with Pillow and torchvision; ours; ours with the training
images decoded before (`DATALOADER.CACHE_GB`), as in all epochs but the first; and ours with the test images
on disk (`DATALOADER.TEST_CACHE`), as in all runs but the first. By turns in one process, with workers and
without, in batches; the start of the workers is in the seconds. The run stops if one tensor is not the same
to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T
from torchvision.transforms import InterpolationMode
from yacs.config import CfgNode

from benchmarks.harness import (
    add_common,
    is_refused,
    one_line_errors,
    progress,
    ratios,
    save,
    spread,
    table,
)
from benchmarks.machine import conditions, load_average
from dassl.config import get_cfg_default
from dassl.data import build_data_loader
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.utils import set_random_seed
from prompted_clip.errors import UserError

SIZE = 224
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BICUBIC = InterpolationMode.BICUBIC
REFERENCE = "reference"
GIGABYTES = 16  # for decoded images
COLUMNS = ("workers", "images a second", "÷ reference", "a worker")


def config(gigabytes: float) -> CfgNode:
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (SIZE, SIZE)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    cfg.DATALOADER.CACHE_GB = gigabytes
    return cfg


def plain(is_train: bool) -> Callable[[str], torch.Tensor]:
    """The reference's pipeline, with Pillow and torchvision."""
    if is_train:
        first = [T.RandomResizedCrop(SIZE, interpolation=BICUBIC), T.RandomHorizontalFlip()]
    else:
        first = [T.Resize(SIZE, interpolation=BICUBIC), T.CenterCrop(SIZE)]
    transform = T.Compose([*first, T.ToTensor(), T.Normalize(MEAN, STD)])

    def read(path: str) -> torch.Tensor:
        return transform(Image.open(path).convert("RGB"))

    return read


def draw_photos(folder: Path, count: int) -> None:
    """JPEGs of smooth shapes with grain: about as many bytes per pixel as photos."""
    for number in range(count):
        rng = np.random.RandomState(number)
        coarse = Image.fromarray(rng.randint(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.array(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + rng.randint(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=85)


class ReferenceDataset(Dataset):
    """The reference's pipeline as a dataset."""

    def __init__(self, paths: Sequence[str], is_train: bool) -> None:
        self.paths = paths
        self.read = plain(is_train)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"img": self.read(self.paths[index]), "label": 0}


def loaders(
    paths: Sequence[str], folder: str, workers: int, batch_size: int, is_train: bool
) -> dict[str, Any]:
    """The ways, the reference's first; caches are filled by the round that warms up."""
    settings: dict[str, tuple[float, str]] = {"ours": (0, "")}
    if is_train:
        settings["ours, decoded before"] = (GIGABYTES, "")
    else:
        settings["ours, from the disk"] = (0, folder)
    drop_last = is_train and len(paths) >= batch_size  # as build_data_loader has it
    reference = ReferenceDataset(paths, is_train)
    ways: dict[str, Any] = {
        REFERENCE: DataLoader(reference, batch_size, num_workers=workers, drop_last=drop_last)
    }
    for name, (gigabytes, test_cache) in settings.items():
        cfg = config(gigabytes)
        cfg.DATALOADER.NUM_WORKERS, cfg.DATALOADER.TEST_CACHE = workers, test_cache
        with contextlib.redirect_stdout(io.StringIO()):
            transform = build_transform(cfg, is_train=is_train)
        items = [Datum(path) for path in paths]
        ways[name] = build_data_loader(
            cfg, data_source=items, batch_size=batch_size, tfm=transform, is_train=is_train
        )
    return ways


def take(loader: Iterable[dict[str, Any]], what: Callable[[torch.Tensor], object]) -> int:
    """Goes through a loader, and gives the number of images."""
    set_random_seed(1)
    count = 0
    for batch in loader:
        what(batch["img"])
        count += len(batch["img"])
    return count


def digest_of(loader: Iterable[dict[str, Any]]) -> bytes:
    digest = hashlib.sha256()
    take(loader, lambda images: digest.update(images.numpy().data))
    return digest.digest()


def measure(ways: dict[str, Any], rounds: int) -> tuple[dict[str, list[float]], list[float]]:
    """Images a second of each way in each round, and the load averages."""
    expected = digest_of(ways[REFERENCE])
    for name in (*ways, *ways):  # to warm up; the second time with caches filled
        if digest_of(ways[name]) != expected:
            raise AssertionError(f"{name} gives other numbers than {REFERENCE}")
    names, loads = list(ways), []
    rates: dict[str, list[float]] = {name: [] for name in names}
    for number in range(rounds):
        loads += load_average()
        first = number % len(names)
        for name in [*names[first:], *names[:first]]:
            start = time.perf_counter()
            count = take(ways[name], len)
            rates[name].append(count / (time.perf_counter() - start))
    return rates, loads


def report(paths: Sequence[str], what: str, args: argparse.Namespace) -> list[str]:
    tables: list[str] = []
    loads: list[float] = []
    slowest: list[str] = []
    for title, is_train in (("Training: random crop, flip", True), ("Test: resize, centre crop", False)):
        cells = []
        for workers in args.workers:
            progress(f"{title}, {workers} workers ...")
            with tempfile.TemporaryDirectory() as folder:
                ways = loaders(paths, folder, workers, args.batch_size, is_train)
                rates, those = measure(ways, args.rounds)
            loads += those
            for name, rate in rates.items():
                each = spread([one / workers for one in rate], 0) if workers else "–"
                cells.append([name, str(workers), spread(rate, 0), ratios(rate, rates[REFERENCE]), each])
                slowest.append(
                    bottleneck(title.split(":")[0].lower(), name, workers, statistics.median(rate))
                )
        tables += ["", f"## {title}", "", table(cells, ["", *COLUMNS])]
    return [
        f"# The loaders: {len(paths)} {what} to inputs of {SIZE} × {SIZE}, in batches of {args.batch_size}",
        "",
        *conditions(["torch", "torchvision", "pillow", "numpy"], loads),
        f"- {args.rounds} rounds by turns, after two passes of each to warm up and fill the caches; median "
        "and range",
        "- Seconds are those of the clock, the workers' start among them, with nothing else to do: a model "
        "that computes on the same cores leaves less. Main process and workers have "
        f"{torch.get_num_threads()} thread each",
        "- All files, and the crops on disk, are in the system's cache",
        "- All tensors were the same to the last bit",
        *tables,
        "",
        "## When the loader is the bottleneck",
        "",
        *slowest,
    ]


def bottleneck(part: str, name: str, workers: int, rate: float) -> str:
    if not workers:
        return f"- {part}, {name}, no workers: each image adds {1000 / rate:.2f} ms to the model's time"
    return f"- {part}, {name}, {workers} workers: where the model takes more than {rate:,.0f} images a second"


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--images", type=int, default=400, help="how many, at most")
    add("--folder", help="of JPEGs, in place of drawn ones")
    add("--workers", nargs="+", type=int, default=[0, 2])
    add("--batch-size", type=int, default=100)
    add_common(parser, threads=1)
    args = parser.parse_args(argv)
    if is_refused(args):
        return 1
    if args.folder:
        paths = sorted(str(path) for path in Path(args.folder).rglob("*.jpg"))[: args.images]
        if not paths:
            raise UserError(f"--folder {args.folder} holds no .jpg; give a folder of JPEGs.")
        save(args.out / "loader_photos.md", report(paths, "photos", args))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder), args.images)
        paths = sorted(str(path) for path in Path(folder).iterdir())
        save(args.out / "loader_drawn.md", report(paths, "drawn JPEGs of 500 × 375 pixels", args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
