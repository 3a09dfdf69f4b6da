"""Base to novel on the embedded dataset: zero-shot CLIP and MaPLe, side by side.

    python -m scripts.demo --seeds 1 2 3

It runs `scripts/base2new_train.sh` and `scripts/base2new_test.sh`, and goes on where it was stopped: what has
a result is not run again.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from tabulate import tabulate

from parse_test_res import read_result

ROOT = Path(__file__).resolve().parent.parent
METHODS = {"ZeroshotCLIP": "zero-shot CLIP", "MaPLe": "MaPLe, 16 shots"}
# A step of the demo: script, folder of its result, and which classes it tests.
STEPS = {
    "ZeroshotCLIP": [("base2new_test.sh", "test_base", "base"), ("base2new_test.sh", "test_new", "new")],
    "MaPLe": [("base2new_train.sh", "train_base", "base"), ("base2new_test.sh", "test_new", "new")],
}


def harmonic_mean(base: float, new: float) -> float:
    """HM of two accuracies, as base-to-novel results are summed up; 0 if one of them is."""
    return 2 * base * new / (base + new) if base and new else 0.0


def result_of(folder: Path) -> float | None:
    """Accuracy in percent from the newest log in a folder; None if there is none yet."""
    logs = sorted(folder.glob("log.txt*"), key=lambda log: log.stat().st_mtime, reverse=True)
    results = (read_result(str(log), test_log=True) for log in logs)
    return next((result for result in results if result is not None), None)


def run_step(script: str, trainer: str, seed: int, classes: str, output: Path) -> None:
    environment = {**os.environ, "TRAINER": trainer, "SUB": classes, "PYTHON": sys.executable}
    environment |= {"OUTPUT": str(output), "SHOTS": "16", "CFG": "shapes", "LOADEP": ""}
    # So small a model gains nothing from more threads, and waits long for them where others use the cores.
    environment.setdefault("OMP_NUM_THREADS", "1")
    subprocess.run(["bash", f"scripts/{script}", "shapes", str(seed)], cwd=ROOT, env=environment, check=True)


def accuracies(trainer: str, seed: int, output: Path, number: int, total: int) -> dict[str, float]:
    """Runs what has no result yet; returns the accuracy by kind of classes."""
    found = {}
    for step, (script, folder, classes) in enumerate(STEPS[trainer]):
        run = Path("shapes") / "shots_16" / trainer / "shapes" / f"seed{seed}"
        place = output / "base2new" / folder / run
        print(f"\n[{number + step}/{total}] {METHODS[trainer]}, seed {seed}, {classes} classes", flush=True)
        run_step(script, trainer, seed, classes, output)
        result = result_of(place)
        if result is None:
            raise FileNotFoundError(f"scripts/{script} left no result in {place}.")
        found[classes] = result
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Base to novel on the embedded dataset.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--output", type=Path, default=ROOT / "output", help="folder of the results")
    args = parser.parse_args(argv)
    seeds = args.seeds
    start = time.time()
    total = sum(len(steps) for steps in STEPS.values()) * len(seeds)
    rows, number = [], 1
    for trainer, label in METHODS.items():
        results = []
        for seed in seeds:
            try:
                found = accuracies(trainer, seed, args.output.resolve(), number, total)
            except (subprocess.CalledProcessError, OSError) as error:
                print(f"demo: {error}", file=sys.stderr)
                return 1
            except KeyboardInterrupt:
                print("\ndemo: stopped; the same command goes on from here.", file=sys.stderr)
                return 130
            number += len(found)
            results.append((found["base"], found["new"]))
            rows.append([label, f"seed {seed}", *results[-1], harmonic_mean(*results[-1])])
        if len(seeds) > 1:
            base, new = (mean(column) for column in zip(*results, strict=True))
            rows.append([label, "mean", base, new, harmonic_mean(base, new)])
    print("\nBase to novel on the embedded dataset `shapes`, accuracy in percent:\n")
    print(tabulate(rows, headers=["", "", "base", "new", "HM"], floatfmt=".2f"))
    if len(seeds) > 1:
        print("\nThe mean's HM is that of the averaged base and new accuracies, as published averages are.")
    print(f"\n{time.time() - start:.0f} seconds. About this data and backbone: docs/embedded_default.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
