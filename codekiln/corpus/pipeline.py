"""Builds a corpus: reads the work units of all sources, runs the steps, splits, and writes. Every drop is counted.

Each stage is a list of tasks (`engine.py`), whose results are in the scratch folder. A corpus that was interrupted continues
with the tasks that had not finished. The result is the same for any number of workers, and on each engine.
"""

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from codekiln.corpus.config import CorpusConfig, named_steps
from codekiln.corpus.documents import DROPPED, FORMAT, MANIFEST, SPLITS, read_manifest
from codekiln.corpus.engine import Engine, count_interrupts
from codekiln.corpus.overlap import drop_overlap, overlap_record
from codekiln.corpus.reading import UnitReader
from codekiln.corpus.scratch import SCRATCH_FORMAT, Scratch
from codekiln.corpus.sources.files import WorkUnit
from codekiln.corpus.split import choose_held_out
from codekiln.corpus.steps.license_gate import REASON as LICENSE_REASON
from codekiln.corpus.steps.step import Step
from codekiln.corpus.tally import Tally, tally_corpus
from codekiln.corpus.writing import write_dropped, write_splits
from codekiln.errors import ConfigError
from codekiln.files import JsonObject, checksum, read_json, sha256_of, to_record, write_json
from codekiln.folders import claim_folder, clear_folder
from codekiln.progress import print_line

SCRATCH = ".scratch"
PLAN = "plan.json"  # what a corpus is built from; and the checksum of its manifest, once that is written
# All files that the corpus package writes: they are removed before a corpus is built from other inputs.
_FILES = (f"{SCRATCH}/*", *(f"{split}/part-*.parquet" for split in (*SPLITS, DROPPED)), MANIFEST, PLAN)
OVERLAP_STEP = "Overlap"


def build_corpus(
    config: CorpusConfig, folder: Path, engine: Engine | None = None, *, keep_dropped: bool = False
) -> JsonObject:
    """Writes the corpus into `folder`, which is new or unfinished, and the manifest last. Returns the manifest.

    With `keep_dropped`, dropped documents are written too, with their reasons. Raises ConfigError with all drop counts if
    nothing is left to train on.
    """
    engine, folder = engine or Engine(), folder.absolute()
    claim_folder(folder, "corpus")
    engine.start()
    with count_interrupts() as interrupts:
        units, plan = _open_plan(config, folder, keep_dropped=keep_dropped)
    if interrupts:  # a library may have swallowed the exception
        raise KeyboardInterrupt
    if _is_finished(folder, plan):
        _remove_scratch(folder / SCRATCH)  # the process was stopped after it had finished
        return read_manifest(folder)
    scratch = Scratch(folder=folder / SCRATCH, outputs=folder, engine=engine, n_units=len(units))
    reader = UnitReader(units, config, scratch, keep_dropped)
    engine.run("Corpus: read and filter", reader, scratch.unit_record, [max(1, unit.n_bytes) for unit in units])

    for name, step in named_steps(config):
        scratch = scratch.after(name, step.check_corpus)
    if not any(True for unit in range(scratch.n_units) for _ in scratch.batches(unit, ["order"])):
        if keep_dropped:
            write_dropped(scratch, folder)
        raise _empty_corpus_error("every file was dropped", tally_corpus(config, scratch, None))
    held_out = choose_held_out(scratch, config)
    if held_out.unit != "repository":
        print_line(f"Corpus: held out by {held_out.unit}, because the repositories are few or large")
    has_overlap = bool(held_out.names) and not held_out.is_cut
    if has_overlap:
        find = partial(drop_overlap, held_out=held_out, max_overlap=config.max_overlap)
        scratch = scratch.after(OVERLAP_STEP, find)
    for step in config.steps:
        step.finish_corpus(scratch)
    tally = tally_corpus(config, scratch, held_out)
    if not tally.n_training:
        raise _empty_corpus_error("all other files hold copies of held-out files", tally)

    splits = write_splits(config, scratch, folder, held_out)
    if keep_dropped:
        write_dropped(scratch, folder)
    overlap = overlap_record(scratch) if has_overlap else None
    manifest = {"format": FORMAT, "splits": splits} | tally.record(
        [*(name for name, _ in named_steps(config)), OVERLAP_STEP]
    )
    manifest["validation"] = {"by": held_out.unit, "names": list(held_out.names), "overlap": overlap}
    lists = [folder / name for step in config.steps for name in step.outputs]
    manifest["lists"] = {path.name: checksum(path) for path in lists if path.is_file()}
    manifest["dropped_parts"] = {
        path.name: checksum(path) for path in sorted((folder / DROPPED).glob("part-*.parquet"))
    }
    write_json(folder / MANIFEST, manifest)
    write_json(folder / PLAN, plan | {"manifest_sha256": sha256_of(folder / MANIFEST)})
    _remove_scratch(scratch.folder)
    n_training, n_held_out = (splits[split]["documents"] for split in SPLITS)
    print_line(f"Corpus: of {tally.n_read:,} files, {n_training:,} are to train on, and {n_held_out:,} are held out")
    return manifest


