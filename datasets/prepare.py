"""Downloads, unpacks and lays out a benchmark as published with CoOp.

Downloads and unpacked archives lie in `.prepare/` in the dataset's folder; what is complete is moved to its
place by one rename. So a run may be stopped at any time; the same command continues.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

from filelock import FileLock, Timeout
from torchvision.datasets import imagenet

from datasets.archives import unpack
from datasets.sources import Entry, File, checksum_problem, plain
from datasets.verify import open_dataset
from prompted_clip.errors import MissingFileError, UserError

WORK, UNPACKED = ".prepare", "unpacked"
RETRIES = 4  # of a download over HTTP


def prepare(entry: Entry, root: Path, keep_archives: bool = False) -> list[str]:
    """Fetches what is missing in the folder of a dataset.

    Args:
        keep_archives: leave downloaded archives in `.prepare/`.

    Returns:
        What is still missing and how to get it, one line for each file.

    Raises:
        OSError: the disk is full, or another process is preparing this dataset.
    """
    folder = root / entry.folder
    if entry.drawn and not folder.is_dir():
        open_dataset(entry, root)
    if not entry.files:
        return [] if folder.is_dir() else [f"{entry.name}: no source is known; put it into {folder} by hand"]
    root.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(root / f".{entry.folder}.lock", timeout=0):
            work = folder / WORK
            work.mkdir(parents=True, exist_ok=True)
            problems = _prepare_files(entry, folder, work)
            shutil.rmtree(work / UNPACKED, ignore_errors=True)
            if not (problems or keep_archives):
                shutil.rmtree(work)
            for path in (work, folder):
                if path.is_dir() and not any(path.iterdir()):
                    path.rmdir()
    except Timeout as error:
        raise OSError(errno.EBUSY, f"another process is preparing {folder}; wait for it") from error
    return [
        f"{entry.name}: {' and '.join(file.places)}: {problem}. To continue, put {file.file} "
        f"({file.hash or 'no checksum is known'}) into {folder} and run: "
        f"python -m datasets prepare {entry.name} --root {root}"
        for file, problem in problems
    ]


def _prepare_files(entry: Entry, folder: Path, work: Path) -> list[tuple[File, str]]:
    """Fetches all files; returns those that are missing, with the reason."""
    problems: list[tuple[File, str]] = []
    for file in entry.files:
        try:
            if missing(file, folder):
                _prepare_file(file, folder, work)
        except Exception as error:  # the libraries raise errors of many kinds
            problems.append((file, _reason(error)))
    if not problems or not entry.mirror:
        return problems
    reason = "its zip does not hold it, or not as published"
    try:
        _prepare_from_mirror(entry, [file for file, _ in problems], folder, work)
    except Exception as error:
        reason = _reason(error)
    mirror = f"; mirror {entry.mirror}: {reason}"
    return [(file, problem + mirror) for file, problem in problems if missing(file, folder)]


def missing(file: File, folder: Path) -> list[str]:
    """The paths that the file gives and that are not in the dataset's folder."""
    return [place for place in file.places if not (folder / place).exists()]


def _prepare_file(file: File, folder: Path, work: Path) -> None:
    by_hand, archive = folder / file.file, work / file.file
    if by_hand.is_file():
        archive = by_hand
        if problem := checksum_problem(archive, file.hash):
            raise UserError(f"{archive}: {problem}: download it again, or remove it")
    elif not archive.is_file() or checksum_problem(archive, file.hash):
        fetch(file, archive)
    if not file.take:
        os.replace(archive, by_hand)
        return
    try:
        unpacked = _unpack(file, archive, folder, work)
        found = {place: find(unpacked, path) for path, place in file.take.items()}
    except (ValueError, FileNotFoundError):
        if archive != by_hand:
            archive.unlink()  # downloaded again next time
        raise
    for place in missing(file, folder):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        os.replace(found[place], folder / place)


def _unpack(file: File, archive: Path, folder: Path, work: Path) -> Path:
    print(f"{file.file}: unpacking ({file.hash or 'no checksum is known'})")
    unpacked = work / UNPACKED
    shutil.rmtree(unpacked, ignore_errors=True)
    if file.unpack == "train":  # of ImageNet, whose archives torchvision knows
        imagenet.parse_train_archive(folder, folder=str(unpacked))
    elif file.unpack == "val":
        imagenet.parse_devkit_archive(folder)
        imagenet.parse_val_archive(folder, folder=str(unpacked))
        (folder / imagenet.META_FILE).unlink()
    else:
        unpack(archive, unpacked)
    if file.inner:
        inner = find(unpacked, file.inner)
        unpack(inner, inner.parent)
    return unpacked


