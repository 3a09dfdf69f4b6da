"""Kills commands of the project at a file operation, and runs the same command again.

    make kills KILLS=100
    PYTHONPATH=.:tests python -m mutations.kills --commands train --first 17 --kills 1     # one kill again

What the second run leaves must be what an undisturbed one leaves: the same files and no others, the same
tensors and numbers to the bit. Logs, times and peaks of memory may differ. Each kill has a number, its seed.
Processes are forked from one that has imported everything, so that a kill takes about a second.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import random
import re
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from fake_runs import result, write
from file_server import FileServer
from script_jobs import script_job
from tabulate import tabulate

import train
from dassl.data import folder_index
from dassl.data.few_shot_dataset import FewShotDataset
from datasets.prepare import prepare
from datasets.sources import Entry, File
from experiments.sweeps.devices import Devices
from experiments.sweeps.queue import Queue
from prompted_clip.files import sha256_of_file
from scripts import report

from .configuration_cases import default
from .data_cases import opened, photos, tar_of
from .tensor_cases import WORDS, weights_of_clip

SECONDS = 120  # of a command
MAY_DIFFER = (
    "finished",
    "seconds",
    "peak_memory_bytes",
    "images_per_second",
    "sha256",  # over all of them
    "resumed_from_epoch",
    "command",
    "versions",
)
# Logs of each attempt, and locks, which are empty and stay; what the runs of a sweep say of their attempts.
NOT_COMPARED = re.compile(r"pid|attempts|log\.txt.*|events\.out\.tfevents.*|\.lock|lock|.*\.lock")
TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?")
CROPS = re.compile(r"(?<=_)[0-9a-f]{16}(?=\.npy)")  # of the test cache: made of the images' times, too


class Drawn(FewShotDataset):
    """A dataset that makes its images where there are none."""

    dataset_dir, image_dir, split_file = "drawn", "images", "split.json"

    def make(self, folder: str) -> None:
        photos(Path(folder, "images"))
        rows = [
            [f"{name}/{index}.png", label, name]
            for label, name in enumerate(("bear", "cat"))
            for index in (0, 1)
        ]
        content = {"train": rows[::2], "val": [], "test": rows[1::2]}
        Path(folder, "split.json").write_text(json.dumps(content))


def _train(folder: Path, *words: str) -> int:
    options = (
        *("DATASET.ROOT", str(folder / "photos"), "MODEL.BACKBONE.PATH", str(folder / "clip.pt")),
        *("DATALOADER.TEST_CACHE", str(folder / "cache"), "TEST.SAVE_PREDICTIONS", "True"),
        *("TEST.COMPUTE_CMAT", "True", "TRAIN.CHECKPOINTS_KEPT", "1", "TEST.FINAL_MODEL", "best_val"),
    )
    return train.command_line(["--output-dir", str(folder / "run"), *words, *WORDS, *options])


def train_(folder: Path) -> int:
    """A training of two epochs, on photos without a split."""
    return _train(folder)


def test(folder: Path) -> int:
    """A test of what was trained, in the folder of the training."""
    return _train(folder, "--eval-only", "--model-dir", str(folder / "run"))


def open_photos(folder: Path) -> int:
    """Own photos: their split, few-shot images, and index."""
    folder_index.LEAST = 1
    opened(folder / "photos", "folder")
    return 0


def draw(folder: Path) -> int:
    """A dataset that is drawn."""
    cfg = default().clone()
    cfg.merge_from_list(["DATASET.ROOT", str(folder), "DATASET.NUM_SHOTS", 1, "SEED", 1])
    Drawn(cfg)
    return 0


def prepare_(folder: Path) -> int:
    """An archive that is laid out."""
    file = File("a.tar.gz", take={"a/images": "images", "a/list.txt": "lists/list.txt"})
    entry = Entry("Small", "small", "images", None, None, files=(file, File("split.json")))
    return len(prepare(entry, folder))


def report_(folder: Path) -> int:
    """The report on some runs."""
    words = [str(folder / "runs"), "--out", str(folder / "report")]
    return sum(report.main([*words, "--format", kind]) for kind in ("text", "markdown", "latex", "csv"))


def html_(folder: Path) -> int:
    """The report on some runs, as a page."""
    return report.main([str(folder / "runs"), "--format", "html", "--out", str(folder / "report")])


def download_(folder: Path) -> int:
    """An archive that is fetched from a server, and laid out."""
    server = FileServer({"a.tar.gz": (folder.parent / "served").read_bytes()})
    content = "sha256:" + sha256_of_file(folder.parent / "served")
    file = File("a.tar.gz", content, (server.url("plain", "a.tar.gz"),), take={"a/images": "images"})
    lines = prepare(Entry("Small", "small", "images", None, None, files=(file,)), folder)
    server.stop()
    return len(lines)


def sweep_(folder: Path) -> int:
    """A sweep of three runs of a few lines, whose process alone is killed: its runs go on."""
    jobs = [script_job("a"), script_job("b", "time.sleep(0.2)"), script_job("c", needs="a")]
    status = Queue(jobs, folder / "out", Devices(workers=2), 1).run(lambda status, event: None)
    time.sleep(0.3)  # for runs of the killed sweep
    return len(status.failed)


COMMANDS: dict[str, Callable[[Path], int]] = {
    "train": train_,
    "test": test,
    "photos": open_photos,
    "draw": draw,
    "prepare": prepare_,
    "report": report_,
    "html": html_,
    "download": download_,
    "sweep": sweep_,
}


def fill(command: str, folder: Path) -> None:
    """Makes what a command reads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    if command in ("train", "test", "photos"):
        photos(folder / "photos")
        torch.save(weights_of_clip(), folder / "clip.pt")
    if command == "test":
        assert run(train_, folder)[0] == 0
    if command == "prepare":
        (folder / "small").mkdir()
        members = {f"a/images/{index}.txt": b"image" for index in range(3)}
        (folder / "small" / "a.tar.gz").write_bytes(tar_of({**members, "a/list.txt": b"list"}))
        (folder / "small" / "split.json").write_text("{}")
    if command == "download":
        members = {f"a/images/{index}.txt": random.Random(index).randbytes(100_000) for index in range(3)}
        (folder.parent / "served").write_bytes(tar_of(members))
    if command in ("report", "html"):
        for seed in (1, 2, 3):
            write(folder / "runs" / f"seed{seed}", result(80.0 + seed, "dtd", "base", seed))


