"""What many runs, images, classes and users cost, on generated trees: no image is read, and no model is run.

    python -m benchmarks.scale                    # all parts
    python -m benchmarks.scale queue report       # some of them

- queue: what a sweep's own process takes of a core, with many runs waiting and a few running
- report: seconds of `scripts.report` on many results
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.harness import add_common, is_refused, one_line_errors, progress, save, table
from benchmarks.machine import conditions, load_average
from dassl.config import get_cfg_default
from dassl.config.influence import influencing, plain
from dassl.data import folder_index
from dassl.data.datasets import build_dataset
from dassl.data.packed_rows import pack_names
from dassl.evaluation import Prediction, write_predictions
from experiments.methods import read_methods
from experiments.plans import Planned, save_plan
from experiments.results.benchmarks import ELEVEN
from experiments.run_folder import FORMAT, RESULT_FILE
from experiments.sweeps.devices import Devices
from experiments.sweeps.job import Job
from experiments.sweeps.queue import Queue, Status
from experiments.sweeps.view import View
from prompted_clip.errors import UserError
from scripts import report as scripts_report
from trainers.configuration import extend_cfg

WORKERS = 8
SLEEPER = """#!/bin/sh
for word; do [ "$before" = --output-dir ] && folder=$word; before=$word; done
sleep %s
echo '%s' > "$folder/%s"
"""


def measured(work: Callable[..., Any], *args: Any) -> tuple[float, float, Any]:
    """Seconds, the peak of memory in MiB above that before, and what comes back, in a process of its own."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(sender, work, *args))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def _work(sender: Any, work: Callable[..., Any], *args: Any) -> None:
    before, start = _peak(), time.perf_counter()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        result = work(*args)
    sender.send((time.perf_counter() - start, _peak() - before, result))


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- queue -----------------------------------------------------------------------------------------------


