"""Near-duplicates: documents whose sets of five-word shingles have a Jaccard similarity of at least 0.7 (The Stack,
arXiv 2211.15533, section 3.2).

MinHash with banding finds candidates (Broder 1997; Leskovec et al., Mining of Massive Datasets, section 3.4). Each candidate
pair is verified by its true similarity before it is linked, so no document is dropped because of a collision. Linked documents
form clusters, and one document of each is kept.

The bands are partitioned by their hash. Each partition is sorted on its own, so its size bounds the memory. The shingles of
candidates are in one file, which is mapped. Which pairs are in one partition does not change the clusters.
"""

import os
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from codekiln.arrays import load_arrays, map_array, save_arrays, sorted_unique
from codekiln.corpus.documents import document_name
from codekiln.corpus.scratch import (
    ORDER_BITS,
    Drops,
    Indices,
    Scratch,
    read_partition,
    write_partitions,
)
from codekiln.corpus.steps.step import Draft, Drop, Step
from codekiln.corpus.steps.survivors import COLUMNS, ranks
from codekiln.files import atomic_write

NEAR_DUPLICATE = "near-duplicate"
CLUSTERS = "near-duplicates.parquet"
CLUSTERS_SCHEMA = pa.schema([("name", pa.string()), ("kept", pa.string()), ("similarity", pa.float64())])
# In a bucket of documents that share a band, each is compared with this many before it at most. Larger buckets are license
# headers or generated files, whose members are linked through their neighbors.
BUCKET_WINDOW = 256
BYTES_PER_DOCUMENT = 42 * 16  # a hash and an order for each band
PAGE_BYTES = 4096  # work units write to separate pages of the file of shingles

Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(Step):
    """Keeps one document of each cluster, by the rule of `survivors.py`.

    Documents of fewer than five words have no shingles, and are kept. `near-duplicates.parquet` lists the documents of every
    cluster: `name`, `kept` (the name of the document that was kept), and `similarity` to it, which may be below the threshold
    where documents are linked through others.
    """

    threshold: float = 0.7

    columns: ClassVar = {"bands": bytes, "shingles": int}
    compares_documents = True
    outputs: ClassVar = (CLUSTERS,)

    def check_document(self, draft: Draft) -> Drop | None:
        # Compiled functions take half a second to load: only building a corpus needs them.
        from codekiln.corpus.shingles import SHINGLE_WORDS, band_hashes, text_runs  # noqa: PLC0415

        runs = text_runs(draft.text, SHINGLE_WORDS)
        draft.columns["shingles"] = len(runs)
        draft.columns["bands"] = band_hashes(runs).tobytes() if len(runs) else b""
        return None

    def check_corpus(self, scratch: Scratch) -> Drops:
        clusters = find_clusters(scratch, self.threshold)
        orders = np.concatenate([np.empty(0, np.int64), *clusters])
        lengths = np.array([len(cluster) for cluster in clusters], np.int64)
        documents = _describe(scratch, np.sort(orders))
        places = np.searchsorted(np.array(documents["order"], np.int64), orders)
        # Sorted by cluster, and then by the rule: the first of each cluster is kept.
        cluster = np.repeat(np.arange(len(clusters)), lengths)
        by = np.lexsort((*(rank[places] for rank in reversed(ranks(documents))), cluster))
        kept = np.repeat(by[np.cumsum(lengths) - lengths], lengths)
        similarities = ShingleSets.open(scratch).similarities(np.stack((orders, orders[kept])))
        names = pa.array(documents["name"], pa.string())
        columns = [names.take(places), names.take(places[kept]), pa.array(similarities)]
        with atomic_write(scratch.outputs / CLUSTERS) as temp_path:
            pq.write_table(pa.table(columns, schema=CLUSTERS_SCHEMA), temp_path)
        dropped = np.flatnonzero(kept != np.arange(len(orders)))
        dropped = dropped[np.argsort(orders[dropped])]
        return Drops(NEAR_DUPLICATE, orders[dropped], similarities[dropped])


