"""Near-duplicates: documents whose sets of five-word shingles have a Jaccard similarity of at least 0.7 (The Stack,
arXiv 2211.15533, section 3.2).

MinHash with banding finds candidates (Broder 1997; Leskovec et al., Mining of Massive Datasets, section 3.4). Each candidate
pair is verified by its true similarity before it is linked, so no document is dropped because of a collision. Linked documents
form clusters, and one document of each is kept.

Memory: the bands of a document are 336 bytes, and two or three copies exist for a moment. The shingles of candidates are in a
scratch file, which is mapped.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from codekiln.corpus.documents import document_name
from codekiln.corpus.scratch import Scratch
from codekiln.corpus.steps.step import Draft, Step
from codekiln.files import atomic_write
from codekiln.progress import progress_bar

if TYPE_CHECKING:
    import daft

NEAR_DUPLICATE = "near-duplicate"
CLUSTERS = "near-duplicates.parquet"
CLUSTERS_SCHEMA = pa.schema([("name", pa.string()), ("kept", pa.string()), ("similarity", pa.float64())])
# In a bucket of documents that share a band, each is compared with this many before it at most. Larger buckets are license
# headers or generated files, whose members are linked through their neighbors.
BUCKET_WINDOW = 256

Indices = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class NearDuplicates(Step):
    """Keeps the largest document of each cluster; of equally large ones, the one whose name comes first.

    Documents of fewer than five words have no shingles, and are kept. `near-duplicates.parquet` lists the documents of every
    cluster: `name`, `kept` (the name of the document that was kept), and `similarity` to it, which may be below the threshold
    where documents are linked through others.
    """

    threshold: float = 0.7

    columns: ClassVar = {"bands": bytes}
    compares_documents = True
    outputs: ClassVar = (CLUSTERS,)

    def check_document(self, draft: Draft) -> str | None:
        # Compiled functions take half a second to load: only building a corpus needs them.
        from codekiln.corpus.shingles import shingle_bands  # noqa: PLC0415

        draft.columns["bands"] = shingle_bands(draft.text).tobytes()  # zeros if there are no shingles
        return None

    def check_corpus(self, rows: "daft.DataFrame", scratch: Scratch) -> "daft.DataFrame":
        from daft import col  # noqa: PLC0415

        kept = rows.where(col("reason").is_null())
        table = kept.select("order", "bands").sort("order").to_arrow()
        orders = table.column("order").to_numpy()
        sets, roots = find_clusters(band_matrix(table.column("bands")), orders, scratch, self.threshold)
        clusters = _groups(roots)
        clustered = orders[[at for members in clusters for at in members]].tolist()
        columns = kept.select("order", "repository", "revision", "path", "text_bytes").sort("order").to_arrow()
        columns = columns.filter(pc.is_in(columns.column("order"), pa.array(clustered, pa.int64())))
        names, sizes = {}, {}
        for row in columns.to_pylist():
            at = int(np.searchsorted(orders, row["order"]))
            names[at] = document_name(row["repository"], row["revision"], row["path"])
            sizes[at] = row["text_bytes"]
        found: list[dict[str, object]] = []
        dropped: list[int] = []
        for members in clusters:
            best = min(members, key=lambda at: (-sizes[at], names[at]))
            found += [
                {"name": names[at], "kept": names[best], "similarity": sets.similarity(at, best)} for at in members
            ]
            dropped += [int(orders[at]) for at in members if at != best]
        with atomic_write(scratch.outputs / CLUSTERS) as temp_path:
            pq.write_table(pa.Table.from_pylist(found, CLUSTERS_SCHEMA), temp_path)
        return self.drop_rows(rows.exclude("bands"), dropped, NEAR_DUPLICATE)


def band_matrix(bands: pa.ChunkedArray) -> Hashes:
    """Bands (N_BANDS, documents), from a column with those of each document as bytes."""
    from codekiln.corpus.shingles import N_BANDS  # noqa: PLC0415

    rows = [
        np.frombuffer(data, np.uint64).reshape(-1, N_BANDS)
        for chunk in bands.cast(pa.large_binary()).chunks
        for data in (b"".join(chunk.to_pylist()),)
    ]
    return np.ascontiguousarray(np.concatenate([np.empty((0, N_BANDS), np.uint64), *rows]).T)


class ShingleSets:
    """The sorted shingles of some documents: document k has `values[offsets[0, k]:offsets[1, k]]`, others none."""

    def __init__(self, values: Hashes, offsets: Indices) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def write(cls, scratch: Scratch, orders: Indices, is_candidate: npt.NDArray[np.bool_]) -> "ShingleSets":
        """Reads the texts of the candidates once, and writes their shingles to a scratch file, which is mapped."""
        from codekiln.corpus.shingles import shingle_set  # noqa: PLC0415

        path = scratch.folder / "shingles.bin"
        starts = np.zeros(len(orders), np.int64)
        lengths = np.zeros(len(orders), np.int64)
        end = 0
        wanted = orders[is_candidate]
        with path.open("wb") as file, progress_bar("Corpus: near-duplicates", len(wanted)) as progress:
            for order, text in scratch.texts(wanted):
                at = int(np.searchsorted(orders, order))
                shingles = shingle_set(text)
                starts[at], lengths[at] = end, len(shingles)
                end += len(shingles)
                file.write(shingles.tobytes())
                progress.advance()
        values = np.memmap(path, np.uint64, "r") if end else np.empty(0, np.uint64)
        return cls(np.asarray(values), np.stack((starts, starts + lengths)))

    def similarity(self, one: int, other: int) -> float:
        """The Jaccard similarity of two documents."""
        from codekiln.corpus.shingles import jaccard  # noqa: PLC0415

        first, second = (self.values[self.offsets[0, at] : self.offsets[1, at]] for at in (one, other))
        return float(jaccard(first, second))


def find_clusters(bands: Hashes, orders: Indices, scratch: Scratch, threshold: float) -> tuple[ShingleSets, Indices]:
    """The shingles of all candidates, and for each document the first of its cluster, (documents,).

    The result does not depend on the number of workers: buckets and documents are taken in order.
    """
    from codekiln.corpus.shingles import find_roots, link_bucket  # noqa: PLC0415

    is_candidate = np.zeros(bands.shape[1], bool)
    for band in bands:
        for bucket in _buckets(band):
            is_candidate[bucket] = True
    sets = ShingleSets.write(scratch, orders, is_candidate)
    parent = np.arange(bands.shape[1])
    for band in bands:
        for bucket in _buckets(band):
            link_bucket(bucket, parent, sets.values, sets.offsets, threshold, BUCKET_WINDOW)
    return sets, find_roots(parent)


def _buckets(band: Hashes) -> list[Indices]:
    """The documents that share a value, in order: those of at least two. Zero is the value of documents without shingles."""
    if not len(band):
        return []
    order = np.argsort(band, kind="stable")
    values = band[order]
    starts = np.flatnonzero(np.concatenate(([True], values[1:] != values[:-1])))
    stops = np.append(starts[1:], len(values))
    is_shared = (stops - starts > 1) & (values[starts] != 0)
    return [order[start:stop] for start, stop in zip(starts[is_shared], stops[is_shared], strict=True)]


def _groups(roots: Indices) -> list[list[int]]:
    """The members of each cluster of at least two documents, in order."""
    order = np.argsort(roots, kind="stable")
    cuts = np.flatnonzero(np.diff(roots[order])) + 1
    return [group.tolist() for group in np.split(order, cuts) if len(group) > 1]
