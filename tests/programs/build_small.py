"""Builds the small recipe on a folder of code, with torch.compile: build_small.py CODE RUN."""

import sys
from pathlib import Path

from codekiln.pipeline import build
from codekiln.train.config import RuntimeConfig
from tests.small import small_recipe

build(small_recipe(Path(sys.argv[1]), total_tokens=2048), Path(sys.argv[2]), RuntimeConfig(compile=True), stop_after="train")
