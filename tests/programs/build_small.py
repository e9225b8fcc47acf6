"""Builds the small recipe on a folder of code: build_small.py CODE RUN [--total-tokens N] [--compile] [--stop-after STAGE].

Exits with 130 if it is interrupted.
"""

import argparse
import sys
from pathlib import Path

from codekiln.pipeline import build
from codekiln.train.config import RuntimeConfig
from tests.small import small_recipe

TOTAL_TOKENS = 26_000


def main(
    code: Path, run: Path, *, total_tokens: int = TOTAL_TOKENS, compile: bool = False, stop_after: str | None = None
) -> None:
    recipe = small_recipe(code, total_tokens=total_tokens)
    try:
        build(recipe, run, RuntimeConfig(compile=compile), stop_after=stop_after)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("code", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--total-tokens", type=int, default=TOTAL_TOKENS)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--stop-after")
    main(**vars(parser.parse_args()))
