"""The costs of methods as tables, csv and JSON, with the conditions that they were measured under."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from experiments.costs.complexity import Costs, Speed
from experiments.costs.machine import Timing

FORMATS = ("text", "markdown", "csv", "json")
TABLES = {"text": "simple", "markdown": "github"}
NOTHING = "–"
MB = 2**20

SIZE_HEADERS = ["", "classes", "learned", "published", "% of CLIP", "image", "text", "text is encoded"]
REFERENCE_HEADERS = ["reference: image", "reference: text"]
SPEED_HEADERS = [
    "",
    "classes",
    "batch",
    "GFLOPs a step",
    "reference: a step",
    "s a step",
    "images/s, training",
    "images/s, testing",
    "images/s, text each batch",
    "MB, training",
    "MB, testing",
]


def render(costs: Sequence[Costs], conditions: Mapping[str, Any], form: str) -> str:
    """All of it in one of `FORMATS`."""
    if form == "json":
        return json.dumps({"conditions": conditions, "rows": rows_of(costs)}, indent=2, ensure_ascii=False)
    if form == "csv":
        return as_csv(costs, conditions)
    bullet = "- " if form == "markdown" else ""
    parts = ["\n".join(f"{bullet}{name}: {value}" for name, value in conditions.items())]
    parts.append("Size, and GFLOPs of inference; a multiply-add is two operations:")
    parts.append(table([_size_row(each) for each in costs], SIZE_HEADERS + REFERENCE_HEADERS, form))
    parts.append("Training steps and speed, median (range):")
    parts.append(table(_speed_rows(costs, reference=False), SPEED_HEADERS, form))
    if any(each.reference_speeds for each in costs):
        parts.append("The same, computed as the reference does:")
        parts.append(table(_speed_rows(costs, reference=True), SPEED_HEADERS, form))
    return "\n\n".join(parts)


def table(rows: Sequence[Sequence[Any]], headers: Sequence[str], form: str) -> str:
    alignment = ["left", *["right"] * (len(headers) - 1)]
    align = alignment if rows else None
    return tabulate(rows, headers, tablefmt=TABLES[form], colalign=align, disable_numparse=True)


def _size_row(costs: Costs) -> list[str]:
    work, reference = costs.work, costs.reference_work
    return [
        costs.method,
        f"{costs.classes:,}",
        f"{costs.learned:,}",
        NOTHING if costs.published is None else f"{costs.published:,}",
        f"{percent_of_clip(costs):.3f}",
        giga(work.image),
        giga(work.text),
        text_is_encoded(costs),
        giga(reference.image),
        giga(reference.text),
    ]


def _speed_rows(costs: Sequence[Costs], reference: bool) -> list[list[str]]:
    rows = []
    for each in costs:
        for size, *speeds in by_batch(each):
            steps = (each.work.step.get(size), each.reference_work.step.get(size))
            cells = [each.method, f"{each.classes:,}", str(size), *map(giga, steps)]
            rows.append([*cells, *_speed_cells(speeds[reference], each.conditional)])
    return rows


def _speed_cells(speed: Speed, conditional: bool) -> list[str]:
    if speed.out_of_memory:
        return ["out of memory", *[NOTHING] * 5]
    with_text = None if conditional else speed.inference_with_text
    timings = (speed.training, speed.inference, with_text)
    return [
        seconds(speed.training),
        *(images_per_second(timing, speed.batch) for timing in timings),
        megabytes(speed.training_bytes),
        megabytes(speed.inference_bytes),
    ]


def by_batch(costs: Costs) -> list[tuple[int, Speed, Speed]]:
    """Each batch size of which something is known, its speed, and that of the reference."""
    ours, theirs = ({each.batch: each for each in found} for found in (costs.speeds, costs.reference_speeds))
    sizes = sorted(costs.work.step.keys() | ours.keys())
    return [(size, ours.get(size, Speed(size)), theirs.get(size, Speed(size))) for size in sizes]


def percent_of_clip(costs: Costs) -> float:
    return 100 * costs.learned / costs.clip_parameters


def text_is_encoded(costs: Costs) -> str:
    return "per image" if costs.conditional else "once"


# --- cells ------------------------------------------------------------------------------------------------


def giga(flops: int | None) -> str:
    """Operations in thousand millions, with three digits or more."""
    return NOTHING if flops is None else _digits(flops / 1e9)


def _digits(value: float) -> str:
    decimals = next((n for n, least in enumerate((100, 10, 1)) if value >= least), 3)
    return f"{value:,.{decimals}f}"


def seconds(timing: Timing | None) -> str:
    if timing is None:
        return NOTHING
    return f"{timing.seconds:.3g} ({timing.least:.3g}–{timing.most:.3g})"


def images_per_second(timing: Timing | None, batch: int) -> str:
    if timing is None:
        return NOTHING
    median, least, most = (_digits(batch / each) for each in (timing.seconds, timing.most, timing.least))
    return f"{median} ({least}–{most})"


def megabytes(count: int | None) -> str:
    return NOTHING if count is None else _digits(count / MB)


# --- for scripts ------------------------------------------------------------------------------------------


def rows_of(costs: Sequence[Costs]) -> list[dict[str, Any]]:
    """A flat row for each method, number of classes and batch size; None for what is unknown."""
    rows = []
    for each in costs:
        head: dict[str, Any] = {
            "method": each.method,
            "classes": each.classes,
            "learned_parameters": each.learned,
            "published_parameters": each.published,
            "clip_parameters": each.clip_parameters,
            "percent_of_clip": percent_of_clip(each),
            "text_is_encoded": text_is_encoded(each),
        }
        for prefix, work in (("", each.work), ("reference_", each.reference_work)):
            head |= {f"{prefix}image_flops": work.image, f"{prefix}text_flops": work.text}
        # Zero-shot CLIP without speeds has a row too: of its size alone, in no batch.
        for size, ours, theirs in by_batch(each) or [(0, Speed(0), Speed(0))]:
            row = {**head, "batch": size or None}
            for prefix, work, speed in (("", each.work, ours), ("reference_", each.reference_work, theirs)):
                row |= {f"{prefix}step_flops": work.step.get(size), **_flat(speed, prefix)}
            rows.append(row)
    return rows


def _flat(speed: Speed, prefix: str) -> dict[str, Any]:
    timings = {name: getattr(speed, name) for name in ("training", "inference", "inference_with_text")}
    flat: dict[str, Any] = {}
    for name, timing in timings.items():
        for part in Timing._fields:
            flat[f"{prefix}{name}_{part}"] = timing and getattr(timing, part)
    for name in ("training_bytes", "inference_bytes", "out_of_memory"):
        flat[f"{prefix}{name}"] = getattr(speed, name)
    return flat


def as_csv(costs: Sequence[Costs], conditions: Mapping[str, Any]) -> str:
    """Conditions as lines that begin with #, then a row a line."""
    buffer = io.StringIO()
    for name, value in conditions.items():
        buffer.write(f"# {name}: {value}\n")
    rows = rows_of(costs)
    if rows:
        writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return buffer.getvalue().rstrip("\n")
