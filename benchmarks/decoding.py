"""Images a second of processor time, from a file to a model's input, and which faster ways give other pixels.

    python -m benchmarks.decoding                      # on drawn JPEGs of 500 × 375 pixels
    python -m benchmarks.decoding --folder FOLDER      # on the JPEGs in a folder and those below it

Compared are the pipeline written out with Pillow and torchvision; ours; and ours with its cache filled, as in
all epochs but the first. All in one process with one thread, by turns, and on the same random numbers. The
run stops if one tensor is not the same to the last bit.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision import transforms as T
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F
from yacs.config import CfgNode

from benchmarks.report import conditions, load_average, ratios, save, spread
from dassl.config import get_cfg_default
from dassl.data import DatasetWrapper
from dassl.data.datasets import Datum
from dassl.data.transforms import build_transform
from dassl.utils import set_random_seed

SIZE = 224
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
BICUBIC = InterpolationMode.BICUBIC


def config(gigabytes: float) -> CfgNode:
    cfg = get_cfg_default()
    cfg.INPUT.SIZE = (SIZE, SIZE)
    cfg.INPUT.INTERPOLATION = "bicubic"
    cfg.INPUT.TRANSFORMS = ("random_resized_crop", "random_flip", "normalize")
    cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD = MEAN, STD
    cfg.DATALOADER.CACHE_GB = gigabytes
    return cfg


def plain(is_train: bool) -> Callable[[str], torch.Tensor]:
    """The reference's pipeline, written out."""
    if is_train:
        first = [T.RandomResizedCrop(SIZE, interpolation=BICUBIC), T.RandomHorizontalFlip()]
    else:
        first = [T.Resize(SIZE, interpolation=BICUBIC), T.CenterCrop(SIZE)]
    transform = T.Compose([*first, T.ToTensor(), T.Normalize(MEAN, STD)])

    def read(path: str) -> torch.Tensor:
        return transform(Image.open(path).convert("RGB"))

    return read


def ours(paths: Sequence[str], is_train: bool, gigabytes: float) -> Callable[[str], torch.Tensor]:
    cfg = config(gigabytes)
    with contextlib.redirect_stdout(io.StringIO()):
        transform = build_transform(cfg, is_train=is_train)
    wrapper = DatasetWrapper(cfg, [Datum(path) for path in paths], transform, is_train)
    place = {path: index for index, path in enumerate(paths)}
    if wrapper.cache is not None:
        wrapper.cache.fill(paths, threads=1)
        if len(wrapper.cache) != len(place):
            raise ValueError("the images do not fit into the cache; give fewer")
    return lambda path: wrapper[place[path]]["img"]


def measure(
    ways: dict[str, Callable[[str], torch.Tensor]], paths: Sequence[str], rounds: int
) -> tuple[dict[str, list[float]], list[float]]:
    """Images a second of processor time of each way in each round, and the load averages."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    loads: list[float] = []
    names = list(ways)
    for number in range(-1, rounds):  # the first one warms up
        loads += load_average()
        results: dict[str, list[torch.Tensor]] = {}
        for name in names[number % len(names) :] + names[: number % len(names)]:
            set_random_seed(number + 1)
            start = time.process_time()
            results[name] = [ways[name](path) for path in paths]
            if number >= 0:
                rates[name].append(len(paths) / (time.process_time() - start))
        for name in names[1:]:
            if not all(map(torch.equal, results[name], results[names[0]])):
                raise AssertionError(f"{name} gives other numbers than {names[0]}")
    return rates, loads


# What is faster and was not taken ------------------------------------------------------------------------


def alternatives() -> dict[str, Callable[[str], np.ndarray]]:
    """Ways from a file to the resized and cropped pixels, `(height width channel)`; first the reference's."""
    resize, crop = T.Resize(SIZE, interpolation=BICUBIC), T.CenterCrop(SIZE)

    def reference(path: str) -> np.ndarray:
        return np.asarray(crop(resize(Image.open(path).convert("RGB"))))

    def draft(path: str) -> np.ndarray:
        image = Image.open(path)
        image.draft("RGB", (SIZE, SIZE))
        return np.asarray(crop(resize(image.convert("RGB"))))

    def reduced(path: str) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        width, height = (round(side * SIZE / min(image.size)) for side in image.size)
        return np.asarray(crop(image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2.0)))

    def cropped_first(path: str) -> np.ndarray:
        image = Image.open(path).convert("RGB")
        box = []
        for side in image.size:
            whole = int(SIZE * side / min(image.size))  # as torchvision's Resize and CenterCrop have it
            start = round((whole - SIZE) / 2)
            box.append((start * side / whole, min(side, (start + SIZE) * side / whole)))
        (left, right), (top, bottom) = box
        return np.asarray(
            image.resize((SIZE, SIZE), Image.Resampling.BICUBIC, box=(left, top, right, bottom))
        )

    def read_tensor(path: str) -> torch.Tensor:
        return decode_jpeg(torch.from_numpy(np.fromfile(path, dtype=np.uint8)), mode=ImageReadMode.RGB)

    def decoded_by_torchvision(path: str) -> np.ndarray:
        pixels = read_tensor(path).permute(1, 2, 0).numpy()
        return np.asarray(crop(resize(Image.fromarray(pixels))))

    def all_by_torchvision(path: str) -> np.ndarray:
        image = F.resize(read_tensor(path), [SIZE], interpolation=BICUBIC, antialias=True)
        return F.center_crop(image, [SIZE, SIZE]).permute(1, 2, 0).numpy()

    return {
        "Pillow, as the reference": reference,
        "JPEG draft": draft,
        "resize with reducing_gap 2": reduced,
        "resize of a box instead of a crop": cropped_first,
        "torchvision decodes, Pillow resizes": decoded_by_torchvision,
        "torchvision decodes and resizes": all_by_torchvision,
    }


