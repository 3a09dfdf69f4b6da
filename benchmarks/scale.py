"""What many runs, images, classes and users cost, on generated trees: no image is read, and no model is run.

    python -m benchmarks.scale                    # all parts
    python -m benchmarks.scale queue report       # some of them

- queue: what a sweep's own process takes of a core, with many runs waiting and a few running
- report: seconds of `scripts.report` on many results
- folder: own photos in class folders (`DATASET.NAME folder`), opened the first time and from the index
- classes: each place that a run passes with all of its classes, and whether it grows evenly with them
- weights: how often jobs that start together download the same weights
- users: whether somebody else can open what one user has indexed and cached (as root)
"""

from __future__ import annotations

import argparse
import contextlib
import encodings.utf_8_sig  # noqa: F401  (another user may not be able to read it)
import hashlib
import io
import itertools
import json
import multiprocessing
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingTCPServer
from typing import Any, NamedTuple

import torch
from rich.console import Console

from benchmarks.harness import add_common, is_refused, one_line_errors, progress, save, table
from benchmarks.machine import conditions, load_average
from dassl.config import get_cfg_default
from dassl.config.influence import influencing, plain
from dassl.data import folder_index, splits
from dassl.data.class_names import check_class_names
from dassl.data.datasets import DatasetBase, build_dataset
from dassl.data.packed_rows import Rows, pack_names
from dassl.evaluation import FirstClasses, Prediction, write_predictions
from experiments.costs.complexity import build_cfg, find_method
from experiments.costs.synthetic import build_synthetic, image_size
from experiments.methods import read_methods
from experiments.plans import Planned, save_plan
from experiments.record import Record
from experiments.results.benchmarks import ELEVEN
from experiments.run_folder import FORMAT, RESULT_FILE
from experiments.sweeps.devices import Devices
from experiments.sweeps.job import Job
from experiments.sweeps.queue import Queue, Status
from experiments.sweeps.view import View
from prompted_clip import factory
from prompted_clip.errors import UserError
from scripts import report as scripts_report
from trainers.configuration import extend_cfg

WORKERS = 8  # of the queue
PHOTOS = 20  # of each class
EMBEDDED = "ViT-Shapes/8"
TESTED = ("TEST.PER_CLASS_RESULT", "True")
NOBODY = 65534  # a user's number
SLEEPER = """#!/bin/sh
for word; do [ "$before" = --output-dir ] && folder=$word; before=$word; done
sleep %s
echo '%s' > "$folder/%s"
"""


class Measured(NamedTuple):
    seconds: float
    cpu: float  # seconds
    peak: float  # of memory, MiB above that before
    result: Any


def measured(work: Callable[..., Any], *args: Any) -> Measured:
    """What some work takes in a process of its own."""
    receiver, sender = multiprocessing.get_context("fork").Pipe(duplex=False)
    process = multiprocessing.get_context("fork").Process(target=_work, args=(sender, work, *args))
    process.start()
    sender.close()
    found = receiver.recv()
    process.join()
    return found


def _work(sender: Any, work: Callable[..., Any], *args: Any) -> None:
    before, start, cpu = _peak(), time.perf_counter(), time.process_time()
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        result = work(*args)
    seconds = time.perf_counter() - start, time.process_time() - cpu
    sender.send(Measured(*seconds, _peak() - before, result))


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
    by_protocol: dict[str, list[Planned]] = {run.protocol: [] for run in runs}
    for run in runs:
        by_protocol[run.protocol].append(run)
    for protocol, those in by_protocol.items():
        save_plan(protocol, those, output)


