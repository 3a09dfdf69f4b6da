"""Puts a dataset into its folder: fetched, unpacked, laid out as published, checked.

What is not finished stands in `.prepare/` in the dataset's folder; a part of the dataset comes to its place
by one renaming, when it is whole. So a run may be stopped at any time, and the same command goes on.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import arrange
from datasets.archives import Unsafe, unpack
from datasets.download import NoRoom, Refused, digests, one_line
from datasets.fetch import fetch, parquet_files
from datasets.sources import Entry, Part, Source
from datasets.splits import read_json, write_json
from datasets.verify import open_dataset

WORK = ".prepare"
RECORD = "prepared.json"


def prepare(entry: Entry, root: Path, keep: bool = False) -> list[str]:
    """Makes the folder of a dataset as whole as it can be without a person.

    Args:
        keep: leave the downloaded archives in `.prepare`.

    Returns:
        What is still missing and how to get it, a line each; empty if nothing is.

    Raises:
        NoRoom: the disk is too small.
        RuntimeError: another run is at it.
    """
    folder = root / entry.folder
    if not entry.parts:
        return [] if folder.is_dir() else _draw(entry, root)
    folder.mkdir(parents=True, exist_ok=True)
    problems, done = [], []
    with _alone(folder):
        for part in entry.parts:
            try:
                done += _prepare_part(part, folder, root, entry)
            except (Refused, Unsafe, OSError, ValueError) as error:
                if isinstance(error, OSError) and error.errno == 28:
                    raise NoRoom(f"{folder}: {one_line(error)}") from error
                line = f"{entry.name}: {' and '.join(part.gives)}: {one_line(error)}"
                if part.optional:
                    print(f"{line} (not needed; going on)")
                else:
                    problems.append(line)
        if done:
            _write_record(folder / RECORD, entry, done)
        if not problems and not keep:
            shutil.rmtree(folder / WORK, ignore_errors=True)
    return problems


def _draw(entry: Entry, root: Path) -> list[str]:
    if not entry.drawn:
        return [f"{entry.name}: no source is known; put it into {root / entry.folder} by hand"]
    open_dataset(entry, root)
    return []


def _prepare_part(part: Part, folder: Path, root: Path, entry: Entry) -> list[dict[str, Any]]:
    for place in part.gives:
        other = root / part.elsewhere.get(place, os.curdir)
        usable = place in part.elsewhere and other.exists() and not os.path.samefile(other, folder)
        if usable and not os.path.lexists(folder / place):
            arrange.link(other, folder / place)
            print(f"{entry.name}: {place} is taken from {other}, by a link")
    missing = [place for place in part.gives if not (folder / place).exists()]
    if not missing:
        print(f"{entry.name}: {', '.join(part.gives)}: there already")
        return []
    reasons = []
    for source in part.sources:
        try:
            return [_from_source(source, part, folder)]
        except (Refused, Unsafe, FileNotFoundError, ValueError) as error:
            reasons.append(one_line(error))
    first = part.sources[0]
    raise Refused(
        f"{'; '.join(reasons)}. To go on, put {first.file} at {folder / first.file} ({first.checks}) and "
        f"run: python -m datasets prepare {entry.name} --root {root}"
    )


def _from_source(source: Source, part: Part, folder: Path) -> dict[str, Any]:
    """Takes what a source gives; returns what is to be recorded of it."""
    work = folder / WORK
    fresh = work / f"{source.file}.unpacked"
    if source.name:
        return _from_parquet(source, fresh, folder)
    file, address = _find_file(source, folder)
    digest = {"sha256": source.checks.sha256} if source.checks.sha256 else digests(file, ["sha256"])
    print(
        f"{file.name}: {source.checks if source.checks.decisive else 'no checksum is known; taken as it is'}"
    )
    if source.take is None:
        place = folder / part.gives[0]
        if file != place:
            os.replace(file, place)
    else:
        shutil.rmtree(fresh, ignore_errors=True)
        try:
            try:
                unpack(file, fresh, source.inner, source.inner_folders, source.checks.decisive)
            except Unsafe:
                if file.parent == work:  # fetch it again next time
                    file.unlink()
                raise
            if source.arrange:
                arrange.ARRANGEMENTS[source.arrange](fresh, folder)
            arrange.take(fresh, source.take, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return {
        "gives": list(part.gives),
        "file": source.file,
        "from": address,
        **digest,
        "checked": source.checks.decisive,
    }


def _find_file(source: Source, folder: Path) -> tuple[Path, str]:
    """The source's file, whole and checked: put there by hand, downloaded before, or downloaded now."""
    for path, address in (
        (folder / source.file, "by hand"),
        (folder / WORK / source.file, "an earlier run"),
    ):
        if path.is_file():
            problem = source.checks.problem(path)
            if not problem:
                return path, address
            if address == "by hand":
                raise Refused(f"{path}: {problem}: fetch it again, or remove it")
            path.unlink()
    if not source.addresses:
        raise Refused(f"by hand only. {source.by_hand.rstrip('.')}")
    target = folder / WORK / source.file
    return target, fetch(source.addresses, target, source.checks, 1.0 if source.take is None else 2.0)


def _from_parquet(source: Source, fresh: Path, folder: Path) -> dict[str, Any]:
    address, kept = source.addresses[0], fresh.with_suffix(".parquet")
    files = parquet_files(address, kept)
    shutil.rmtree(fresh, ignore_errors=True)
    try:
        number = arrange.parquet_images(files, source.name, fresh)
        arrange.take(fresh, source.take or {}, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    shutil.rmtree(kept, ignore_errors=True)
    return {"file": source.file, "from": address, "images": number, "checked": False}


def _write_record(path: Path, entry: Entry, done: list[dict[str, Any]]) -> None:
    before: list[dict[str, Any]] = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        before = list(read_json(str(path))["parts"])
    when = time.strftime("%Y-%m-%d %H:%M:%S %z")
    parts = [*before, *({**each, "at": when} for each in done)]
    write_json({"dataset": entry.name, "licence": entry.licence, "parts": parts}, str(path))


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps a second run out. A run that was killed leaves no lock behind: the system lets go of it."""
    work = folder / WORK
    work.mkdir(exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows: two runs at once are the user's own care
        yield
        return
    with open(folder / f"{WORK}.lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(f"another run is preparing {folder}; wait for it") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # not if they hold something
                work.rmdir()
            os.unlink(file.name)
            with contextlib.suppress(OSError):
                folder.rmdir()
