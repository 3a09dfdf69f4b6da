"""The errors that are the user's to mend: commands print them in one line. Others keep their traceback."""

from typing import Any


class UserError(ValueError):
    """Bad input: the message names the key or file, the value, what is allowed, and the way out."""

    def __init__(self, *args: Any) -> None:
        # A DataLoader raises a worker's error again with the worker's traceback as its message, which ends in
        # "module.Class: message".
        if len(args) == 1 and str(args[0]).startswith("Caught "):
            last = str(args[0]).strip().splitlines()[-1]
            args = (last.removeprefix(f"{type(self).__module__}.{type(self).__qualname__}: "),)
        super().__init__(*args)


class MissingFileError(UserError, FileNotFoundError):
    """A file or folder that the user named, or that a command needs, is not there."""


class NotFiniteError(UserError, FloatingPointError):
    """A NaN or an infinity in a setting, a file, a loss or logits."""


class DownloadError(UserError, ConnectionError):
    """A server could not be reached, or sent something else. Another attempt may succeed."""
