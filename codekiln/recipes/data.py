"""The folders of data sets that recipes read."""

from pathlib import Path

from codekiln.errors import MissingFileError


def require_data(data: Path, *names: str) -> Path:
    """The absolute path of `data`. Raises MissingFileError that names the folders of `names` that it does not have."""
    data = data.absolute()
    if missing := [name for name in names if not (data / name).is_dir()]:
        raise MissingFileError(
            f"{data} has no folder {' and no folder '.join(missing)}: this recipe needs {', '.join(names)} "
            "(docs/corpus.md says what is in each; repositories are fetched to an empty folder)"
        )
    return data
