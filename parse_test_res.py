"""Prints the test results of several seeds, from their logs, with mean and standard deviation.

    python parse_test_res.py output/base2new/train_base/oxford_pets/shots_16/MaPLe/vit_b16_c2_ep5_batch4_2ctx

The folder holds `seed1`, `seed2`, ..., each with a `log.txt`, and with `log.txt-<time>` for each time that
the run was continued. With `--multi-exp` it holds such folders, and the average over them is printed too.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from experiments.results.reference_logs import read_metric
from experiments.results.statistics import mean, population_std
from prompted_clip.console import run_command
from prompted_clip.errors import MissingFileError, UserError

SEED = re.compile(r"^seed(\d+)$")
USUAL_SEEDS = 3
MOST_SEEDS = 100  # seeds up to here are numbered from 1; 20240601 is a date


@dataclass
class Summary:
    """The results of one folder.

    Attributes:
        values: percent by name of the seed's folder.
        missing: what is not there, and why, in words.
    """

    directory: str
    keyword: str
    values: dict[str, float] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)

    def mean(self) -> float:
        return mean(self.values.values())

    def std(self, ci95: bool = False) -> float:
        """Standard deviation, or half the width of the mean's 95 % confidence interval."""
        std = population_std(self.values.values())
        return 1.96 * std / len(self.values) ** 0.5 if ci95 else std


def parse_directory(directory: str, keyword: str = "accuracy", test_log: bool = False) -> Summary:
    """Reads the results of all seeds in a folder. Of each seed the newest log with a result counts.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no result in it.
    """
    summary = Summary(directory, keyword)
    folders = _folders(directory)
    print(f"Parsing files in {directory}")
    for folder in folders:
        logs = _logs(os.path.join(directory, folder))
        results = ((log, read_metric(log, keyword, test_log)) for log in reversed(logs))
        log, value = next(((log, value) for log, value in results if value is not None), ("", None))
        if value is None:
            summary.missing.append(f"{folder} ({f'no {keyword} in its log' if logs else 'no log.txt'})")
        else:
            summary.values[folder] = value
            print(f"file: {log}. {keyword}: {value:.2f}%. ")
    seeds = {int(match[1]) for folder in folders if (match := SEED.match(folder))}
    numbered = {seed for seed in seeds if seed <= MOST_SEEDS}
    if numbered:
        absent = sorted(set(range(1, max(USUAL_SEEDS, *numbered) + 1)) - seeds)
        summary.missing += [f"seed{seed} (no folder)" for seed in absent]
    if not summary.values:
        hint = "; it is itself the folder of one seed, give the one above it" if _logs(directory) else ""
        raise UserError(f"no {keyword} found in {directory}{hint}")
    return summary


def report(summary: Summary, ci95: bool = False) -> None:
    """Prints mean and standard deviation, and what is missing."""
    print("===")
    print(f"Summary of directory: {summary.directory}")
    print(f"* {summary.keyword}: {summary.mean():.2f}% +- {summary.std(ci95):.2f}%")
    if summary.missing:
        print(f"Missing: {', '.join(summary.missing)}")
    print("===")


def parse_experiments(
    directory: str, keyword: str = "accuracy", test_log: bool = False, ci95: bool = False
) -> list[Summary]:
    """Reads and prints all experiments in a folder, and their average.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: there is no result in any of them.
    """
    summaries, empty = [], []
    for folder in _folders(directory):
        try:
            summaries.append(parse_directory(os.path.join(directory, folder), keyword, test_log))
        except UserError as error:
            print(f"Missing: {error}")
            empty.append(folder)
        else:
            report(summaries[-1], ci95)
    if not summaries:
        raise UserError(f"no {keyword} found in any folder of {directory}")
    print("Average performance")
    print(f"* {keyword}: {mean([summary.mean() for summary in summaries]):.2f}%")
    if empty:
        print(f"Missing: {', '.join(empty)} (no result, not in the average)")
    return summaries


def _folders(directory: str) -> list[str]:
    """The folders in a folder, seed2 before seed10."""
    if not os.path.isdir(directory):
        raise MissingFileError(f"{directory} is not a folder")
    names = [name for name in os.listdir(directory) if not name.startswith(".")]
    return sorted(
        filter(lambda name: os.path.isdir(os.path.join(directory, name)), names), key=_numbers_by_size
    )


def _numbers_by_size(name: str) -> list[tuple[int, str]]:
    return [(len(part) if part.isdigit() else 0, part) for part in re.split(r"(\d+)", name)]


def _logs(folder: str) -> list[str]:
    """The logs of a run, the oldest first: `log.txt`, then those with a time stamp. Files only, no pipes."""
    names = [name for name in os.listdir(folder) if re.match(r"log\.txt(-|$)", name)]
    return list(filter(os.path.isfile, (os.path.join(folder, name) for name in sorted(names))))


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Mean and std of the test results of several seeds.")
    parser.add_argument("directory", help="folder that holds the seeds' folders")
    parser.add_argument(
        "--ci95", action="store_true", help="95%% confidence interval instead of the standard deviation"
    )
    parser.add_argument(
        "--test-log", action="store_true", help="take any result, that of an unfinished training too"
    )
    parser.add_argument("--multi-exp", action="store_true", help="the folder holds several such folders")
    parser.add_argument("--keyword", default="accuracy", help="which line: accuracy, error or macro_f1")
    args = parser.parse_args(argv)
    return run_command("parse_test_res.py", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    if args.multi_exp:
        parse_experiments(args.directory, args.keyword, args.test_log, args.ci95)
    else:
        report(parse_directory(args.directory, args.keyword, args.test_log), args.ci95)


if __name__ == "__main__":
    sys.exit(main())
