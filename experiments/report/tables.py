"""What a report is made of: tables of accuracies, and the sections that they stand in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from experiments.results.runs import Run
from experiments.results.states import FINISHED
from experiments.results.statistics import Value


@dataclass(frozen=True)
class Difference:
    """To a published accuracy.

    Attributes:
        points: percentage points, ours less the published.
        verdict: whether that is noise of the seeds: within, outside, unknown (one seed), or incomplete.
    """

    points: float
    verdict: str


Cell = Value | Difference | str | None


@dataclass
class Row:
    labels: tuple[str, ...]
    cells: list[Cell]


@dataclass
class Table:
    """Rows of cells, under as many columns.

    Attributes:
        index: what the rows' labels are.
        compares: whether the best of a column is marked, among the rows that share all labels but the method.
        together: how many columns belong together, where a wide table is shown in parts.
    """

    title: str
    index: tuple[str, ...]
    columns: list[str]
    rows: list[Row] = field(default_factory=list)
    compares: bool = True
    together: int = 1

    def best(self) -> set[tuple[int, int]]:
        """Row and column of each column's highest complete value, where there are several to choose from."""
        groups: defaultdict[tuple, list[tuple[float, int]]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            place = tuple(
                label for name, label in zip(self.index, row.labels, strict=True) if name != "method"
            )
            for column, cell in enumerate(row.cells):
                if isinstance(cell, Value) and cell.is_complete and cell.mean is not None:
                    groups[column, place].append((round(cell.mean, 2), number))
        found = set()
        for (column, _), values in groups.items():
            if self.compares and len(values) > 1:
                found |= {(number, column) for mean, number in values if mean == max(values)[0]}
        return found


@dataclass
class Section:
    """One protocol's tables.

    Attributes:
        protocol: its key.
        shots: of all its runs; 0 where they vary or there are none.
        runs: all of them, those without a result too.
        metric: that its tables are of: accuracy or macro_f1.
    """

    protocol: str
    title: str
    shots: int
    runs: list[Run]
    metric: str = "accuracy"
    tables: list[Table] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def unfinished(self) -> list[Run]:
        return [run for run in self.runs if run.state != FINISHED]
