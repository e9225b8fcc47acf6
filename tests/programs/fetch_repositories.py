"""Fetches the repositories of a server that answers as GitHub.

python tests/programs/fetch_repositories.py URL FOLDER
"""

import sys
from pathlib import Path

from codekiln.corpus.sources.forge import Forge
from codekiln.corpus.sources.forge_selection import Selection


def main() -> None:
    url, folder = sys.argv[1:]
    selection = Selection(created=("2019-01-01", "2021-12-09"), main_languages=("Python",), licenses=("MIT",))
    Forge(service="github", url=url, folder=Path(folder), selection=selection).fetch()


if __name__ == "__main__":
    main()