def find_clusters(scratch: Scratch, threshold: float) -> list[Indices]:
    """The orders of the documents of each cluster of at least two, sorted; clusters in the order of their first document."""
    n = scratch.n_partitions("bands", 3 * BYTES_PER_DOCUMENT * scratch.n_documents())
    scratch.run("Corpus: bands", "bands", partial(_partition, scratch, n))
    scratch.run("Corpus: candidates", "buckets", partial(_find_buckets, scratch), n)
    _place_shingles(scratch, n)
    scratch.run("Corpus: shingles of candidates", "shingles", partial(_write_shingles, scratch))
    scratch.run("Corpus: compare candidates", "links", partial(_verify, scratch, threshold), n)
    return _join_links([load_arrays(scratch.path("links", k))["links"] for k in range(n)])


def _partition(scratch: Scratch, n: int, unit: int) -> None:
    """Task: the bands of the documents of a work unit, in partitions by their hash."""
    orders: list[int] = []
    bands: list[bytes] = []
    for batch in scratch.batches(unit, ["order", "bands"]):
        pairs = zip(batch.column("order").to_pylist(), batch.column("bands").to_pylist(), strict=True)
        kept = [(order, data) for order, data in pairs if data]
        orders += [order for order, _ in kept]
        bands += [data for _, data in kept]
    hashes = np.frombuffer(b"".join(bands), np.uint64)
    per_document = len(hashes) // max(1, len(orders))
    columns = {"order": np.repeat(np.array(orders, np.int64), per_document)}
    write_partitions(scratch.path("bands", unit), hashes, columns, n)


def _find_buckets(scratch: Scratch, partition: int) -> None:
    """Task: the documents of a partition that share a band: those of each bucket in order, and where each bucket begins."""
    rows = read_partition([scratch.path("bands", unit) for unit in range(scratch.n_units)], partition)
    by = np.argsort(rows["hash"], kind="stable")
    values, orders = rows["hash"][by], rows["order"][by]
    begins = np.concatenate(([True], values[1:] != values[:-1]))[: len(values)]
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, len(values)))
    is_shared = np.repeat(lengths > 1, lengths)
    shared_lengths = lengths[lengths > 1]
    members = orders[is_shared]
    stops = np.cumsum(shared_lengths)
    save_arrays(
        scratch.path("buckets", partition), {"members": members, "stops": stops, "candidates": sorted_unique(members)}
    )


