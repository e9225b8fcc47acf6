"""`python -m codekiln` is the command."""

from codekiln.cli import main

main()
