"""`python -m codekiln` is the command."""

import os
import sys

# Python puts the current folder first. It may hold a stranger's code, which must not be imported as a library.
if sys.path[:1] in ([""], [os.getcwd()]):  # noqa: PTH109 - as Python writes it
    del sys.path[0]

from codekiln.cli import main

main()
