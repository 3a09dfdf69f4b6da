"""Models on the Hugging Face hub: download and upload, by huggingface_hub."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prompted_clip.errors import DownloadError, MissingFileError, UserError

from .saved_folder import FILES

REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9_][\w.-]{0,95}")


def is_repo_id(name: str) -> bool:
    """Whether a name may be one of the hub's, "user/name"."""
    return bool(REPO_ID.fullmatch(name)) and ".." not in name and "--" not in name


def check_repo_id(name: str) -> None:
    """Raises a ValueError for a name that the hub does not allow."""
    if not is_repo_id(name):
        raise UserError(
            f"The model's name on the hub is {name!r}; allowed is user/name, of letters, digits, '-', '_' "
            "and '.'."
        )


def download(repo_id: str, revision: str | None, token: str | None) -> Path:
    """The folder of a model in the hub's cache; what is not there yet is downloaded.

    Raises:
        FileNotFoundError: the hub has no such model, or it is private.
        ConnectionError: the hub cannot be reached.
    """
    with _in_one_line(f"{repo_id} is no folder here, and"):
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(FILES)))


def upload(folder: str, repo_id: str, private: bool | None, token: str | None, message: str) -> str:
    """Uploads a folder as a commit, and returns the model's address.

    Raises:
        ConnectionError: the hub cannot be reached, or refuses.
    """
    with _in_one_line(f"{repo_id} was not uploaded:"):
        from huggingface_hub import HfApi

        api = HfApi(token=token)
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=url.repo_id,
            folder_path=folder,
            commit_message=message,
            delete_patterns=list(FILES),  # of an earlier model, as far as this one does not have them
        )
        return str(url)


@contextmanager
def _in_one_line(what: str) -> Iterator[None]:
    """Turns the many errors of the hub's client into one with a way out."""
    try:
        yield
    except ImportError as error:
        raise UserError(
            f"{what} the hub takes huggingface_hub, which is not installed: pip install huggingface_hub."
        ) from error
    except Exception as error:  # of huggingface_hub, httpx, and the system
        name, reason = type(error).__name__, (str(error).strip().splitlines() or [type(error).__name__])[0]
        if name in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"):
            raise MissingFileError(
                f"{what} the hub does not show it ({reason}). If it is private, log in: hf auth login."
            ) from error
        raise DownloadError(f"{what} the hub could not be reached, or refused ({reason}).") from error