def read_fingerprints(folder: Path) -> list[JsonObject]:
    """The fingerprints of the sources that a corpus was built from."""
    found: list[JsonObject] = read_json(folder / PLAN)["fingerprints"]
    return found


def _open_plan(config: CorpusConfig, folder: Path, *, keep_dropped: bool) -> tuple[list[WorkUnit], JsonObject]:
    """The work units, and the plan of a corpus from the same inputs that was interrupted, or a new one."""
    plan = read_json(folder / PLAN) if (folder / PLAN).is_file() else None
    if plan is not None and "manifest_sha256" in plan and not _is_finished(folder, plan):
        plan = None  # the manifest was removed or changed since, so that the corpus is made again
    if plan is None:
        _clear(folder)
        # Without inputs until they are listed: if that is interrupted, what sources have written is kept, as a sorted dump.
        plan = {"inputs": None}
        write_json(folder / PLAN, plan)
    units = _list_units(config, folder)
    fingerprints = [source.fingerprint() for source in config.sources]
    inputs = _digest(config, units, fingerprints)
    if plan["inputs"] is None:
        plan = None
    elif plan["inputs"] != inputs:
        since = "was built" if "manifest_sha256" in plan else "was interrupted"
        print_line(f"Corpus: the input has changed since it {since}: it starts again")
        _clear(folder)
        units, plan = _list_units(config, folder), None
    if plan is not None and keep_dropped and not plan["keep_dropped"]:
        raise ConfigError(
            f"the corpus in {folder} was begun without --keep-dropped: continue without it, or choose another --out"
        )
    if plan is None:
        plan = {"inputs": inputs, "fingerprints": fingerprints, "keep_dropped": keep_dropped}
        write_json(folder / PLAN, plan)
    for name in ("read", "drops"):
        (folder / SCRATCH / name).mkdir(parents=True, exist_ok=True)
    return units, plan


def _is_finished(folder: Path, plan: JsonObject) -> bool:
    """Whether the manifest is the one that was written last."""
    path = folder / MANIFEST
    return path.is_file() and plan.get("manifest_sha256") == sha256_of(path)


def _list_units(config: CorpusConfig, folder: Path) -> list[WorkUnit]:
    print_line("Corpus: list files …")
    scratch = folder / SCRATCH / "sources"
    units = [unit for n, source in enumerate(config.sources) for unit in source.units(scratch / f"{n}")]
    if not units:
        raise ConfigError("nothing to train on: no source has a file: use other sources")
    return units


def _digest(config: CorpusConfig, units: Sequence[WorkUnit], fingerprints: Sequence[JsonObject]) -> str:
    """A hash of everything that the results of tasks depend on."""
    digest = hashlib.sha256(
        repr((FORMAT, SCRATCH_FORMAT, to_record(config), fingerprints)).encode(errors="surrogatepass")
    )
    for unit in units:
        digest.update(repr(unit).encode(errors="surrogatepass"))
    return digest.hexdigest()


def _clear(folder: Path) -> None:
    """Removes what an interrupted corpus has written."""
    outputs = (name for kind in Step.__subclasses__() for name in kind.outputs)
    clear_folder(folder, "corpus", (*_FILES, *outputs))


def _empty_corpus_error(why: str, tally: Tally) -> ConfigError:
    """The error if nothing is left, with all counts."""
    n_licensed = sum(n for reason, n in tally.n_by_reason.items() if reason.startswith(LICENSE_REASON))
    advice = "use other sources"
    if n_licensed == tally.n_read:
        why = "no file has a permissive license"
    if n_licensed > tally.n_read / 2:
        advice += ", or set --license SPDX if the code is yours"
    counts = ", ".join(f"{reason}: {n}" for reason, n in tally.n_by_reason.items()) or "none was found"
    return ConfigError(f"nothing to train on: {why} (of {tally.n_read} files; {counts}): {advice}")


def _remove_scratch(folder: Path) -> None:
    for path in sorted(folder.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    folder.rmdir()