def compare_alternatives(paths: Sequence[str], rounds: int) -> list[str]:
    ways = alternatives()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    pixels: dict[str, list[np.ndarray]] = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The image decoding", DeprecationWarning)  # torchvision gives it up
        for number, (name, way) in itertools.product(range(-1, rounds), ways.items()):
            start = time.process_time()
            pixels[name] = [way(path) for path in paths]
            if number >= 0:
                rates[name].append(len(paths) / (time.process_time() - start))
    reference, *others = ways
    lines = [
        "| to resized and cropped pixels | ÷ reference | images that differ | greatest difference, of 255 |",
        "|---|---|---|---|",
    ]
    for name in others:
        differences = [
            int(np.abs(a.astype(int) - b).max()) if a.shape == b.shape else 255
            for a, b in zip(pixels[name], pixels[reference], strict=True)
        ]
        other = sum(difference > 0 for difference in differences)
        speed = ratios(rates[name], rates[reference])
        lines.append(f"| {name} | {speed} | {other} of {len(paths)} | {max(differences)} |")
    return lines


def draw_photos(folder: Path, count: int) -> None:
    """JPEGs of smooth shapes with grain: about the bytes a pixel that photos have."""
    for number in range(count):
        rng = np.random.RandomState(number)
        coarse = Image.fromarray(rng.randint(0, 256, (12, 16, 3), dtype=np.uint8))
        smooth = np.array(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(int)
        pixels = (smooth + rng.randint(-12, 13, smooth.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:04d}.jpg", quality=85)


def report(paths: Sequence[str], what: str, rounds: int) -> list[str]:
    torch.set_num_threads(1)
    tables, loads = [], []
    for title, is_train in (("training: random crop, flip", True), ("test: resize, centre crop", False)):
        ways = {"written out": plain(is_train), "ours": ours(paths, is_train, 0)}
        if is_train:
            ways["ours, decoded before"] = ours(paths, is_train, 16)
        rates, those = measure(ways, paths, rounds)
        loads += those
        tables += [f"| {title} | images a second | ÷ written out |", "|---|---|---|"]
        tables += [
            f"| {name} | {spread(rate, 0)} | {ratios(rate, rates['written out'])} |"
            for name, rate in rates.items()
        ]
        tables.append("")
    tables += compare_alternatives(paths, rounds)
    return [
        f"# From {len(paths)} {what} to a model's input of {SIZE} × {SIZE}",
        "",
        *conditions(["torch", "torchvision", "pillow", "numpy"], loads),
        f"- {rounds} rounds by turns, in one process with one thread; median and range",
        "- Seconds are processor time: other work on the machine is not in them",
        "- A quotient is that of two rates of one round",
        "- All tensors of the first two tables were the same to the last bit",
        "",
        *tables,
    ]


def main(arguments: argparse.Namespace) -> None:
    if arguments.folder:
        paths = sorted(str(path) for path in Path(arguments.folder).rglob("*.jpg"))[: arguments.images]
        save("decoding_photos.md", report(paths, "photos", arguments.rounds))
        return
    with tempfile.TemporaryDirectory() as folder:
        draw_photos(Path(folder), arguments.images)
        paths = sorted(str(path) for path in Path(folder).iterdir())
        save("decoding_drawn.md", report(paths, "drawn JPEGs of 500 × 375 pixels", arguments.rounds))


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=100, help="how many, at most")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", help="of JPEGs, in place of drawn ones")
    return parser


if __name__ == "__main__":
    main(build_parser().parse_args())
