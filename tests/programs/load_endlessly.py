"""Serves a model that is never loaded: prints a line when loading begins."""

import sys

import torch

from codekiln.cli import generate, main


def load(*arguments: object, **options: object) -> None:
    sys.stdout.write("loading\n")
    sys.stdout.flush()
    x = torch.randn(500, 500)
    while True:
        x = x @ x


generate.load_completer = load  # type: ignore[assignment]
sys.argv = ["codekiln", "serve", sys.argv[1], "--port", "0"]
main()
