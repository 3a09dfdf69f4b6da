"""The prediction of each image: as a CSV file with names, and compactly, as it is stored with a result."""

from __future__ import annotations

import csv
import gzip
import io
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from dassl.utils.distributed import gather, interleave, is_rank_zero, is_sharded
from dassl.utils.tools import atomic_open
from prompted_clip.console import shortened
from prompted_clip.errors import UserError
from prompted_clip.escaping import csv_cell

from .confidences import is_scored

COLUMNS = ("impath", "label", "classname", "predicted_label", "predicted_classname")
STORED = ("image", "label", "predicted", "first_classes", "scores")
FIRST = 5  # classes whose scores are stored
MOST_BYTES = 2**30  # of stored predictions, unpacked


class Predictions:
    """Collects the predictions of a split, and writes them as CSV: `COLUMNS`, a line per image.

    Args:
        cfg: reads `DATALOADER.TEST.SAMPLER`.
        lab2cname: class names by label; a label without a name gets an empty one.
    """

    def __init__(self, cfg: Any, lab2cname: Mapping[int, str]) -> None:
        self.cfg = cfg
        self.lab2cname = lab2cname
        # Paths, labels and predicted labels of each batch; the last two stay on their device.
        self._batches: list[tuple[Any, Any, Any]] = []

    def add(self, batch: Any, scores: Any, labels: Any) -> None:
        """Adds a batch.

        Args:
            batch: has the paths of the images as `impath`.
            scores: logits `(batch class)`.
            labels: `(batch)`.

        Raises:
            ValueError: there are no paths, or other shapes.
        """
        if not isinstance(batch, Mapping) or "impath" not in batch:
            raise UserError(
                "TEST.SAVE_PREDICTIONS is True, but the batches have no 'impath' to name the images by;"
                " let the dataset wrapper give it, or set the key to False."
            )
        shapes = [tuple(getattr(values, "shape", ())) for values in (scores, labels)]
        if [len(shape) for shape in shapes] != [2, 1]:
            raise UserError(
                "TEST.SAVE_PREDICTIONS is True, which needs scores (batch class) and labels (batch); their"
                f" shapes are {shapes[0]} and {shapes[1]}. Set the key to False."
            )
        self._batches.append((batch["impath"], labels, scores.max(1)[1]))

    def write(self, path: str) -> None:
        """Writes the file, whole or not at all; rank zero writes for all processes."""
        rows: list[tuple[str, int, int]] = []
        for paths, labels, predicted in self._batches:
            rows += zip(paths, labels.tolist(), predicted.tolist(), strict=True)
        if is_sharded(self.cfg):
            rows = interleave(gather(rows))
        if not is_rank_zero():
            return
        name = self.lab2cname.get
        with atomic_open(path) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(COLUMNS)
            for impath, label, predicted in rows:
                row = (impath, label, name(label, ""), predicted, name(predicted, ""))
                table.writerow(map(csv_cell, row))
        print(f"Predictions are saved to {path}")


class Prediction(NamedTuple):
    """The prediction of a tested image.

    Attributes:
        image: its path, below the folder of the dataset where that is known.
        classes: labels of the FIRST classes, the highest score first; fewer where there are fewer classes.
        scores: their logits, to six digits.
    """

    image: str
    label: int
    predicted: int
    classes: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()


class FirstClasses:
    """Collects the predictions of a split, with the scores of the FIRST classes.

    Args:
        cfg: reads `DATALOADER.TEST.SAMPLER`.
    """

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg
        self._batches: list[tuple[Sequence[str], tuple[Tensor, ...]]] = []  # tensors stay on their device
        self._known = True

    def add(self, batch: Any, scores: Any, labels: Any) -> None:
        """Adds a batch with `impath`, logits `(batch class)` and labels `(batch)`; others make it unknown."""
        has_paths = isinstance(batch, Mapping) and "impath" in batch
        self._known = self._known and has_paths and is_scored(scores, labels)
        if self._known:
            first = scores.detach().topk(min(FIRST, scores.shape[1]), dim=1)
            tensors = (labels, scores.max(1)[1], first.indices, first.values.float())
            self._batches.append((batch["impath"], tensors))

    def result(self) -> list[Prediction] | None:
        """Those of all processes, which all have to call it; None where they are not known."""
        rows: list[tuple] = []
        for paths, tensors in self._batches if self._known else ():
            rows += zip(paths, *(each.tolist() for each in tensors), strict=True)
        if is_sharded(self.cfg):
            shards = gather(rows if self._known else None)
            if None in shards:
                return None
            rows = interleave(shards)
        if not rows:
            return None
        return [
            Prediction(image, label, predicted, tuple(classes), tuple(scores))
            for image, label, predicted, classes, scores in rows
        ]


def write_predictions(rows: Sequence[Prediction], path: str | os.PathLike[str]) -> None:
    """Writes a gzipped CSV file of the columns STORED; the same bytes for the same predictions."""
    with (
        atomic_open(path, "wb") as file,
        gzip.GzipFile("", "wb", 6, file, mtime=0) as packed,
        io.TextIOWrapper(packed, "utf-8", "surrogateescape", newline="") as text,
    ):
        table = csv.writer(text, lineterminator="\n")
        table.writerow(STORED)
        for row in rows:
            classes = " ".join(map(str, row.classes))
            scores = " ".join(f"{score:.6g}" for score in row.scores)
            table.writerow([row.image, row.label, row.predicted, classes, scores])


def read_predictions(path: str | os.PathLike[str]) -> list[Prediction]:
    """The predictions of a file that `write_predictions`, or `TEST.SAVE_PREDICTIONS`, wrote.

    Raises:
        ValueError: the file is none, or is damaged.
        OSError: it cannot be read.
    """
    is_packed = str(path).endswith(".gz")
    try:
        with gzip.open(path) if is_packed else open(path, "rb") as file:
            content = file.read(MOST_BYTES + 1)
        if len(content) > MOST_BYTES:
            raise UserError(f"more than {MOST_BYTES:,} bytes; allowed are fewer")
        lines = csv.reader(io.StringIO(content.decode("utf-8", "surrogateescape"), newline=""), strict=True)
        head = tuple(next(lines, ()))
        if head == COLUMNS:  # a path behind an apostrophe is one that a spreadsheet would take for a formula
            return [Prediction(line[0], int(line[1]), int(line[3])) for line in lines]
        if head != STORED:
            raise UserError(f"its columns are {head}; allowed are {STORED} or {COLUMNS}")
        return [_stored(*line) for line in lines]
    except (ValueError, TypeError, IndexError, EOFError, csv.Error, gzip.BadGzipFile, zlib.error) as error:
        raise UserError(f"{path} holds no predictions: {shortened(str(error))}.") from error


def _stored(image: str, label: str, predicted: str, classes: str, scores: str) -> Prediction:
    first, values = tuple(map(int, classes.split())), tuple(map(float, scores.split()))
    if len(first) != len(values):
        raise UserError(f"{image} has {len(first)} classes and {len(values)} scores")
    return Prediction(image, int(label), int(predicted), first, values)
