"""What a command prints, on any system."""

from __future__ import annotations

import io
import sys


def prepare_stdout() -> None:
    """Has stdout print each line at once, also into a pipe or a file, and any character on any code page.

    What the code page lacks is escaped: "\\u2603".
    """
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace", line_buffering=True)
