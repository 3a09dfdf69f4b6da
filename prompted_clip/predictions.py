"""Images → classes and their probabilities: what `PromptedCLIP.predict` does."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from .calibration import in_set, threshold_of, too_few_scores
from .errors import MissingFileError, NotFiniteError, UserError
from .images import IMAGE_SUFFIXES, read_image

if TYPE_CHECKING:
    from .prompted_clip import PromptedCLIP

One = str | PathLike[str] | Image.Image | Tensor
Images = One | Iterable[One]
MOST_SHOWN = 5  # classes, when a prediction is printed


@dataclass(frozen=True)
class Prediction:
    """The classes of an image and their probabilities, the best first.

    `for name, probability in prediction` goes through all classes; a printed one shows the best five.

    Attributes:
        path: of the image, where it was given by its path.
        error: why the image could not be read; "" for one that could.
        set: the classes of the conformal set, the best first, where a coverage was asked for; else None. An
            empty one: no class is as probable as those of validation images are.
    """

    names: Sequence[str]
    probabilities: Sequence[float]
    path: str = ""
    error: str = ""
    set: Sequence[str] | None = None

    @property
    def name(self) -> str:
        """The best class; "" for an image that could not be read."""
        return self.names[0] if self.names else ""

    @property
    def probability(self) -> float:
        """Of the best class; 0 for an image that could not be read."""
        return self.probabilities[0] if self.probabilities else 0.0

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return zip(self.names, self.probabilities, strict=True)

    def __str__(self) -> str:
        best = ", ".join(f"{name} {probability:.1%}" for name, probability in list(self)[:MOST_SHOWN])
        return f"{self.path}: {self.error or best}" if self.path else best


def images_below(folder: str | PathLike[str]) -> list[str]:
    """The images in a folder of any depth, sorted by their paths; hidden files and folders are left out.

    Raises:
        ValueError: there are none.
    """
    found = []
    for place, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        names = [name for name in files if name.lower().endswith(IMAGE_SUFFIXES) and name[0] != "."]
        found += [os.path.join(place, name) for name in names]
    if not found:
        raise UserError(
            f"{folder} has no images, at any depth; files of images are {', '.join(IMAGE_SUFFIXES)}."
        )
    return sorted(found)


def predict(
    model: PromptedCLIP,
    images: Images,
    batch_size: int,
    skip_broken: bool,
    progress: bool | None,
    coverage: float | None = None,
) -> Any:
    """See `PromptedCLIP.predict`."""
    if batch_size < 1:
        raise UserError(f"batch_size is {batch_size}; allowed is 1 or more.")
    if coverage is not None:
        threshold_of(model.calibration, coverage)
        if note := too_few_scores(model.calibration or {}, coverage):
            warnings.warn(note, stacklevel=3)
    if isinstance(images, (str, PathLike)) and os.path.isdir(images):
        images = images_below(images)
    elif isinstance(images, Tensor) and images.dim() == 4:
        images = list(images)
    elif isinstance(images, (str, PathLike, Image.Image, Tensor)):
        return next(stream(model, [images], 1, skip_broken, coverage))
    items = list(images)
    shown = tqdm(
        stream(model, items, batch_size, skip_broken, coverage),
        total=len(items),
        unit="image",
        delay=2,
        leave=False,
        disable=None if progress is None else not progress,
    )
    return list(shown)


def stream(
    model: PromptedCLIP,
    items: Sequence[One],
    batch_size: int,
    skip_broken: bool,
    coverage: float | None = None,
) -> Iterator[Prediction]:
    """The predictions of images, one after the other; the next batch is read while one is computed."""
    threshold = None if coverage is None else threshold_of(model.calibration, coverage)
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]

    def read(item: One) -> Tensor | str:
        try:
            return tensor_of(model, item)
        except UserError as error:
            if not skip_broken:
                raise
            return str(error)

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        coming = [pool.submit(read, item) for item in batches[0]] if batches else []
        for number, batch in enumerate(batches):
            tensors = [each.result() for each in coming]
            after = batches[number + 1] if number + 1 < len(batches) else []
            coming = [pool.submit(read, item) for item in after]
            yield from _of_batch(model, batch, tensors, threshold)


def _of_batch(
    model: PromptedCLIP, items: Sequence[One], tensors: Sequence[Tensor | str], threshold: float | None
) -> Iterator[Prediction]:
    good = [each for each in tensors if isinstance(each, Tensor)]
    probabilities = model.probabilities(torch.stack(good)).cpu() if good else torch.empty(0)
    if not probabilities.isfinite().all():
        raise NotFiniteError(
            "The probabilities of an image are not finite. float16 may have overflowed: give "
            'precision="fp32"; or the weights are damaged.'
        )
    rows = iter(probabilities)
    for item, tensor in zip(items, tensors, strict=True):
        path = str(item) if isinstance(item, (str, PathLike)) else ""
        if isinstance(tensor, str):
            yield Prediction([], [], path, tensor)
            continue
        values, order = next(rows).sort(descending=True, stable=True)
        names, found = [model.classnames[index] for index in order.tolist()], values.tolist()
        within = None if threshold is None else in_set(found, threshold)
        yield Prediction(names, found, path, set=within if within is None else names[:within])


def tensor_of(model: PromptedCLIP, item: One) -> Tensor:
    """An image as the model takes it, `(3 height width)`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or cannot be read.
    """
    if isinstance(item, Tensor):
        side = model.clip_model.visual.input_resolution
        if item.shape != (3, side, side) or not item.is_floating_point():
            raise UserError(
                f"An image is a tensor {tuple(item.shape)} of {item.dtype}; allowed is (3, {side}, {side}) "
                "of floats, as model.preprocess makes it of a PIL image."
            )
        return item
    if model.preprocess is None:
        raise UserError("This model has no `preprocess`: give tensors, or set model.preprocess.")
    if isinstance(item, Image.Image):
        return model.preprocess(item)
    if not isinstance(item, (str, PathLike)):
        raise UserError(f"An image is a {type(item).__name__}; allowed are a path, a PIL image, a tensor.")
    path = Path(item).expanduser()
    if not path.exists():
        raise MissingFileError(f"{item}: there is no such image or folder.")
    return model.preprocess(read_image(str(path)))
