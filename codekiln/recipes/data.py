"""The folders of data sets that recipes read."""

from pathlib import Path

from codekiln.errors import MissingFileError


def require_data(data: Path, *names: str) -> list[Path]:
    """The folders of these names in `data`. Raises MissingFileError that names those that do not exist."""
    data = data.absolute()
    folders = [data / name for name in names]
    if missing := [folder.name for folder in folders if not folder.is_dir()]:
        raise MissingFileError(
            f"{data} has no folder {' and no folder '.join(missing)}: this recipe needs {', '.join(names)} "
            "(docs/corpus.md says what is in each; repositories are fetched to an empty folder)"
        )
    return folders
