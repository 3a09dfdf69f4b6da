"""Tells which protocol a run is of, where no plan says so: by what it was trained on and what it tests."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from experiments.results.benchmarks import VARIANTS
from experiments.results.result_file import Result

CROSS_DATASET, DOMAINS = "cross_dataset", "domain_generalisation"


class Placing:
    """Knows the models that are tested on other datasets than their own: their training is a source.

    Args:
        results: all that were found.
    """

    def __init__(self, results: Sequence[Result]) -> None:
        self._tested_elsewhere: defaultdict[tuple, set[str]] = defaultdict(set)
        for result in results:
            if _is_elsewhere(result):
                self._tested_elsewhere[_model_of(result)].add(_protocol_of_target(result))

    def places(self, result: Result) -> list[tuple[str, str]]:
        """The protocols that a run belongs to, each with its role there.

        Raises:
            ValueError: it belongs to none; says why.
        """
        trained, classes = result.trained_on, result.classes
        if result.split != "test":
            raise ValueError("tested on validation images")
        if trained is None:
            return [("zeroshot", "all")] if classes == "all" else [("base2new", classes)]
        if _is_elsewhere(result):
            if classes != "all":
                raise ValueError(
                    f"trained on {trained.dataset}, tested on {classes} classes of {result.dataset}"
                )
            return [(_protocol_of_target(result), "target")]
        if classes != "all" and trained.classes == "base":
            return [("base2new", classes)]
        if classes != "all" or trained.classes != "all":
            raise ValueError(f"trained on {trained.classes} classes, tested on {classes} classes")
        protocols = self._tested_elsewhere.get(_model_of(result))
        return (
            [(protocol, "source") for protocol in sorted(protocols)] if protocols else [("few_shot", "all")]
        )


def _is_elsewhere(result: Result) -> bool:
    return result.trained_on is not None and result.trained_on.dataset != result.dataset


def _protocol_of_target(result: Result) -> str:
    return DOMAINS if result.dataset in VARIANTS else CROSS_DATASET


def _model_of(result: Result) -> tuple:
    trained = result.trained_on
    return result.trainer, result.config, trained and (trained.dataset, trained.shots)
