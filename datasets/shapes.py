"""`Shapes`: the dataset that the project draws itself, so that everything runs with nothing downloaded.

Each class is a pattern, a colour and a shape, such as "striped red circle". Base and new classes
are the two halves of a checkerboard over these three: each pattern, colour and shape occurs in
both. What the embedded CLIP has seen of all this, and what not, is told in
docs/embedded_default.md.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterable, Iterator

from PIL import Image
from tqdm import tqdm

from dassl.data.datasets import DATASET_REGISTRY
from dassl.data.few_shot_dataset import FewShotDataset
from datasets.drawing import Chance, Style, draw

PATTERNS = ("striped", "dotted", "checkered")
COLOURS = ("red", "yellow", "green", "blue")
SHAPES = ("circle", "square", "triangle", "star")

IMAGES = {"train": 20, "val": 4, "test": 50}  # of each class
SEED = 11

# Grain, clutter, smaller objects, and a light that turns all colours half the way towards the next channel.
STYLE = Style(
    radius=(36, 48),
    clutter=(2, 6),
    cover=(1, 3),
    noise=36,
    light=((114, 124, 18), (18, 114, 124), (124, 18, 114)),
)


def class_table() -> list[tuple[str, str, str]]:
    """Pattern, colour and shape of each label: first the black squares of the board, then the white."""
    numbers = itertools.product(range(len(PATTERNS)), range(len(COLOURS)), range(len(SHAPES)))
    ordered = sorted(numbers, key=lambda place: sum(place) % 2)
    return [(PATTERNS[p], COLOURS[c], SHAPES[s]) for p, c, s in ordered]


def draw_dataset(folder: str, seed: int = SEED) -> None:
    """Draws all images and the split file into `folder`. Other seeds give other images of the same kind."""
    classes = class_table()
    split: dict[str, list[tuple[str, int, str]]] = {part: [] for part in IMAGES}
    progress = tqdm(total=len(classes) * sum(IMAGES.values()), desc="Drawing shapes", unit="image", delay=2)
    with progress:
        for label, words in enumerate(classes):
            pattern, colour, shape = words
            subfolder = "_".join(words)
            os.makedirs(os.path.join(folder, "images", subfolder))
            for stream, (part, count) in enumerate(IMAGES.items()):
                for index in range(count):
                    path = f"{subfolder}/{part}_{index:02d}.png"
                    pixels = draw(shape, pattern, colour, STYLE, Chance(seed, stream, label, index))
                    Image.fromarray(pixels).save(os.path.join(folder, "images", path), compress_level=1)
                    split[part].append((path, label, " ".join(words)))
                    progress.update()
    with open(os.path.join(folder, Shapes.split_file), "w", encoding="utf-8") as file:
        json.dump(split, file)


def test_images(classnames: Iterable[str]) -> Iterator[tuple[Image.Image, str]]:
    """The test images of some classes, and their class names; the pixels of those that are drawn as files."""
    wanted = set(classnames)
    for label, words in enumerate(class_table()):
        pattern, colour, shape = words
        if (name := " ".join(words)) in wanted:
            for index in range(IMAGES["test"]):
                chance = Chance(SEED, list(IMAGES).index("test"), label, index)
                yield Image.fromarray(draw(shape, pattern, colour, STYLE, chance)), name


@DATASET_REGISTRY.register()
class Shapes(FewShotDataset):
    """48 kinds of drawings, in a light that turns their colours."""

    dataset_dir = "shapes"
    image_dir = "images"
    split_file = "split_zhou_Shapes.json"
    template = "a drawing of a {}."

    def make(self, folder: str) -> None:
        draw_dataset(folder)
