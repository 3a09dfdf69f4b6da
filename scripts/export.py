"""`trainers.commands.export`, from the project's folder: python -m scripts.export --help."""

import sys

from trainers.commands.export import build_parser, main

__all__ = ["build_parser", "main"]

if __name__ == "__main__":
    sys.exit(main())
