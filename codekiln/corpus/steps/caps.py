"""Caps: a repository has at most a number of bytes, so that large ones are not most of the corpus."""

import hashlib
from dataclasses import dataclass
from functools import partial

import numpy as np

from codekiln.arrays import load_arrays, save_arrays
from codekiln.corpus.scratch import Drops, Scratch, read_partition, write_partitions
from codekiln.corpus.steps.step import Step

CAPPED = "over its repository's cap"


@dataclass(frozen=True, kw_only=True)
class RepositoryCap(Step):
    """Keeps documents of each repository in random order until they exceed `max_bytes`."""

    compares_documents = True

    max_bytes: int

    def check_corpus(self, scratch: Scratch) -> Drops:
        n = scratch.n_partitions("cap-rows", 100 * scratch.n_documents())
        scratch.run("Corpus: repositories", "cap-rows", partial(_partition, scratch, n))
        scratch.run("Corpus: caps", "cap-drops", partial(_find_capped, scratch, self.max_bytes), n)
        dropped = [load_arrays(scratch.path("cap-drops", k))["order"] for k in range(n)]
        return Drops(CAPPED, np.sort(np.concatenate(dropped)))


def _partition(scratch: Scratch, n: int, unit: int) -> None:
    """Task: the sizes of the documents of a work unit, in partitions by repository."""
    rows = scratch.rows(unit, ["repository", "draw", "order", "text_bytes"])
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in rows["repository"])
    columns = {
        "draw": np.array([int(draw, 16) for draw in rows["draw"]], np.uint64),
        "order": np.array(rows["order"], np.int64),
        "size": np.array(rows["text_bytes"], np.int64),
    }
    write_partitions(scratch.path("cap-rows", unit), np.frombuffer(digests, np.uint64), columns, n)


def _find_capped(scratch: Scratch, max_bytes: int, partition: int) -> None:
    """Task: the documents of a partition with which their repository exceeds the cap."""
    rows = read_partition([scratch.path("cap-rows", unit) for unit in range(scratch.n_units)], partition)
    by = np.lexsort([rows["order"], rows["draw"], rows["hash"]])
    repository, size = rows["hash"][by], rows["size"][by]
    before = np.cumsum(size) - size
    is_first = np.ones(len(by), bool)
    is_first[1:] = repository[1:] != repository[:-1]
    start = np.maximum.accumulate(np.where(is_first, before, 0))  # bytes of the repositories before
    is_over = before + size - start > max_bytes
    save_arrays(scratch.path("cap-drops", partition), {"order": np.sort(rows["order"][by[is_over]])})
