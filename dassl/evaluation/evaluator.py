"""Metrics of predictions, and the lines that scripts parse."""

from __future__ import annotations

import os
from collections import OrderedDict, defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dassl.utils.checkpoint import save_whole
from dassl.utils.distributed import gather, interleave, is_rank_zero, is_sharded
from prompted_clip.errors import UserError

from .build import EVALUATOR_REGISTRY
from .finite import FiniteScores


class EvaluatorBase:
    """What the engine calls: `reset()`, `process()` for each batch, `evaluate()`."""

    def __init__(self, cfg: Any) -> None:
        self.cfg = cfg

    def reset(self) -> None:
        """Forgets all batches."""
        raise NotImplementedError

    def process(self, mo: Any, gt: Any) -> None:
        """Adds a batch: the model's output and the ground truth."""
        raise NotImplementedError

    def evaluate(self) -> OrderedDict[str, float]:
        """The metrics, the main one first."""
        raise NotImplementedError


@EVALUATOR_REGISTRY.register()
class Classification(EvaluatorBase):
    """Accuracy, error and macro-F1 over the labels that occur, in percent.

    With `TEST.PER_CLASS_RESULT` also each class's accuracy and their mean; with `TEST.COMPUTE_CMAT` the
    confusion matrix `(true predicted)` over all classes, as a tensor in `OUTPUT_DIR/cmat.pt`: each row sums
    to one, or is zero where no image of the class was tested.

    Where each of several processes tests a shard (`DistributedEvalSampler`), each has the metrics of all.

    Args:
        lab2cname: class names by label; needed for results per class.
    """

    def __init__(self, cfg: Any, lab2cname: Mapping[int, str] | None = None, **kwargs: Any) -> None:
        super().__init__(cfg)
        if cfg.TEST.PER_CLASS_RESULT and lab2cname is None:
            raise UserError(
                "TEST.PER_CLASS_RESULT needs the class names: build_evaluator(cfg, lab2cname=...)"
            )
        self._lab2cname = lab2cname
        Classification.reset(self)  # a subclass may not be ready for its own reset() yet

    def reset(self) -> None:
        self._is_gathered = False  # from the other processes
        self._correct = 0
        self._total = 0
        self._y_true: list[int] = []
        self._y_pred: list[int] = []
        self._finite = FiniteScores("those that are evaluated")
        self._deferred: list[tuple[Tensor, Tensor]] = []  # predicted and true labels, still on a GPU
        self._per_class_res: defaultdict[int, list[int]] | None = (
            defaultdict(list) if self.cfg.TEST.PER_CLASS_RESULT else None
        )

    def process(self, mo: Tensor | tuple[Any, ...], gt: Tensor) -> None:
        """Adds a batch.

        Args:
            mo: logits `(batch class)`, or a tuple that begins with them.
            gt: labels `(batch)`.

        Raises:
            FloatingPointError: scores are not finite; of those on a GPU, `evaluate` says so.
        """
        mo = mo[0] if isinstance(mo, tuple) else mo
        self._finite.add(mo)
        predicted = mo.max(1)[1]
        if predicted.is_cuda and type(self) is Classification:  # a subclass may look at each batch's labels
            self._deferred.append((predicted, gt))
        else:
            self._count(predicted.tolist(), gt.tolist())

    def _flush(self) -> None:
        """Counts the batches that are still on a GPU, with one sync for the labels and one for the scores."""
        self._finite.check()
        if self._deferred:
            predicted, labels = (torch.cat(tensors).tolist() for tensors in zip(*self._deferred, strict=True))
            self._deferred = []
            self._count(predicted, labels)

    def _count(self, predicted: list[int], labels: list[int]) -> None:
        hits = [int(guess == label) for guess, label in zip(predicted, labels, strict=True)]
        self._correct += sum(hits)
        self._total += len(labels)
        self._y_true += labels
        self._y_pred += predicted
        if self._per_class_res is not None:
            for label, hit in zip(labels, hits, strict=True):
                self._per_class_res[label].append(hit)

    def evaluate(self) -> OrderedDict[str, float]:
        """Prints the metrics and returns them.

        Raises:
            ValueError: no sample was processed, or scores were not finite.
        """
        self._flush()
        if is_sharded(self.cfg) and not self._is_gathered:
            self._gather()
        if not self._total:
            raise UserError("there is nothing to evaluate: the test split is empty")
        accuracy = 100.0 * self._correct / self._total
        macro_f1 = 100.0 * self._macro_f1()
        results = OrderedDict(accuracy=accuracy, error_rate=100.0 - accuracy, macro_f1=macro_f1)
        print(
            "=> result\n"
            f"* total: {self._total:,}\n"
            f"* correct: {self._correct:,}\n"
            f"* accuracy: {accuracy:.2f}%\n"
            f"* error: {results['error_rate']:.2f}%\n"
            f"* macro_f1: {macro_f1:.2f}%"
        )
        if self._per_class_res is not None:
            results["perclass_accuracy"] = self._report_classes(self._per_class_res)
        if self.cfg.TEST.COMPUTE_CMAT:
            self._save_confusion_matrix()
        return results

    def _macro_f1(self) -> float:
        """The mean of F1 over the classes that have images: of each, 2 hits / (images + predictions)."""
        true, predicted = np.asarray(self._y_true), np.asarray(self._y_pred)
        classes = 1 + max(true.max(), predicted.max())
        images, predictions, hits = (
            np.bincount(each, minlength=classes) for each in (true, predicted, true[true == predicted])
        )
        tested = images > 0
        return float((2 * hits[tested] / (images + predictions)[tested]).mean())

    def _gather(self) -> None:
        own = (self._correct, self._total, self._y_true, self._y_pred, self._per_class_res)
        correct, total, y_true, y_pred, hits = zip(*gather(own), strict=True)
        self._correct, self._total = sum(correct), sum(total)
        self._y_true, self._y_pred = interleave(y_true), interleave(y_pred)
        if self._per_class_res is not None:
            self._per_class_res = defaultdict(list)
            for label, of_process in chain.from_iterable(share.items() for share in hits):
                self._per_class_res[label] += of_process
        self._is_gathered = True

    def _report_classes(self, hits_by_label: Mapping[int, list[int]]) -> float:
        """Prints each class's accuracy and returns their mean."""
        assert self._lab2cname is not None
        accuracies = []
        print("=> per-class result")
        for label in sorted(hits_by_label):
            hits = hits_by_label[label]
            accuracies.append(100.0 * sum(hits) / len(hits))
            print(
                f"* class: {label} ({self._lab2cname[label]})\ttotal: {len(hits):,}\t"
                f"correct: {sum(hits):,}\tacc: {accuracies[-1]:.2f}%"
            )
        mean = float(np.mean(accuracies))
        print(f"* average: {mean:.2f}%")
        return mean

    def _save_confusion_matrix(self) -> None:
        if not is_rank_zero():
            return
        classes = 1 + max(chain(self._y_true, self._y_pred, self._lab2cname or ()))
        matrix = np.zeros((classes, classes))
        np.add.at(matrix, (self._y_true, self._y_pred), 1)
        matrix /= matrix.sum(axis=1, keepdims=True).clip(min=1)  # a class without images has zeros
        path = os.path.join(self.cfg.OUTPUT_DIR, "cmat.pt")
        save_whole(torch.from_numpy(matrix), path)
        print(f"Confusion matrix is saved to {path}")
