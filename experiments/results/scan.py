"""Scans folders of runs for results, logs, plans, and errors."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.plans import Planned, read_plan
from experiments.results.reference_logs import read_logs
from experiments.results.result_file import RESULT_FILES, Result, read_result_file
from experiments.run_folder import ERROR_FILE
from prompted_clip.console import shortened
from prompted_clip.errors import MissingFileError


class Scan:
    """Reads all results, logs, plans and errors below some folders.

    Attributes:
        results: of each folder; a log without a result is one without `accuracy`.
        jobs: of plans, each with the folder that its own is below.
        failed: folders with an error.txt.
        warnings: files that could not be read, a line each.

    Raises:
        FileNotFoundError: one of the folders does not exist.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.results: dict[Path, list[Result]] = {}
        self.jobs: list[tuple[Planned, Path]] = []
        self.failed: set[Path] = set()
        self.warnings: list[str] = []
        for folder, files in _walk(folders):
            self._read(folder, files)
        for folder in folders:
            self._read_plans_above(folder.resolve())

    def _read(self, folder: Path, files: set[str]) -> None:
        """Reads what a folder holds; a file that cannot be read becomes a warning."""
        if ERROR_FILE in files:
            self.failed.add(folder)
        if folder.name == "plans":
            for name in sorted(name for name in files if name.endswith(".json")):
                with self._warning_of_errors():
                    self.jobs += [(job, folder.parent) for job in read_plan(folder / name)]
        results: list[Result] = []
        for name in RESULT_FILES:
            if name in files:
                with self._warning_of_errors():
                    result = read_result_file(folder / name)
                    if _test_of(result) not in map(_test_of, results):
                        results.append(result)
        if not results and any(name.startswith("log.txt") for name in files):
            with self._warning_of_errors():
                results.append(read_logs(folder))
        if results:
            self.results[folder] = results

    @contextlib.contextmanager
    def _warning_of_errors(self) -> Iterator[None]:
        try:
            yield
        except (ValueError, OSError) as error:
            self.warnings.append(shortened(str(error)))

    def _read_plans_above(self, folder: Path) -> None:
        """Reads the plans of a sweep of whose results `folder` is a part: what they want of this part."""
        for above in folder.parents:
            for path in sorted((above / "plans").glob("*.json")):
                with contextlib.suppress(ValueError, OSError):  # of somebody else's
                    jobs = ((job, above) for job in read_plan(path))
                    self.jobs += [each for each in jobs if (above / each[0].folder).is_relative_to(folder)]


def _walk(folders: Sequence[Path]) -> Iterator[tuple[Path, set[str]]]:
    """Each folder below, once, with the names of its files; links are followed."""
    seen: set[Path] = set()
    real: dict[str, Path] = {}  # by name
    for top in folders:
        if not top.is_dir():
            raise MissingFileError(f"{top} is not a folder; give folders of runs, such as output.")
        for name, subfolders, files in os.walk(top, followlinks=True):
            above, own = os.path.split(name)
            is_plain = above in real and not os.path.islink(name)  # not to look at all folders above again
            folder = real[name] = real[above] / own if is_plain else Path(name).resolve()
            if folder in seen:
                subfolders.clear()  # a circle of links, or a folder that was given twice
                continue
            seen.add(folder)
            subfolders.sort()
            yield folder, set(files)


def _test_of(result: Result) -> tuple:
    return result.dataset, result.classes, result.split
