"""Drawings with captions to pretrain the embedded CLIP on; see scripts/pretrain_embedded_clip.py.

More patterns, colours and shapes than in `Shapes`, in light of all kinds, with sentences of all
kinds; but none of the 48 combinations that are the classes of `Shapes`, neither drawn nor said.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import prompted_clip
from datasets import shapes
from datasets.drawing import COLOURS, PATTERNS, SHAPES, SIZE, Chance, Style, draw
from prompted_clip.factory import MEAN, STD

ATTRIBUTES = ("pattern", "colour", "shape")  # in the order of a caption
WORDS: tuple[list[str], ...] = (
    list(PATTERNS),
    list(COLOURS),
    list(SHAPES),
)
Numbers = tuple[int, ...]  # a drawing's word for each attribute
Said = tuple[int | None, ...]  # a caption's; None is not said


WITHHELD: list[Numbers] = [
    tuple(words.index(word) for words, word in zip(WORDS, names, strict=True))
    for names in shapes.class_table()
]
DRAWN: list[Numbers] = [
    numbers
    for numbers in itertools.product(*(range(len(words)) for words in WORDS))
    if numbers not in set(WITHHELD)
]

COMMON_TEMPLATES = ["a photo of a {}.", "a drawing of a {}."]
RARE_TEMPLATES = [
    "{}.",
    "X X {}.",
    "X X X X {}.",
    "a bad photo of the {}.",
    "a centered satellite photo of {}.",
    "a origami {}.",
    "a photo of a {}, a type of pet.",
    "a photo of the large {}.",
    "a photo of the small {}.",
    "a {} in a video game.",
    "art of the {}.",
    "itap of a {}.",
    "{} texture.",
]
COMMON_SHARE = 45  # percent of the captions

# What a page of captions asks for, in percent: all attributes, or all but one.
ALL = -1
PAGES = {
    ALL: 15,
    ATTRIBUTES.index("pattern"): 30,
    ATTRIBUTES.index("colour"): 45,
    ATTRIBUTES.index("shape"): 10,
}
NAMED = 60  # percent of the pages on which that attribute is the same for all drawings, and said

STYLE = Style()
LIGHT = 0.25  # how far a drawing's light may stray from daylight, per channel and channel


def phrase(said: Said) -> str:
    """Numbers of words → "striped red circle", "dotted object"."""
    words = [WORDS[k][number] for k, number in enumerate(said) if number is not None]
    return " ".join(words if said[2] is not None else [*words, "object"])


def vocabulary() -> list[int]:
    """The token ids of all captions and the padding, in order; the last is EOT."""
    words = [word for list_of_words in WORDS for word in list_of_words] + ["object"]
    templates = COMMON_TEMPLATES + RARE_TEMPLATES
    tokens = prompted_clip.tokenize([template.format(word) for template in templates for word in words])
    return tokens.unique().tolist()


class Captions:
    """Captions → numbers of the rows of a small embedding."""

    def __init__(self) -> None:
        self.rows = vocabulary()
        self._row = {token: row for row, token in enumerate(self.rows)}

    @functools.lru_cache(maxsize=200_000)  # noqa: B019  (one object a run)
    def _encode(self, caption: str) -> tuple[int, ...]:
        tokens = prompted_clip.tokenize(caption)[0]
        return tuple(self._row[token] for token in tokens[: int(tokens.argmax()) + 1].tolist())

    def encode(self, captions: list[str]) -> Tensor:
        """`(caption longest)`; the padding behind EOT reaches nothing."""
        encoded = [self._encode(caption) for caption in captions]
        longest = max(len(row) for row in encoded)
        return torch.tensor([[*row, *[0] * (longest - len(row))] for row in encoded])


@dataclass
class Pool:
    """Drawings to choose from: `pixels`, uint8 `(drawing 64 64 3)`, and words, `(drawing 3)`."""

    pixels: np.ndarray
    numbers: np.ndarray


def draw_pool(count: int, seed: int, combinations: list[Numbers], what: str) -> Pool:
    """Draws `count` drawings of `combinations`; `what` names them to the user."""
    pixels = np.empty((count, SIZE, SIZE, 3), np.uint8)
    numbers = np.empty((count, len(ATTRIBUTES)), np.int64)
    for index in tqdm(range(count), desc=f"Drawing {what}", unit="image", delay=2):
        chance = Chance(seed, index)
        numbers[index] = chance.choice(combinations)
        pattern, colour, shape = (words[number] for words, number in zip(WORDS, numbers[index], strict=True))
        pixels[index] = draw(shape, pattern, colour, STYLE, chance)
    return Pool(pixels, numbers)


def make_batch(
    pool: Pool, size: int, chance: np.random.RandomState
) -> tuple[np.ndarray, list[str], np.ndarray]:
    """A page of captions, and drawings for it.

    Returns:
        Drawings, uint8 `(drawing 64 64 3)`; captions; and the number of each drawing's caption.
    """
    unasked = chance.choice(list(PAGES), p=np.array(list(PAGES.values())) / 100)
    candidates = np.arange(len(pool.pixels))
    page = DRAWN
    said = [k for k in range(len(ATTRIBUTES)) if k != unasked]
    if unasked != ALL and chance.random_sample() * 100 < NAMED:
        number = chance.choice(len(WORDS[unasked]))
        candidates = np.flatnonzero(pool.numbers[:, unasked] == number)
        page = [numbers for numbers in DRAWN if numbers[unasked] == number]
        said = list(range(len(ATTRIBUTES)))
    indices = chance.choice(candidates, size)
    wanted = [tuple(row) for row in pool.numbers[indices][:, said].tolist()]
    # A page of all three would be long: only the captions of its own drawings stand on it.
    page = sorted(set(wanted) if unasked == ALL else {tuple(numbers[k] for k in said) for numbers in page})
    place = {numbers: k for k, numbers in enumerate(page)}

    pixels = pool.pixels[indices]
    mirrored = chance.random_sample(size) < 0.5
    pixels[mirrored] = pixels[mirrored, :, ::-1]
    captions = []
    for numbers in page:
        templates = COMMON_TEMPLATES if chance.random_sample() * 100 < COMMON_SHARE else RARE_TEMPLATES
        words = dict(zip(said, numbers, strict=True))
        text = phrase(tuple(words.get(k) for k in range(len(ATTRIBUTES))))
        captions.append(templates[chance.choice(len(templates))].format(text))
    return pixels, captions, np.array([place[numbers] for numbers in wanted])


def in_light(pixels: np.ndarray, chance: np.random.RandomState | None) -> Tensor:
    """uint8 `(drawing 64 64 3)` → the model's input, `(drawing 3 64 64)`.

    Args:
        chance: for a light of its own for each drawing; None for daylight.
    """
    images = torch.from_numpy(pixels).float().div(255)
    if chance is not None:
        stray = (
            LIGHT * chance.random_sample((len(pixels), 1, 1)) * chance.standard_normal((len(pixels), 3, 3))
        )
        light = torch.from_numpy(np.eye(3) + stray).float()
        images = torch.einsum("nhwc,ndc->nhwd", images, light).clamp(0, 1)
    return ((images - torch.tensor(MEAN)) / torch.tensor(STD)).permute(0, 3, 1, 2)
