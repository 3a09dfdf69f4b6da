"""A file from the first of its addresses that gives it, by whatever means that address asks for.

Web servers are `datasets/download.py`'s, Google Drive is gdown's, the hub is huggingface_hub's. Those two:

    pip install -e ".[download]"
"""

from __future__ import annotations

import importlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datasets.download import Checks, NoRoom, Refused, check_room, download, looks_like_html, one_line


def fetch(addresses: tuple[str, ...], target: Path, checks: Checks, room: float = 1.0) -> str:
    """Fetches `target` from the first address that gives it with the right checksum; returns that address.

    `target` appears whole and checked, or not at all.

    Raises:
        Refused: no address gives it; says why, of each.
        NoRoom: there is no space.
    """
    reasons = []
    target.parent.mkdir(parents=True, exist_ok=True)
    for address in addresses:
        print(f"{target.name}: from {address}")
        part = target.with_name(f"{target.name}.part")
        try:
            for fresh in (False, True):  # bytes kept from before may be those of another file
                resumed = part.exists()
                means_of(address)(address, part, checks, target.name, room)
                problem = checks.problem(part)
                if not problem and looks_like_html(part) and not checks.decisive:
                    problem = "it is a web page"
                if not problem:
                    os.replace(part, target)
                    _forget(part)
                    return address
                _forget(part)
                if fresh or not resumed:
                    raise Refused(f"{problem}: not kept")
        except Refused as refused:
            print(f"{target.name}: {address}: {refused}")
            reasons.append(f"{address}: {refused}")
    raise Refused("; ".join(reasons))


def means_of(address: str) -> Callable[[str, Path, Checks, str, float], None]:
    kind = address.partition(":")[0]
    return {"gdrive": _from_drive, "hub": _from_hub}.get(kind, download)


def _forget(part: Path) -> None:
    for path in (part, part.with_name(f"{part.name}.json")):
        path.unlink(missing_ok=True)


def library(name: str, purpose: str) -> Any:
    """A library that only some datasets need.

    Raises:
        Refused: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise Refused(
            f'{purpose} needs {name}: pip install {name}, or pip install -e ".[download]"'
        ) from error


# Google Drive -----------------------------------------------------------------------------------------------


def _from_drive(address: str, part: Path, checks: Checks, name: str, room: float) -> None:
    gdown = library("gdown", "Google Drive")
    number = address.removeprefix("gdrive:")
    page = f"https://drive.google.com/file/d/{number}/view"
    if checks.bytes:
        check_room(part.parent, round(checks.bytes * room))
    # gdown keeps what it has in files of its own beside `output`, goes on with them, and renames at the end.
    output = part.with_name(f"{name}.drive")
    output.unlink(missing_ok=True)
    errors = tuple(
        getattr(gdown.exceptions, each)
        for each in ("DownloadError", "FileURLRetrievalError")
        if hasattr(gdown.exceptions, each)
    )
    try:
        found = gdown.download(id=number, output=str(output), resume=True)
    except (OSError, *errors) as error:
        raise Refused(_drive_problem(error, page, name)) from error
    if not found or not output.exists():
        raise Refused(_drive_problem("no file came", page, name))
    if looks_like_html(output):
        output.unlink()
        raise Refused(_drive_problem("a web page came instead of the file", page, name))
    _forget(part)
    os.replace(output, part)


def _drive_problem(error: object, page: str, name: str) -> str:
    text = one_line(error)
    if isinstance(error, ConnectionError) or "NameResolutionError" in text:
        text = "no connection to Google Drive"
    if "too many users" in text.lower() or "quota" in text.lower() or "many accesses" in text.lower():
        text = "Google Drive's quota for this file is used up for today"
    return f"{text[:200]}; by hand: open {page} in a browser, signed in, and save {name}"


# The hub ----------------------------------------------------------------------------------------------------


def parse_hub(address: str) -> dict[str, str | None]:
    """`hub:datasets/OWNER/NAME@REVISION/PATH/FILE` → the arguments of `hf_hub_download`."""
    kind, owner, name, *path = address.removeprefix("hub:").split("/")
    if kind not in ("datasets", "models") or not path:
        raise Refused(f"{address} is not hub:datasets/OWNER/NAME/FILE or hub:models/OWNER/NAME/FILE")
    name, _, revision = name.partition("@")
    return {
        "repo_type": kind.removesuffix("s"),
        "repo_id": f"{owner}/{name}",
        "revision": revision or None,
        "filename": "/".join(path),
    }


def _from_hub(address: str, part: Path, checks: Checks, name: str, room: float) -> None:
    if checks.bytes:
        check_room(part.parent, round(checks.bytes * room))
    arguments = parse_hub(address)
    folder = part.with_name(f"{name}.hub")  # the library resumes there
    found = ask_hub("hf_hub_download", str(arguments["repo_id"]), local_dir=str(folder), **arguments)
    _forget(part)
    os.replace(found, part)
    shutil.rmtree(folder, ignore_errors=True)


def parquet_files(address: str, folder: Path) -> list[Path]:
    """All parquet files of a dataset on the hub, `parquet:OWNER/NAME`, kept in `folder`."""
    repository = address.removeprefix("parquet:")
    found = ask_hub(
        "snapshot_download",
        repository,
        repo_id=repository,
        repo_type="dataset",
        allow_patterns=["*.parquet"],
        local_dir=str(folder),
    )
    files = sorted(Path(found).rglob("*.parquet"))
    if not files:
        raise Refused(f"{repository} on the hub has no parquet files")
    return files


def ask_hub(function: str, repository: str, **arguments: Any) -> str:
    """Calls one of huggingface_hub's downloads. Its errors become one line, with a way out."""
    hub = library("huggingface_hub", "The hub")
    errors = importlib.import_module("huggingface_hub.errors")
    try:
        return str(getattr(hub, function)(**arguments))
    except errors.GatedRepoError as error:
        raise Refused(
            f"{repository} asks for a login: accept its terms on its page, make a token in your settings "
            "there, and run: hf auth login"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise Refused(f"{repository} is not there, or is private") from error
    except (OSError, ValueError, RuntimeError, errors.HfHubHTTPError) as error:
        if isinstance(error, OSError) and error.errno == 28:
            raise NoRoom(
                f"the disk of {arguments['local_dir']} is full: make room, or choose --root"
            ) from error
        raise Refused(one_line(error)[:300]) from error
