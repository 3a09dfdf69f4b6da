"""Mutates inputs and counts what becomes of them, as many as one likes.

    make mutations CASES=3000                                                  # all kinds by turns
    PYTHONPATH=.:tests python -m mutations --kinds checkpoint --cases 100
    PYTHONPATH=.:tests python -m mutations --kinds checkpoint --first 17 --cases 1 --show   # one case again

It exits with 1 if there is a fault: a traceback, a hang, nonsense that was taken, a file outside of its
folder, code that ran.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
from collections import Counter

from tabulate import tabulate
from tqdm import tqdm

from .cases import CASES, limit, outcome
from .outcome import FINE, SECONDS, Outcome

SHOWN = 20  # faults


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kinds", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--show", action="store_true", help="print each case, too")
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.cases)
    cases = [(args.kinds[number % len(args.kinds)], number) for number in numbers]
    counts: dict[str, Counter] = {kind: Counter() for kind in args.kinds}
    faults = []
    # A process is spawned, and replaced now and then, so that no case lives on in the next ones.
    with multiprocessing.get_context("spawn").Pool(args.processes, limit, maxtasksperchild=400) as pool:
        waiting = [(case, pool.apply_async(outcome, (case,))) for case in cases]
        for (kind, number), result in tqdm(waiting, disable=None):
            try:
                found = result.get(timeout=SECONDS * 30)
            except multiprocessing.TimeoutError:
                found = Outcome("hang", "not even a signal ended it")
            counts[kind][found.kind] += 1
            if args.show:
                print(f"{kind} {number}: {found.kind} {found.words}", flush=True)
            if found.kind not in FINE:
                faults.append((kind, number, *found))
    kinds = [*FINE, *sorted({kind for each in counts.values() for kind in each} - {*FINE})]
    rows = [[kind, *(each[name] for name in kinds)] for kind, each in counts.items()]
    print(
        tabulate(
            [*rows, ["all", *(sum(column) for column in [*zip(*rows, strict=True)][1:])]], ["input", *kinds]
        )
    )
    for kind, number, name, words in faults[:SHOWN]:
        print(f"\n{kind} {number}: {name}\n{words}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
