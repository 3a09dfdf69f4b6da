"""Mutates inputs and counts what becomes of them: as many as one likes.

    python tests/mutations/__main__.py --cases 3000                  # of all kinds by turns
    python tests/mutations/__main__.py --kinds checkpoint --first 17 --cases 1     # one case again

Each case has a number, its seed. It exits with 1 if there is a fault: a traceback, a hang, nonsense that was
taken, a file outside of its folder, code that ran.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import warnings
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from tabulate import tabulate
from tqdm import tqdm

from mutations.cases import CASES
from mutations.outcome import FINE, SECONDS, Outcome, outcome_of

MOST_MEMORY = 8 << 30  # bytes of address space of a process
SHOWN = 20  # faults


def limit() -> None:
    warnings.simplefilter("ignore")
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MOST_MEMORY, MOST_MEMORY))
    except (ImportError, ValueError):  # another system
        return


def outcome(case: tuple[str, int]) -> Outcome:
    return outcome_of(CASES[case[0]], case[1])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", type=int, default=3000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--kinds", nargs="+", choices=[*CASES], default=[*CASES])
    parser.add_argument("--processes", type=int, default=2)
    args = parser.parse_args()
    numbers = range(args.first, args.first + args.cases)
    cases = [(args.kinds[number % len(args.kinds)], number) for number in numbers]
    counts: dict[str, Counter] = {kind: Counter() for kind in args.kinds}
    faults = []
    # A process is spawned, and replaced now and then, so that no case lives on in the next ones.
    with multiprocessing.get_context("spawn").Pool(args.processes, limit, maxtasksperchild=400) as pool:
        waiting = [(case, pool.apply_async(outcome, (case,))) for case in cases]
        for case, result in tqdm(waiting, disable=None):
            try:
                found = result.get(timeout=SECONDS * 30)
            except multiprocessing.TimeoutError:
                found = Outcome("hang", "not even a signal ended it")
            counts[case[0]][found.kind] += 1
            if found.kind not in FINE:
                faults.append((*case, *found))
    kinds = [*FINE, *sorted({kind for each in counts.values() for kind in each} - {*FINE})]
    rows = [[kind, *(each[name] for name in kinds)] for kind, each in counts.items()]
    print(tabulate(rows, ["input", *kinds]))
    for kind, number, name, words in faults[:SHOWN]:
        print(f"\n{kind} {number}: {name}\n{words}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
