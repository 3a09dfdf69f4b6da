"""`trainers.commands.share`, from the project's folder: python -m scripts.share --help."""

import sys

from trainers.commands.share import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
