"""Whether the files of a run are those that were written: every checksum that its records have is computed again."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from codekiln.corpus.documents import MANIFEST, corpus_files
from codekiln.errors import CodekilnError, ConfigError, MissingFileError
from codekiln.files import RecordedFile, sha256_of
from codekiln.folders import MARK, listed_files
from codekiln.index.build import MANIFEST as INDEX_MANIFEST
from codekiln.index.build import index_files
from codekiln.index.search import INDEX_FOLDER
from codekiln.model.huggingface import TOKENIZER
from codekiln.progress import progress_bar
from codekiln.runs import RECIPE_FILE, STAGE_NAMES, STAGE_OUTPUTS, read_recipe, read_stage_record, stage_path
from codekiln.train.checkpoint import STATE, checkpoint_files, checkpoint_folders
from codekiln.train.prepare import token_files

CHECKPOINTS, MODEL = "checkpoints", "model"  # folders of a run
MISSING = "it does not exist"
DAMAGED = "its checksum is not the recorded one"
Fault = Literal["missing", "damaged"]


@dataclass(frozen=True)
class FileFault:
    """A file that is missing, or differs from what was written. `path` is relative to the run."""

    path: str
    fault: Fault
    message: str


@dataclass(frozen=True)
class Verification:
    """`n_files` with `n_bytes` were read and compared. `unrecorded` are files of which no record has a checksum."""

    n_files: int
    n_bytes: int
    faults: tuple[FileFault, ...]
    unrecorded: tuple[str, ...]


def runs_in(folder: Path) -> list[Path]:
    """The folder itself if it is a run, or the runs in it if it is a staged run. Raises ConfigError if it is neither."""
    if (folder / RECIPE_FILE).is_file() or (folder / "stages").is_dir():
        return [folder]
    found = sorted(path.parent for path in folder.glob(f"*/{RECIPE_FILE}"))
    if not found:
        raise ConfigError(f"{folder} is no run: it has no {RECIPE_FILE}")
    return found


def verify_run(run: Path) -> Verification:
    """Reads all files of a run that have a checksum in its records. A record that cannot be read is a fault, too.

    Files that a record does not name are not judged. A run that is being built changes while it is read.
    """
    faults: dict[Path, FileFault] = {}
    recorded = _recorded(run, faults)
    n_bytes = 0
    with progress_bar("Verify", len(recorded)) as progress:
        for path, sha256 in recorded.items():
            if not path.is_file():
                faults[path] = FileFault(str(path.relative_to(run)), "missing", MISSING)
            else:
                n_bytes += path.stat().st_size
                if sha256_of(path) != sha256:
                    faults[path] = FileFault(str(path.relative_to(run)), "damaged", DAMAGED)
            progress.advance()
    for mark in sorted(run.rglob(MARK)):
        for name in listed_files(mark.parent):
            path = mark.parent / name
            if not path.is_file():
                faults.setdefault(path, FileFault(str(path.relative_to(run)), "missing", MISSING))
    others = (path for path in sorted(run.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return Verification(
        n_files=len(recorded),
        n_bytes=n_bytes,
        faults=tuple(faults[path] for path in sorted(faults)),
        unrecorded=tuple(str(path.relative_to(run)) for path in others if path not in recorded and path not in faults),
    )


def _recorded(run: Path, faults: dict[Path, FileFault]) -> dict[Path, str]:
    """The checksum of each file that a record names. Records that are missing or cannot be read are added to `faults`."""
    sections: list[tuple[Path, Callable[[], Iterable[RecordedFile]]]] = [
        (run / RECIPE_FILE, partial(_recipe_files, run)),
        *((stage_path(run, stage), partial(_stage_files, run, stage)) for stage in STAGE_NAMES),
        (run / "corpus" / MANIFEST, partial(corpus_files, run / "corpus")),
        (run / "tokens" / MANIFEST, partial(token_files, run / "tokens")),
        (run / INDEX_FOLDER / INDEX_MANIFEST, partial(index_files, run / INDEX_FOLDER)),
        *((folder / STATE, partial(_checkpoint_files, folder)) for folder in checkpoint_folders(run / CHECKPOINTS)),
    ]
    found: dict[Path, str] = {}
    for record, read in sections:
        if not record.is_file() and record.name not in (RECIPE_FILE, STATE):
            continue  # of a stage that is not finished; if it is, its record names the file
        if record in found and sha256_of(record) != found[record]:
            continue  # a damaged manifest proves nothing about its files
        try:
            found |= {each.path: each.sha256 for each in read()}
        except CodekilnError as error:
            fault: Fault = "missing" if isinstance(error, MissingFileError) else "damaged"
            faults[record] = FileFault(str(record.relative_to(run)), fault, str(error))
    return found


def _recipe_files(run: Path) -> list[RecordedFile]:
    read_recipe(run)
    return [_record_file(run / RECIPE_FILE)]


def _record_file(path: Path) -> RecordedFile:
    """A record that was read, and has the checksum of its fields in itself."""
    return RecordedFile(path, sha256_of(path))


def _checkpoint_files(folder: Path) -> list[RecordedFile]:
    return [*checkpoint_files(folder), _record_file(folder / STATE)]


def _stage_files(run: Path, stage: str) -> Iterator[RecordedFile]:
    """The record of a stage, its output, and the weights that it wrote or read."""
    record = read_stage_record(run, stage)
    yield _record_file(stage_path(run, stage))
    output = STAGE_OUTPUTS[stage]
    if output is not None and record["output_sha256"] is not None:
        yield RecordedFile(run / output, record["output_sha256"])
        if output == TOKENIZER and (run / MODEL).is_dir():
            yield RecordedFile(run / MODEL / TOKENIZER, record["output_sha256"])  # its copy
    for part in (record["result"], record["inputs"]):
        weights = part.get("weights")
        for name, sha256 in weights.items() if isinstance(weights, dict) else ():
            yield RecordedFile(run / MODEL / Path(name).name, sha256)
