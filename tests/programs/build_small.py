"""Builds the small recipe on a folder of code: build_small.py CODE RUN [--total-tokens N] [--compile] [--stop-after STAGE].

Exits with 130 if it is interrupted.
"""

import argparse
import sys
from pathlib import Path

from codekiln.pipeline import build
from codekiln.train.config import RuntimeConfig
from tests.small import small_recipe

parser = argparse.ArgumentParser()
parser.add_argument("code", type=Path)
parser.add_argument("run", type=Path)
parser.add_argument("--total-tokens", type=int, default=26_000)
parser.add_argument("--compile", action="store_true")
parser.add_argument("--stop-after")
options = parser.parse_args()
try:
    build(
        small_recipe(options.code, total_tokens=options.total_tokens),
        options.run,
        RuntimeConfig(compile=options.compile),
        stop_after=options.stop_after,
    )
except KeyboardInterrupt:
    sys.exit(130)
