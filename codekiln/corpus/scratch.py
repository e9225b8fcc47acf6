"""The scratch folder of a corpus that is being built: the documents that were read, before it is decided which are kept."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

READ_BATCH_ROWS = 256


@dataclass(frozen=True)
class Scratch:
    """`folder` is removed when the corpus is complete. Steps write files that belong to the corpus to `outputs`."""

    folder: Path
    outputs: Path

    def texts(self, orders: npt.NDArray[np.int64]) -> Iterator[tuple[int, str]]:
        """Order and text of some documents, one batch in memory at a time. They are in the order of the files."""
        if not len(orders):
            return
        is_wanted = np.zeros(1 + int(orders.max()), bool)
        is_wanted[orders] = True
        for path in sorted(self.folder.glob("*.parquet")):
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(batch_size=READ_BATCH_ROWS, columns=["order", "text"]):
                    found = batch.column("order").to_numpy()
                    rows = batch.filter(
                        pa.array((found < len(is_wanted)) & is_wanted[np.minimum(found, len(is_wanted) - 1)])
                    )
                    yield from zip(rows.column("order").to_pylist(), rows.column("text").to_pylist(), strict=True)
