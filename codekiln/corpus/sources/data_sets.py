"""Public data sets, with their columns and where these are documented. Recipes name a function and the files."""

import fnmatch
from pathlib import Path, PurePosixPath

from codekiln.corpus.languages import LANGUAGES
from codekiln.corpus.sources.archives import Archives, Columns
from codekiln.corpus.sources.blobs import BlobStore
from codekiln.corpus.sources.data_files import find_data_files
from codekiln.errors import ConfigError, InvalidFileError, MissingFileError
from codekiln.extras import import_optional

# The Pile (arXiv:2101.00027), table 1, in the spelling of the files.
PILE_PARTS = (
    "ArXiv", "BookCorpus2", "Books3", "DM Mathematics", "Enron Emails", "EuroParl", "FreeLaw", "Github",
    "Gutenberg (PG-19)", "HackerNews", "NIH ExPorter", "OpenSubtitles", "OpenWebText2", "PhilPapers", "Pile-CC",
    "PubMed Abstracts", "PubMed Central", "StackExchange", "USPTO Backgrounds", "Ubuntu IRC", "Wikipedia (en)",
    "YoutubeSubtitles",
)  # fmt: skip


def pile(paths: tuple[str, ...], *, parts: tuple[str, ...] = (), license: str | None = None) -> Archives:
    """The Pile (arXiv:2101.00027): `00.jsonl.zst` to `29.jsonl.zst` with `text` and `meta.pile_set_name`.

    `parts` selects some of `PILE_PARTS`; all if it is empty. The repository of a document is its part, and the path is its
    file and place, `00/8192`. Documents are prose of up to 100 MB. The data set declares no licenses. The columns are
    documented at https://github.com/EleutherAI/the-pile and https://huggingface.co/datasets/EleutherAI/pile. Raises
    ConfigError for an unknown part.
    """
    if unknown := sorted(set(parts) - set(PILE_PARTS)):
        raise ConfigError(f"The Pile has no part {', '.join(unknown)}: its parts are {', '.join(PILE_PARTS)}")
    return Archives(
        paths=paths,
        columns=Columns(text="text", repository="meta.pile_set_name"),
        source="pile",
        license=license,
        language="Text",
        languages=(),
        repositories=parts,
        is_prose=True,
        max_bytes=100_000_000,
    )


def the_stack(paths: tuple[str, ...], *, languages: tuple[str, ...] = LANGUAGES) -> Archives:
    """The Stack, version 1 (arXiv:2211.15533): Parquet files of `data/LANGUAGE/`.

    Of the repositories with a file, the columns `max_stars_*` describe the one with the most stars. A document is under all
    of its licenses. The columns are documented at https://huggingface.co/datasets/bigcode/the-stack.
    """
    columns = Columns(
        text="content",
        path="max_stars_repo_path",
        repository="max_stars_repo_name",
        revision="max_stars_repo_head_hexsha",
        license="max_stars_repo_licenses",
        language="lang",
        stars="max_stars_count",
    )
    return Archives(paths=paths, columns=columns, source="github", languages=languages)


def the_stack_v2(
    paths: tuple[str, ...], *, languages: tuple[str, ...] = LANGUAGES, blobs: BlobStore | None = None
) -> Archives:
    """The Stack, version 2 (arXiv:2402.19173): Parquet files with the names of files; their contents are in `blobs`.

    Contents are read from Software Heritage's bucket by `blob_id`, and decoded from `src_encoding`. A document is under all of
    `detected_licenses`. This is the layout of `the-stack-v2` and `the-stack-v2-dedup`, with a row per file. The columns are
    documented at https://huggingface.co/datasets/bigcode/the-stack-v2.
    """
    return _the_stack_v2(paths, languages, blobs)


def the_stack_v2_repositories(
    paths: tuple[str, ...], *, languages: tuple[str, ...] = LANGUAGES, blobs: BlobStore | None = None
) -> Archives:
    """StarCoder2's training files (arXiv:2402.19173): `the-stack-v2-train-full-ids` and `the-stack-v2-train-smol-ids`.

    They are `the_stack_v2` with a row per repository, which has the list `files`. The columns are documented at
    https://huggingface.co/datasets/bigcode/the-stack-v2-train-smol-ids.
    """
    return _the_stack_v2(paths, languages, blobs, files="files")


def _the_stack_v2(
    paths: tuple[str, ...], languages: tuple[str, ...], blobs: BlobStore | None, files: str | None = None
) -> Archives:
    """With a row per file, or per repository, which has the column `files`."""
    before = "" if files is None else f"{files}."
    columns = Columns(
        files=files,
        text=f"{before}blob_id",
        path=f"{before}path",
        repository="repo_name",
        revision="revision_id",
        license=f"{before}detected_licenses",
        language=f"{before}language",
        stars="star_events_count",
        size=f"{before}length_bytes",
        encoding=f"{before}src_encoding",
    )
    return Archives(paths=paths, columns=columns, source="github", languages=languages, blobs=blobs or BlobStore())


def hugging_face_folder(
    folder: Path, *, columns: Columns, split: str = "train", license: str | None = None
) -> Archives:
    """A data set of the Hugging Face Hub that was downloaded into a folder.

    The files of a split are those that `configs` in README.md names for the first configuration. Else they are those in the
    folder and in `data/` whose names begin with the split, or all of them if no name does. The license on the card is that of
    the collection, so it is not used: documents have the license of a column, or `license`. The layout is documented at
    https://huggingface.co/docs/hub/datasets-manual-configuration. Raises MissingFileError if the split has no file.
    """
    names = [file.name for file in find_data_files([str(folder)])]
    patterns = _split_patterns(folder / "README.md", split)
    if patterns is not None:
        found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    else:
        data = [name for name in names if PurePosixPath(name).parent.as_posix() in (".", "data")]
        found = [name for name in data if PurePosixPath(name).name.startswith(split)] or data
    if not found:
        raise MissingFileError(f"{folder} has no file of the split {split}: it needs data/{split}-*.parquet, or JSONL")
    language = None if columns.path or columns.language else "Text"
    return Archives(
        paths=tuple(str(folder / name) for name in found),
        columns=columns,
        license=license,
        language=language,
        is_prose=language is not None,
    )


def _split_patterns(card: Path, split: str) -> list[str] | None:
    """What `configs` on a card names for a split of its first configuration; None if the card has no `configs`.

    Raises InvalidFileError for damaged YAML.
    """
    if not card.is_file():
        return None
    try:
        text = card.read_text(encoding="utf-8")
        data = (
            import_optional("huggingface_hub", "corpus").DatasetCard(text, ignore_metadata_errors=True).data.to_dict()
        )
    except Exception as error:  # the parser of YAML has its own exceptions
        raise InvalidFileError(f"{card} has no readable metadata ({error}): download the data set again") from error
    configs = data.get("configs")
    first = configs[0] if isinstance(configs, list) and configs else {}
    files = first.get("data_files") if isinstance(first, dict) else None
    if files is None:
        return None
    patterns: list[str] = []
    for entry in files if isinstance(files, list) else [files]:
        if isinstance(entry, str):
            patterns.append(entry)
        elif isinstance(entry, dict) and entry.get("split") == split:
            path = entry.get("path")
            patterns += [name for name in (path if isinstance(path, list) else [path]) if isinstance(name, str)]
    return patterns
