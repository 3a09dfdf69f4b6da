"""`trainers.commands.demo`, from the project's folder: python -m scripts.demo --help."""

import sys

from trainers.commands.demo import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
