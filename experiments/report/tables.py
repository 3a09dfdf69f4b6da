"""What a report is made of: tables of accuracies, and the sections that they stand in."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

from experiments.results.runs import Run
from experiments.results.states import FINISHED
from experiments.results.statistics import Paired, Value, paired


@dataclass(frozen=True)
class Difference:
    """To a published accuracy.

    Attributes:
        points: percentage points, ours less the published.
        verdict: whether that is noise of the seeds: within, outside, unknown (one seed), or incomplete.
    """

    points: float
    verdict: str


Cell = Value | Difference | Paired | str | None


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

    def ranked(self) -> dict[tuple[int, tuple[str, ...]], list[tuple[Value, int]]]:
        """By column and labels but the method, the complete values with their rows, the highest first."""
        groups: defaultdict[tuple[int, tuple[str, ...]], list[tuple[Value, int]]] = defaultdict(list)
        for number, row in enumerate(self.rows):
            place = tuple(
                label for name, label in zip(self.index, row.labels, strict=True) if name != "method"
            )
            for column, cell in enumerate(row.cells):
                if isinstance(cell, Value) and cell.is_complete:
                    groups[column, place].append((cell, number))
        for values in groups.values():
            values.sort(key=lambda each: -(each[0].mean or 0.0))
        return dict(groups)

    def best(self) -> set[tuple[int, int]]:
        """Row and column of each column's highest complete value, where it is clearly above the second."""
        found = set()
        for (column, _), values in self.ranked().items():
            if self.compares and len(values) > 1:
                difference = paired(values[0][0], values[1][0])
                if difference is not None and difference.is_clear:
                    found.add((values[0][1], column))
        return found

    def differences(self, against: str = "") -> Table | None:
        """How far each method is from the best, or from the one of this label; None for no difference."""
        title = f"{self.title}: less {against or 'the best'}"
        table = Table(title, self.index, self.columns, compares=False)
        table.rows = [Row(row.labels, [None] * len(row.cells)) for row in self.rows]
        place = self.index.index("method") if "method" in self.index else 0
        for (column, _), values in self.ranked().items() if self.compares else ():
            named = [each for each in values if self.rows[each[1]].labels[place] == against]
            if len(values) < 2 or (against and not named):
                continue
            other, other_row = (named or values)[0]
            for value, number in values:
                cell = paired(value, other) if number != other_row else "—" if against else "best"
                table.rows[number].cells[column] = cell
        table.rows = [row for row in table.rows if any(row.cells)]
        return table if table.rows else None


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
