"""Base to novel on the embedded dataset: zero-shot CLIP and MaPLe, or all methods, side by side.

    python -m scripts.demo --seeds 1 2 3
    python -m scripts.demo --seeds 1 2 3 --all

It runs `scripts/base2new_train.sh` and `scripts/base2new_test.sh`, and goes on where it was stopped: what has
a result is not run again.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import NamedTuple

from tabulate import tabulate

from parse_test_res import read_result

ROOT = Path(__file__).resolve().parent.parent


class Method(NamedTuple):
    label: str
    trainer: str
    config: str = "shapes"  # a file of configs/trainers/<trainer>

    @property
    def steps(self) -> list[tuple[str, str, str]]:
        """Script, folder of its result, and which classes it tests."""
        base = ("base2new_train.sh", "train_base", "base")
        if self.trainer.startswith("Zeroshot"):
            base = ("base2new_test.sh", "test_base", "base")
        return [base, ("base2new_test.sh", "test_new", "new")]


DEMO = [Method("zero-shot CLIP", "ZeroshotCLIP"), Method("MaPLe, 16 shots", "MaPLe")]
ALL = [
    Method("zero-shot CLIP", "ZeroshotCLIP"),
    Method("zero-shot CLIP, 8 templates", "ZeroshotCLIP2"),
    Method("CoOp, 50 epochs", "CoOp", "shapes_ep50"),
    Method("CoOp†", "CoOp"),
    Method("CoCoOp", "CoCoOp"),
    Method("KgCoOp, 100 epochs", "KgCoOp", "shapes_ep100"),
    Method("KgCoOp†", "KgCoOp"),
    Method("deep vision prompting", "VPT"),
    Method("deep language prompting", "IVLP", "shapes_language_only"),
    Method("independent V-L prompting", "IVLP"),
    Method("MaPLe shallow", "MaPLe", "shapes_shallow"),
    Method("MaPLe", "MaPLe"),
    Method("MaPLe†", "MaPLe", "shapes_shared"),
    Method("PromptSRC", "PromptSRC"),
    Method("MaPLe with PromptSRC's losses", "MaPLeSRC"),
]


class Result(NamedTuple):
    """Percent, numbers learned, and seconds of the training with its test."""

    base: float
    new: float
    parameters: float = 0
    seconds: float = 0

    @property
    def harmonic_mean(self) -> float:
        """HM of the two accuracies, as base-to-novel results are summed up; 0 if one of them is."""
        return 2 * self.base * self.new / (self.base + self.new) if self.base and self.new else 0.0


def logs_of(folder: Path) -> list[Path]:
    """The logs of a run, the newest first."""
    return sorted(folder.glob("log.txt*"), key=lambda log: log.stat().st_mtime, reverse=True)


def accuracy_of(folder: Path) -> float | None:
    """Accuracy in percent from the newest log in a folder; None if there is none yet."""
    results = (read_result(str(log), test_log=True) for log in logs_of(folder))
    return next((result for result in results if result is not None), None)


def numbers_after(word: str, folder: Path) -> list[int]:
    """The numbers in the first line that begins with `word`, of the logs in a folder; none without one."""
    for log in logs_of(folder):
        if found := re.search(rf"^{word}: ([\d,:]+)$", log.read_text(errors="replace"), re.MULTILINE):
            return [int(number) for number in found[1].replace(",", "").split(":")]
    return []


def run_step(script: str, method: Method, seed: int, classes: str, output: Path) -> None:
    environment = {**os.environ, "TRAINER": method.trainer, "SUB": classes, "PYTHON": sys.executable}
    environment |= {"OUTPUT": str(output), "SHOTS": "16", "CFG": method.config, "LOADEP": ""}
    # So small a model gains nothing from more threads, and waits long for them where others use the cores.
    environment.setdefault("OMP_NUM_THREADS", "1")
    subprocess.run(["bash", f"scripts/{script}", "shapes", str(seed)], cwd=ROOT, env=environment, check=True)


def result_of(method: Method, seed: int, output: Path, number: int, total: int) -> Result:
    """Runs what has no result yet. `number` of the first step of `total` is shown beside.

    Raises:
        FileNotFoundError: a script left no result.
        subprocess.CalledProcessError: a script failed.
    """
    found, places = [], []
    for step, (script, folder, classes) in enumerate(method.steps):
        run = Path("shapes") / "shots_16" / method.trainer / method.config / f"seed{seed}"
        places.append(output / "base2new" / folder / run)
        print(f"\n[{number + step}/{total}] {method.label}, seed {seed}, {classes} classes", flush=True)
        run_step(script, method, seed, classes, output)
        accuracy = accuracy_of(places[-1])
        if accuracy is None:
            raise FileNotFoundError(f"scripts/{script} left no result in {places[-1]}.")
        found.append(accuracy)
    parameters = numbers_after("Learned parameters", places[0])
    hours_minutes_seconds = numbers_after("Elapsed", places[0])
    seconds = sum(value * 60**k for k, value in enumerate(reversed(hours_minutes_seconds)))
    base, new = found
    return Result(base, new, sum(parameters), seconds)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Base to novel on the embedded dataset.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--all", action="store_true", help="all methods, with what they learn and how long")
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder of the results")
    args = parser.parse_args(argv)
    methods, seeds = ALL if args.all else DEMO, args.seeds
    start = time.time()
    total = sum(len(method.steps) for method in methods) * len(seeds)
    rows, number = [], 1
    for method in methods:
        results = []
        for seed in seeds:
            try:
                results.append(result_of(method, seed, args.output.resolve(), number, total))
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"demo: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print("\ndemo: stopped; the same command goes on from here.", file=sys.stderr)
                return 130
            number += len(method.steps)
            rows.append(row_of(method, f"seed {seed}", results[-1], args.all))
        if len(seeds) > 1:
            average = Result(*(mean(column) for column in zip(*results, strict=True)))
            rows.append(row_of(method, "mean", average, args.all))
    headers = ["", "", "base", "new", "HM", *(["parameters", "seconds"] if args.all else [])]
    print("\nBase to novel on the embedded dataset `shapes`, accuracy in percent:\n")
    print(tabulate(rows, headers=headers, floatfmt=("", "", ".2f", ".2f", ".2f", ",.0f", ".0f")))
    if len(seeds) > 1:
        print("\nThe mean's HM is that of the averaged base and new accuracies, as published averages are.")
    print(f"\n{time.time() - start:.0f} seconds. About this data and backbone: docs/embedded_default.md")
    return 0


def row_of(method: Method, seed: str, result: Result, with_costs: bool) -> list[str | float]:
    costs = [result.parameters, result.seconds] if with_costs else []
    return [method.label, seed, result.base, result.new, result.harmonic_mean, *costs]


if __name__ == "__main__":
    sys.exit(main())