def _prepare_from_mirror(entry: Entry, files: list[File], folder: Path, work: Path) -> None:
    """Takes what is missing from the zip in the mirror that has one of the dataset's names."""
    from huggingface_hub import list_repo_files

    print(f"{entry.name}: from the mirror {entry.mirror}")
    names = {plain(name) for name in entry.names if name}
    zips = [path for path in list_repo_files(entry.mirror) if path.endswith(".zip")]
    path = next((path for path in zips if plain(Path(path).stem) in names), None)
    if path is None:
        raise UserError(f"there is no zip called {' or '.join(sorted(names))}")
    archive = File(Path(path).name, entry.mirror_hashes.get(path, ""), (f"hub:models/{entry.mirror}/{path}",))
    if not (work / archive.file).is_file():
        fetch(archive, work / archive.file)
    unpacked = _unpack(archive, work / archive.file, folder, work)
    for file in files:
        for place in missing(file, folder):
            with contextlib.suppress(FileNotFoundError):
                found = find(unpacked, place)
                if file.take or not checksum_problem(found, file.hash):
                    os.replace(found, folder / place)


def find(unpacked: Path, path: str) -> Path:
    """The path in an unpacked archive, at the least depth where it occurs; "." is the whole.

    Raises:
        FileNotFoundError: the archive does not hold it.
    """
    ending = Path(path).parts
    level = [unpacked]
    while level:
        for inside in level:
            if inside.relative_to(unpacked).parts[-len(ending) :] == ending:
                return inside
        folders = [each for each in level if each.is_dir() and not each.is_symlink()]
        level = sorted(entry for each in folders if each.name != "__MACOSX" for entry in each.iterdir())
    raise MissingFileError(f"it holds no {path}; it holds {', '.join(sorted(os.listdir(unpacked))[:6])}")


def fetch(file: File, target: Path) -> None:
    """Downloads a file from the first of its URLs that gives it with the right checksum.

    Raises:
        ValueError: none does; the message has the reason of each.
    """
    reasons = [] if file.urls else [f"only by hand. {file.by_hand.rstrip('.')}"]
    for url in file.urls:
        print(f"{file.file}: from {url}")
        try:
            download(url, target, file.hash)
            problem = checksum_problem(target, file.hash) if target.is_file() else "no file came"
        except Exception as error:  # each of the libraries has errors of its own
            problem = _reason(error)[:300]
        if not problem:
            return
        target.unlink(missing_ok=True)
        print(f"{file.file}: {problem}")
        reasons.append(f"{url}: {problem}")
    raise UserError("; ".join(reasons))


def download(url: str, target: Path, known_hash: str = "") -> None:
    """Downloads `url` to `target`: by gdown from Google Drive, huggingface_hub from the hub, else pooch."""
    if url.startswith("gdrive:"):
        import gdown

        gdown.download(id=url.removeprefix("gdrive:"), output=str(target), resume=True)
    elif url.startswith("hub:"):
        from huggingface_hub import hf_hub_download

        kind, owner, name, path = url.removeprefix("hub:").split("/", 3)
        name, _, revision = name.partition("@")
        found = hf_hub_download(
            repo_id=f"{owner}/{name}",
            repo_type=kind.removesuffix("s"),
            revision=revision or None,
            filename=path,
            local_dir=str(target.parent / "hub"),  # a download that was stopped is resumed there
        )
        os.replace(found, target)
    else:
        import pooch

        pooch.get_logger().setLevel("WARNING")
        known = None if known_hash.startswith("git:") else known_hash or None
        files = pooch.create(
            target.parent, "", urls={target.name: url}, registry={target.name: known}, retry_if_failed=RETRIES
        )
        progress = sys.stderr.isatty()
        files.fetch(target.name, downloader=pooch.HTTPDownloader(progress, hooks={"response": stay_on_https}))


def stay_on_https(response: Any, *args: Any, **kwargs: Any) -> None:
    """A hook of requests: raises a RuntimeError where https is redirected to anything else."""
    if response.is_redirect and response.url.startswith("https:"):
        target = urljoin(response.url, response.headers["location"])
        if not target.startswith("https:"):
            # No ValueError: pooch would ask again.
            raise RuntimeError(f"it redirects from https to {target[:200]}, which anybody could answer")


def _reason(error: Exception) -> str:
    """The error as one line. A full disk is raised again: no other URL changes that."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        raise error
    if isinstance(error, ImportError):
        return f'it needs {error.name}: pip install -e ".[download]"'
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