# --- one command ------------------------------------------------------------------------------------------


def run(command: Callable[[Path], int], folder: Path, killed_at: int = 0) -> tuple[int, int, str]:
    """Runs a command in a process of its own.

    Args:
        killed_at: number of the file operation below `folder` that is not done any more; 0 for none.

    Returns:
        Exit code (-9 if it was killed), how many operations there were, and what it printed.
    """
    count = mmap.mmap(-1, 8)
    log = folder.parent / "printed"
    process = os.fork()
    if not process:
        _run_here(command, folder, killed_at, count, log)
    code = os.waitstatus_to_exitcode(_waited(process))
    return code, struct.unpack("q", count[:8])[0], log.read_text(errors="replace")


def _waited(process: int) -> int:
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        done, status = os.waitpid(process, os.WNOHANG)
        if done:
            return status
        time.sleep(0.005)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    raise TimeoutError(f"over {SECONDS} s")


def _run_here(
    command: Callable[[Path], int], folder: Path, killed_at: int, count: mmap.mmap, log: Path
) -> None:
    """Runs a command and ends this process."""
    code = 1
    try:
        with open(log, "w") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
        below, done = f"{folder}{os.sep}", 0

        def look(event: str, args: tuple[Any, ...]) -> None:
            nonlocal done
            if event != "open" and not event.startswith(("os.", "shutil.", "fcntl.")):
                return
            if not any(
                isinstance(each, (str, os.PathLike)) and os.fspath(each).startswith(below) for each in args
            ):
                return
            done += 1
            count[:8] = struct.pack("q", done)
            if done == killed_at:
                os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(look)
        code = command(folder)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