def planned_runs(count: int) -> list[Planned]:
    """The first runs of all methods on all datasets, base to novel and few-shot, with as many seeds."""
    methods = [method for method in read_methods() if not method.is_zero_shot]
    kinds = [("base2new", "base", 16), ("base2new", "new", 16)]
    kinds += [("few_shot", "all", shots) for shots in (1, 2, 4, 8, 16)]
    seeds = range(1, 2 + count // (len(methods) * len(ELEVEN) * len(kinds)))
    places = itertools.product(seeds, methods, ELEVEN, kinds)
    found = []
    for seed, method, dataset, (protocol, classes, shots) in itertools.islice(places, count):
        config = method.config(protocol, dataset, shots)
        folder = f"{protocol}/{classes}/{dataset}/shots_{shots}/{method.trainer}/{config}/seed{seed}"
        found.append(
            Planned(
                *(folder, protocol, method.key, method.trainer, config, dataset, classes, classes, shots),
                seed,
                trains=classes != "new",
            )
        )
    return found


def queue_share(jobs: Sequence[Job], output: Path, each: float, window: float) -> tuple[float, int]:
    """Percent of a core that a sweep's own process takes, and how many runs ended meanwhile.

    Half of the jobs have a result from before. The others are shells that sleep.

    Args:
        each: seconds of a job.
        window: seconds that are looked at, from when all workers have a job.
    """
    result = json.dumps({"format": FORMAT, "results": {"accuracy": 80.0}, "seconds": {"total": each}})
    for job in jobs[::2]:
        (output / job.folder).mkdir(parents=True)
        (output / job.folder / RESULT_FILE).write_text(result)
    sleeper = output / "sleeper"
    sleeper.write_text(SLEEPER % (each, result, RESULT_FILE))
    sleeper.chmod(0o755)
    clocks: list[tuple[float, float, int]] = []

    def changed(status: Status, event: str) -> None:
        view(status, event)
        if len(status.running) == WORKERS and not event:
            clocks.append((time.perf_counter(), time.process_time(), len(status.finished)))
            if clocks[-1][0] - clocks[0][0] >= window:
                raise KeyboardInterrupt

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    with contextlib.suppress(KeyboardInterrupt), View(output, console).shown() as view:
        Queue(jobs, output, Devices(workers=WORKERS), python=str(sleeper)).run(changed)
    (start, cpu, finished), (end, cpu_end, finished_end) = clocks[0], clocks[-1]
    return 100 * (cpu_end - cpu) / (end - start), finished_end - finished


def queue(args: argparse.Namespace) -> list[str]:
    jobs = [Job(planned, ()) for planned in planned_runs(args.runs)]
    cells = []
    for what, each in (("none ends", 600.0), ("one ends each second", float(WORKERS))):
        with tempfile.TemporaryDirectory() as output:
            share, ended = queue_share(jobs, Path(output), each, args.window)
        cells.append([what, str(ended), f"{share:.2f} %"])
    return [
        f"# The queue of a sweep: {args.runs:,} runs, half of them done, {WORKERS} at a time",
        "",
        *conditions(["torch", "rich"], load_average()),
        f"- {args.window:g} seconds from when all workers have a run; runs are shells that sleep; the live "
        "table of a terminal is drawn, into memory",
        "",
        table(cells, ["runs", "ended", "of a core"]),
    ]


# --- report ----------------------------------------------------------------------------------------------


def write_results(output: Path, count: int) -> None:
    """Runs with result, predictions of a few images, and their plan."""
    rows = [Prediction(f"{image}.jpg", image % 5, 0, (0, 1), (2.5, 1.25)) for image in range(20)]
    write_predictions(rows, output / "predictions.csv.gz")
    settings = plain(get_cfg_default())
    runs = planned_runs(count)
    for number, run in enumerate(runs):
        folder = output / run.folder
        folder.mkdir(parents=True)
        os.link(output / "predictions.csv.gz", folder / "predictions.csv.gz")
        (folder / RESULT_FILE).write_text(json.dumps(result_of(run, settings, 60 + number % 97 / 4)))
    (output / "predictions.csv.gz").unlink()
    by_protocol = {run.protocol: [] for run in runs}
    for run in runs:
        by_protocol[run.protocol].append(run)
    for protocol, those in by_protocol.items():
        save_plan(protocol, those, output)


def result_of(run: Planned, settings: dict[str, Any], accuracy: float) -> dict[str, Any]:
    """The content of a result.json, as large as of a real run."""
    influences = influencing(settings, trains=True)
    data = {"dataset": run.dataset, "classes": "all" if run.classes == "all" else "base"}
    data |= {"shots": run.shots, "seed": run.seed, "sample_sha256": f"{run.seed:064x}"}
    return {
        "format": FORMAT,
        **{"trainer": run.trainer, "config": run.config, "dataset": run.dataset},
        "dataset_config": run.dataset,
        **{"classes": run.classes, "split": "test", "shots": run.shots, "seed": run.seed},
        **{"backbone": "ViT-B/16", "eval_only": not run.trains, "epochs": 5 * run.trains, "total": 20},
        "trained_on": {**data, "settings": influences},
        "results": {"accuracy": accuracy, "macro_f1": accuracy - 1},
        "per_class": [{"label": n, "name": f"class {n}", "total": 4, "correct": 3} for n in range(5)],
        "calibration": {"ece": 5.0, "ece_after": 2.0, "temperature": 1.1},
        "learned_parameters": 3_555_072,
        "seconds": {"total": 100.0, "training": 80.0, "testing": 10.0},
        "identity": {"run": "", "cell": "c" * 64, "parts": {"model": "m" * 64}, "settings": influences},
        "settings": settings,
        "predictions_sha256": "p" * 64,
    }


def report(args: argparse.Namespace) -> list[str]:
    loads, cells = load_average(), []
    with tempfile.TemporaryDirectory() as output:
        write_results(Path(output), args.results)
        for form in ("text", "csv", "html"):
            words = [output, "--format", form, "--out", str(Path(output) / "report")]
            seconds, peak, _ = measured(scripts_report.main, words)
            cells.append([form, f"{seconds:.1f}", f"{peak:,.0f}"])
            progress(str(cells[-1]))
    return [
        f"# The report on {args.results:,} results",
        "",
        *conditions(["torch", "numpy"], loads),
        "- A process of its own for each, forked from one that has imported what it needs; peak of memory "
        "above that. Files are in the system's cache",
        "",
        table(cells, ["format", "seconds", "MiB"]),
    ]


# --- folder ----------------------------------------------------------------------------------------------


def write_index(place: Path, photos: int, classes: int) -> None:
    """Folders of classes, empty, with an index that says they hold photos."""
    index, listed = folder_index.Index(str(place)), time.time_ns() + 3_600_000_000_000
    for number in range(classes):
        (place / f"class_{number:05d}").mkdir(parents=True)
        status = (place / f"class_{number:05d}").stat()
        names = pack_names(f"photo_{photo:07d}.jpg" for photo in range(number, photos, classes))
        entry = ((status.st_mtime_ns, status.st_ctime_ns), listed, folder_index.Listing(names, b""))
        index._current_listings[f"class_{number:05d}"] = entry
    index.changed = True
    index.save()


def write_tree(place: Path, photos: int, classes: int) -> None:
    """Empty files."""
    for number in range(classes):
        (place / f"class_{number:05d}").mkdir(parents=True)
        for photo in range(number, photos, classes):
            (place / f"class_{number:05d}" / f"photo_{photo:07d}.jpg").touch()
    time.sleep(3)  # a folder that has just been changed is listed again


def open_folder(place: Path, shots: int) -> list[int]:
    """How many photos are trained on, for validation and tested."""
    cfg = get_cfg_default()
    extend_cfg(cfg)
    cfg.DATASET.NAME, cfg.DATASET.ROOT, cfg.DATASET.NUM_SHOTS, cfg.SEED = "folder", str(place), shots, 1
    dataset = build_dataset(cfg)
    return [len(dataset.train_x), len(dataset.val), len(dataset.test)]


def folder(args: argparse.Namespace) -> list[str]:
    loads, cells = load_average(), []
    for what, count, write in (
        ("a generated index", args.photos, write_index),
        ("a tree of empty files", args.photos // 10, write_tree),
    ):
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), count, args.folders)
            progress(f"{what} is made")
            for how, shots in (("first time, 16 shots", 16), ("again, 16 shots", 16), ("again, all", -1)):
                seconds, peak, sizes = measured(open_folder, Path(place), shots)
                cells.append([what, f"{count:,}", how, f"{seconds:.1f}", f"{peak:,.0f}", f"{sizes[0]:,}"])
                progress(str(cells[-1]))
    return [
        f"# Own photos in {args.folders:,} class folders, opened as `DATASET.NAME folder`",
        "",
        *conditions(["numpy"], loads),
        "- A process of its own for each, forked from one that has imported what it needs; peak of memory "
        "above that. Files are in the system's cache",
        "- The first time divides the photos and saves the split",
        "",
        table(cells, ["photos", "", "opened", "seconds", "MiB", "trained on"]),
    ]


PARTS = {"queue": queue, "report": report, "folder": folder}


@one_line_errors
def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; by default all")
    add("--runs", type=int, default=2000, help="of the queue")
    add("--window", type=float, default=30, help="seconds that the queue is looked at")
    add("--results", type=int, default=10_000, help="of the report")
    add("--photos", type=int, default=10_000_000, help="of the folder; a tenth of them as files")
    add("--folders", type=int, default=1000, help="of the photos")
    add_common(parser, threads=1)
    args = parser.parse_args(argv)
    for part in args.parts:
        if part not in PARTS:
            raise UserError(f"{part}: no such part; there are {', '.join(PARTS)}.")
    if is_refused(args):
        return 1
    for part in args.parts or PARTS:
        save(args.out / f"scale_{part}.md", PARTS[part](args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
