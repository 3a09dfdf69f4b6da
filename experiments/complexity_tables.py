"""The costs of methods as tables, csv and JSON, with the conditions that they were measured under."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from tabulate import tabulate

from experiments.complexity import Costs, Speed, Work
from experiments.costs import Timing

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
    parts.append("Size, and GFLOPs of inference (a multiply-add is two operations):")
    parts.append(table([_size_row(each) for each in costs], SIZE_HEADERS + REFERENCE_HEADERS, form))
    parts.append("Training steps and speed, median (range):")
    parts.append(table(_speed_rows(costs, reference=False), SPEED_HEADERS, form))
    rows = _speed_rows(costs, reference=True)
    if rows:
        parts.append("The same as the reference computes it, 77 tokens a class and text for each batch:")
        parts.append(table(rows, SPEED_HEADERS, form))
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
        for size, work, speed in by_batch(each, reference):
            cells = [each.method, f"{each.classes:,}", str(size), giga(work.step.get(size))]
            if speed is not None and speed.out_of_memory:
                rows.append([*cells, "out of memory", *[NOTHING] * 5])
                continue
            speed = speed or Speed(size)
            cells += [seconds(speed.training)]
            timings = (
                speed.training,
                speed.inference,
                None if each.conditional else speed.inference_with_text,
            )
            cells += [images_per_second(timing, size) for timing in timings]
            cells += [megabytes(speed.training_bytes), megabytes(speed.inference_bytes)]
            rows.append(cells)
    return rows


def by_batch(costs: Costs, reference: bool) -> list[tuple[int, Work, Speed | None]]:
    """What there is for each batch size: its work and its speed."""
    work = costs.reference_work if reference else costs.work
    speeds = {speed.batch: speed for speed in (costs.reference_speeds if reference else costs.speeds)}
    return [(size, work, speeds.get(size)) for size in sorted(work.step.keys() | speeds.keys())]


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
        sizes: list[int | None] = []
        sizes += sorted({size for reference in (False, True) for size, _, _ in by_batch(each, reference)})
        head = {
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
        for size in sizes or [None]:  # zero-shot, without speeds: one row of sizes
            row: dict[str, Any] = {**head, "batch": size}
            for prefix, reference in (("", False), ("reference_", True)):
                found = [entry for entry in by_batch(each, reference) if entry[0] == size]
                flops, speed = next(((work.step.get(n), speed) for n, work, speed in found), (None, None))
                row |= {f"{prefix}step_flops": flops, **_flat(speed or Speed(0), prefix)}
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