# --- what is left -----------------------------------------------------------------------------------------


def left_in(folder: Path) -> dict[str, Any]:
    """Each file by its path, with what must be the same."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        if not NOT_COMPARED.fullmatch(path.name):
            name = CROPS.sub(str(path.stat().st_size), str(path.relative_to(folder)))
            found[name] = _content(path)
    return found


def _content(path: Path) -> Any:
    if path.is_dir():
        return "a folder"
    if ".pth.tar" in path.name:
        return torch.load(path, weights_only=False)
    if path.name.startswith("result"):
        content = json.loads(path.read_text())
        return {key: value for key, value in content.items() if key not in MAY_DIFFER}
    if path.name == "folders_content.json":  # with the times of the files
        entries = json.loads(path.read_bytes().partition(b"\n")[2])
        return {key: entry[-1] for key, entry in entries.items()}
    if path.name == "folders.bin":
        return path.stat().st_size
    if path.name == "report.html":  # says when it was made
        return TIME.sub("", path.read_text())
    return path.read_bytes() if ".npy" not in path.name else path.stat().st_size


def difference(one: Any, other: Any, where: str = "") -> str:
    """The first place where two values differ; "" if they are equal to the bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        only = sorted(map(str, one.keys() ^ other.keys()))
        inner = (difference(one[key], other[key], f"{where}/{key}") for key in one if key in other)
        return f"{where}: only once: {only}" if only else next(filter(None, inner), "")
    if isinstance(one, (list, tuple)) and type(one) is type(other) and len(one) == len(other):
        inner = (
            difference(*each, f"{where}/{place}") for place, each in enumerate(zip(one, other, strict=True))
        )
        return next(filter(None, inner), "")
    if isinstance(one, torch.Tensor):
        same = isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
        return "" if same else f"{where}: other numbers"
    same = type(one) is type(other) and (one == other or one != one)
    return "" if same else f"{where}: {str(one)[:100]!r} and {str(other)[:100]!r}"


class Killed:
    """A command, what it reads, and what an undisturbed run leaves, in a folder of one name."""

    def __init__(self, command: str, place: Path) -> None:
        self.command = command
        self.folder = place / "work"
        self.start = place / f"{command} before"
        if not self.start.exists():
            fill(command, self.folder)
            self.folder.rename(self.start)
        self.begin()
        code, self.operations, printed = run(COMMANDS[command], self.folder)
        assert code == 0, f"{command} ends with {code}: {printed}"
        self.left = left_in(self.folder)

    def begin(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.start, self.folder)

    def fault(self, number: int) -> str:
        """What differs after a kill and the same command again; "" for nothing."""
        at = random.Random(f"{self.command} {number}").randint(1, self.operations)
        self.begin()
        try:
            run(COMMANDS[self.command], self.folder, at)
            code, _, printed = run(COMMANDS[self.command], self.folder)
        except TimeoutError as error:
            return f"killed at {at}: {error}"
        if code:
            return f"killed at {at}: the second run ends with {code}: {printed[-600:]}"
        found = difference(self.left, left_in(self.folder))
        return f"killed at {at} of {self.operations}: {found}" if found else ""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--first", type=int, default=0, help="number of the first kill")
    parser.add_argument("--commands", nargs="+", choices=[*COMMANDS], default=[*COMMANDS])
    args = parser.parse_args()
    torch.set_num_threads(1)  # a process with threads cannot be forked
    rows, faults = [], []
    with tempfile.TemporaryDirectory() as place:
        for turn, name in enumerate(args.commands):
            killed = Killed(name, Path(place).resolve())
            numbers = range(args.first + turn, args.first + args.kills, len(args.commands))
            found = [(number, fault) for number in numbers if (fault := killed.fault(number))]
            faults += [f"{name} {number}: {fault}" for number, fault in found]
            rows.append([name, killed.operations, len(numbers) - len(found), len(found)])
            print(*rows[-1], *(fault for _, fault in found), sep="\n  ", flush=True)
    print(tabulate(rows, ["command", "operations", "as undisturbed", "faults"]))
    print("\n".join(faults))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
