"""Uploads a trained model to the Hugging Face hub.

    python -m scripts.share output/run user/name

It takes huggingface_hub, and a token that `hf auth login` has kept. What is uploaded is what
`save_pretrained` writes: docs/sharing.md.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from prompted_clip.console import run_command
from trainers import hub

from .classify import add_model_flags, load_model


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="share", description="Uploads a trained model to the Hugging Face hub."
    )
    add = parser.add_argument
    add("model", help="folder of a run, folder of a saved model, or a model of the hub (user/name)")
    add("repo_id", metavar="user/name", help="the model's name on the hub; made if there is none")
    add("--private", action="store_true", default=None, help="only its owner sees it")
    add(
        "--classifier",
        action="store_true",
        help="with the classes' text features, for use without a text encoder",
    )
    add("--message", default="", help="of the commit")
    add_model_flags(parser)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(argv)
    return run_command("share", lambda: run(args))


def run(args: argparse.Namespace) -> None:
    """Prints the model's address."""
    hub.check_repo_id(args.repo_id)
    model = load_model(args)
    address = model.push_to_hub(
        args.repo_id, private=args.private, classifier=args.classifier, message=args.message
    )
    print(address)


if __name__ == "__main__":
    sys.exit(main())