def _place_shingles(scratch: Scratch, n_partitions: int) -> None:
    """Decides where the shingles of each candidate are in the file, and creates it. It is sparse."""
    path = _places_path(scratch)
    if path.is_file():
        return
    found = [load_arrays(scratch.path("buckets", k))["candidates"] for k in range(n_partitions)]
    candidates = sorted_unique(np.concatenate([np.empty(0, np.int64), *found]))
    lengths = np.zeros(len(candidates), np.int64)
    for unit in sorted_unique(candidates >> ORDER_BITS).tolist():
        for batch in scratch.batches(unit, ["order", "shingles"]):
            orders = batch.column("order").to_numpy()
            at = np.minimum(np.searchsorted(candidates, orders), len(candidates) - 1)
            is_candidate = candidates[at] == orders
            lengths[at[is_candidate]] = batch.column("shingles").to_numpy()[is_candidate]
    per_page = PAGE_BYTES // 8
    begins_unit = np.diff(candidates >> ORDER_BITS, prepend=-1) != 0
    starts = np.zeros(len(candidates), np.int64)
    end = 0
    for at in np.split(np.arange(len(candidates)), np.flatnonzero(begins_unit)[1:]):
        if len(at):
            start = -(-end // per_page) * per_page
            starts[at] = start + np.cumsum(lengths[at]) - lengths[at]
            end = start + int(lengths[at].sum())
    with atomic_write(_shingles_path(scratch)) as temp_path, temp_path.open("wb") as file:
        file.truncate(8 * max(1, end))
    save_arrays(path, {"orders": candidates, "starts": starts, "end": np.array([end])})


def _write_shingles(scratch: Scratch, unit: int) -> None:
    """Task: the shingles of the candidates of a work unit, sorted, to their place in the file."""
    from codekiln.corpus.shingles import shingle_set  # noqa: PLC0415

    places = load_arrays(_places_path(scratch))
    orders = places["orders"]
    first, last = np.searchsorted(orders, [unit << ORDER_BITS, (unit + 1) << ORDER_BITS])
    lengths = np.zeros(last - first, np.int64)
    stops = np.append(places["starts"], places["end"])
    limits = np.diff(stops)[first:last]
    with _shingles_path(scratch).open("r+b") as file:
        for order, text in scratch.texts(unit, orders[first:last]):
            at = int(np.searchsorted(orders, order))
            shingles = shingle_set(text)
            if len(shingles) > limits[at - first]:
                raise RuntimeError(f"the text of document {order} has changed since its bands were computed")
            lengths[at - first] = len(shingles)
            os.pwrite(file.fileno(), shingles.tobytes(), 8 * int(places["starts"][at]))
        os.fsync(file.fileno())
    save_arrays(scratch.path("shingles", unit), {"lengths": lengths})


class ShingleSets:
    """The sorted shingles of candidates: those of the document with `orders[k]` are `values[offsets[0, k]:offsets[1, k]]`."""

    def __init__(self, orders: Indices, values: Hashes, offsets: Indices) -> None:
        self.orders, self.values, self.offsets = orders, values, offsets

    @classmethod
    def open(cls, scratch: Scratch) -> "ShingleSets":
        places = load_arrays(_places_path(scratch))
        lengths = [load_arrays(scratch.path("shingles", unit))["lengths"] for unit in range(scratch.n_units)]
        values = map_array(_shingles_path(scratch), np.uint64)
        starts = places["starts"]
        return cls(places["orders"], values, np.stack((starts, starts + np.concatenate(lengths))))

    def similarities(self, pairs: Indices) -> npt.NDArray[np.float64]:
        """The Jaccard similarity of each of (2, n) pairs of documents, by their orders, (n,)."""
        from codekiln.corpus.shingles import similarities  # noqa: PLC0415

        found: npt.NDArray[np.float64] = similarities(np.searchsorted(self.orders, pairs), self.values, self.offsets)
        return found


def _verify(scratch: Scratch, threshold: float, partition: int) -> None:
    """Task: links of the documents of a partition that are similar: pairs of a document and the first of its component."""
    from codekiln.corpus.shingles import find_roots, link_buckets  # noqa: PLC0415

    sets = ShingleSets.open(scratch)
    buckets = load_arrays(scratch.path("buckets", partition))
    members, inside = (
        np.searchsorted(sets.orders, buckets["members"]),
        np.searchsorted(sets.orders, buckets["candidates"]),
    )
    parent = np.arange(len(sets.orders))
    link_buckets(members, buckets["stops"], parent, sets.values, sets.offsets, threshold, BUCKET_WINDOW)
    roots = find_roots(parent)[inside]
    is_linked = roots != inside
    links = np.stack((sets.orders[roots[is_linked]], sets.orders[inside[is_linked]]))
    save_arrays(scratch.path("links", partition), {"links": links})


def _join_links(found: list[Indices]) -> list[Indices]:
    """The connected components of links (2, n), each sorted."""
    from codekiln.corpus.shingles import find_roots, join_pairs  # noqa: PLC0415

    links = np.concatenate([np.empty((2, 0), np.int64), *found], axis=1)
    orders, places = np.unique(links, return_inverse=True)
    parent = np.arange(len(orders))
    join_pairs(places.reshape(2, -1), parent)
    roots = find_roots(parent)
    by = np.argsort(roots, kind="stable")
    starts = np.flatnonzero(np.diff(roots[by], prepend=-1))
    return [orders[members] for members in np.split(by, starts[1:])] if len(orders) else []


def _describe(scratch: Scratch, orders: Indices) -> dict[str, list[Any]]:
    """Names, and what the rule of survivors looks at, of the documents with these orders."""
    columns = ["repository", "revision", "path", *COLUMNS]
    found: dict[str, list[Any]] = {name: [] for name in (*COLUMNS, "name")}
    for unit in sorted_unique(orders >> ORDER_BITS).tolist():
        for batch in scratch.batches(unit, columns):
            is_wanted = np.isin(batch.column("order").to_numpy(), orders, assume_unique=True)
            for row in batch.filter(pa.array(is_wanted)).to_pylist():
                for name in COLUMNS:
                    found[name].append(row[name])
                found["name"].append(document_name(row["repository"], row["revision"], row["path"]))
    return found


def _places_path(scratch: Scratch) -> Path:
    return scratch.path("places", 0)


def _shingles_path(scratch: Scratch) -> Path:
    return scratch.path("values", 0)