def result_of(run: Planned, settings: dict[str, Any], accuracy: float) -> dict[str, Any]:
    """The content of a result.json, as large as of a real run."""
    influences = influencing(settings, trains=True)
    data: dict[str, Any] = {"dataset": run.dataset, "classes": "all" if run.classes == "all" else "base"}
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
            found = measured(scripts_report.main, words)
            cells.append([form, f"{found.seconds:.2f}", f"{found.cpu:.2f}", f"{found.peak:,.0f}"])
            progress(str(cells[-1]))
    return [
        f"# The report on {args.results:,} results",
        "",
        *conditions(["torch", "numpy"], loads),
        "- A process of its own for each, forked from one that has imported what it needs; peak of memory "
        "above that. Files are in the system's cache",
        "",
        table(cells, ["format", "seconds", "of a core", "MiB"]),
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
                found = measured(open_folder, Path(place), shots)
                numbers = [f"{found.seconds:.2f}", f"{found.cpu:.2f}", f"{found.peak:,.0f}"]
                cells.append([what, f"{count:,}", how, *numbers, f"{found.result[0]:,}"])
                progress(str(cells[-1]))
    return [
        f"# Own photos in {args.folders:,} class folders, opened as `DATASET.NAME folder`",
        "",
        *conditions(["numpy"], loads),
        "- A process of its own for each, forked from one that has imported what it needs; peak of memory "
        "above that. Files are in the system's cache",
        "- The first time divides the photos and saves the split",
        "",
        table(cells, ["photos", "", "opened", "seconds", "of a core", "MiB", "trained on"]),
    ]


# --- classes ---------------------------------------------------------------------------------------------


def names_of_classes(count: int) -> list[str]:
    """Names that are different sentences, of words that the embedded CLIP knows."""
    words = ("red", "green", "blue", "yellow", "purple", "orange", "pink", "small", "large", "striped")
    return [" ".join(words[int(digit)] for digit in f"{number:05d}") for number in range(count)]


def seconds_by_classes(count: int) -> dict[str, float]:
    """Seconds of this process in each place that a run passes with all of its classes."""
    seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def clock(what: str) -> Iterator[None]:
        start = time.process_time()
        yield
        seconds[what] = time.process_time() - start

    names = names_of_classes(count)
    with clock("class names: the same sentence refused"):
        check_class_names(dict(enumerate(names)), f"{count} classes", "")
    rows = [(f"{label}/{k}.jpg", label, name) for label, name in enumerate(names) for k in range(PHOTOS)]
    packed = Rows.pack(rows)
    split = splits.Split(packed, Rows.pack(rows[::PHOTOS]), Rows.pack(rows[1::PHOTOS]))
    with clock("split checked, its names known"):
        splits.check_labels(split, "generated")
    with tempfile.TemporaryDirectory() as place, clock("16 shots drawn, and saved"):
        train, val = splits.few_shot(split.train, split.val, 16, 1, f"{place}/cache/shots.json")
    with clock("dataset: base classes chosen"):
        parts = [splits.to_datums(part, "") for part in (train, val, split.test)]
        base = DatasetBase(*splits.subsample_classes(parts[0], subsample="base"))
    with clock("model: CLIP and a learner of the classes built"):
        method, size = find_method("MaPLe", EMBEDDED), image_size(EMBEDDED)
        cfg = build_cfg(method, names, EMBEDDED, size, options=["USE_CUDA", "False", *TESTED])
        trainer = build_synthetic(cfg)
    with clock("model: text features"), torch.no_grad():
        trainer.model.encode_text()
    evaluator, first = trainer.evaluator, FirstClasses(cfg)
    scores, labels = torch.randn(100, count), torch.arange(count)
    with clock("an image of each class: evaluated"):
        for batch in labels.split(100):
            evaluator.process(scores[: len(batch)], batch)
        evaluator.evaluate()
    with clock("an image of each class: predictions written"), tempfile.TemporaryDirectory() as place:
        for batch in labels.split(100):
            first.add({"impath": [f"{label}.jpg" for label in batch]}, scores[: len(batch)], batch)
        write_predictions(first.result() or [], f"{place}/predictions.csv.gz")
    with clock("result.json written"), tempfile.TemporaryDirectory() as place:
        cfg.defrost()
        cfg.OUTPUT_DIR = place
        flags = argparse.Namespace(eval_only=False, config_file="", dataset_config_file="", model_dir="")
        record = Record(trainer, flags, [])
        record.write()
    assert len(base.classnames) == (count + 1) // 2
    return seconds


def classes(args: argparse.Namespace) -> list[str]:
    loads, counts = load_average(), (args.classes // 10, args.classes)
    fewer, all_of_them = (measured(seconds_by_classes, count) for count in counts)
    cells = [
        [what, f"{fewer.result[what]:.2f}", f"{seconds:.2f}", f"{seconds / fewer.result[what]:.1f}"]
        for what, seconds in all_of_them.result.items()
    ]
    return [
        f"# What grows with the classes, up to {args.classes:,}",
        "",
        *conditions(["torch", "numpy"], loads),
        f"- Seconds of the process, one thread; {EMBEDDED}, a text encoder of a sixth of ViT-B/16's width",
        "- Where an image of each class is scored, that is images times classes: a quotient of up to 100",
        f"- {PHOTOS} images a class, none of which is read; peak of memory in all of it: "
        f"{fewer.peak:,.0f} and {all_of_them.peak:,.0f} MiB above the imports",
        "",
        table(cells, ["", *(f"{count:,} classes" for count in counts), "quotient (10: linear)"]),
    ]


# --- weights ---------------------------------------------------------------------------------------------


class _Weights(BaseHTTPRequestHandler):
    content = bytes(50_000_000)

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        self.wfile.write(self.content)

    def log_message(self, *_: Any) -> None:
        pass


def download_all(jobs: int, address: str) -> int:
    """Starts processes that all want the same file; how many have it in the end."""
    with tempfile.TemporaryDirectory() as place, multiprocessing.get_context("fork").Pool(jobs) as pool:
        found = pool.starmap(factory._download, [(address, place)] * jobs, chunksize=1)
        return sum(Path(path).stat().st_size == len(_Weights.content) for path in found)


def weights(args: argparse.Namespace) -> list[str]:
    loads = load_average()
    os.environ["no_proxy"] = "127.0.0.1"
    server = ThreadingTCPServer(("127.0.0.1", 0), _Weights)
    server.asked = []  # type: ignore[attr-defined]
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sha256 = hashlib.sha256(_Weights.content).hexdigest()
    address = f"http://127.0.0.1:{server.server_address[1]}/{sha256}/weights.pt"
    found = measured(download_all, args.jobs, address)
    asked = len(server.asked)  # type: ignore[attr-defined]
    server.shutdown()
    server.server_close()
    return [
        f"# Weights of {len(_Weights.content) / 1e6:.0f} MB for {args.jobs} cold jobs that start together",
        "",
        *conditions(["filelock"], loads),
        "- From a server on this machine; each job hashes the file before it takes it",
        "",
        table(
            [[str(args.jobs), str(found.result), str(asked), f"{found.seconds:.1f}"]],
            ["jobs", "have the file", "downloads", "seconds until all have it"],
        ),
    ]


# --- users -----------------------------------------------------------------------------------------------


def as_nobody(work: Callable[..., Any], *args: Any) -> Any:
    """As another user, whose cache is a folder of its own."""
    os.setgroups([])
    os.setgid(NOBODY)
    os.setuid(NOBODY)
    return work(*args)


def users(args: argparse.Namespace) -> list[str]:
    if os.geteuid() != 0:
        raise UserError("users takes the place of another user, which root alone can; run it as root.")
    loads, cells = load_average(), []
    with tempfile.TemporaryDirectory() as data, tempfile.TemporaryDirectory() as cache:
        place = Path(data)
        os.chmod(place, 0o755)
        os.chmod(cache, 0o777)
        os.environ["XDG_CACHE_HOME"] = cache
        write_tree(place, args.photos // 100, args.folders)
        for who, how, shots in (
            ("owner", "first time", 2),
            ("owner", "again", 2),
            ("another", "by the owner's index", 2),
            ("another", "other shots, which cannot be saved there", 3),
            ("another", "after a photo was added", 2),
            ("another", "again, by an index of their own", 2),
        ):
            if "added" in how:
                (place / "class_00000" / "late.jpg").touch()
                time.sleep(3)
            work = (open_folder, place, shots)
            found = measured(as_nobody, *work) if who == "another" else measured(*work)
            cells.append([who, how, f"{found.seconds:.1f}", f"{found.result[0]:,}"])
    return [
        f"# Two users on one folder of {args.photos // 100:,} photos, which one of them may not write into",
        "",
        *conditions(["numpy"], loads),
        "",
        table(cells, ["user", "opens it", "seconds", "trained on"]),
    ]


PARTS = {each.__name__: each for each in (queue, report, folder, classes, weights, users)}


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
    add("--classes", type=int, default=21_000, help="at most; measured beside a tenth of them")
    add("--jobs", type=int, default=100, help="that want the same weights")
    add_common(parser, threads=1)
    args = parser.parse_args(argv)
    for part in args.parts:
        if part not in PARTS:
            raise UserError(f"{part}: no such part; there are {', '.join(PARTS)}.")
    for name, least in (("classes", 10), ("photos", max(100 * args.folders, folder_index.LEAST))):
        if getattr(args, name) < least:
            raise UserError(f"--{name} is {getattr(args, name)}; allowed is {least:,} or more.")
    if is_refused(args):
        return 1
    for part in args.parts or PARTS:
        save(args.out / f"scale_{part}.md", PARTS[part](args))
    return 0


if __name__ == "__main__":
    sys.exit(main())
