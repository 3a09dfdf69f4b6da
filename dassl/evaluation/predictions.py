"""The predicted class of each image, as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from typing import Any

from dassl.utils.distributed import gather, interleave, is_rank_zero, is_sharded
from dassl.utils.tools import atomic_open
from prompted_clip.errors import UserError
from prompted_clip.escaping import csv_cell

COLUMNS = ("impath", "label", "classname", "predicted_label", "predicted_classname")


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
