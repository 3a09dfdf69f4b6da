"""`trainers.commands.classify`, from the project's folder: python -m scripts.classify --help."""

import sys

from trainers.commands.classify import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
