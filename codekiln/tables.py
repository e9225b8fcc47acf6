"""Parquet files that are written while their rows are made."""

from collections.abc import Iterable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from codekiln.files import atomic_write


def write_table(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema, *, group_rows: int) -> int:
    """Writes a file atomically, with `group_rows` rows in each row group but the last. Returns the number of rows.

    One row group is in memory. How the rows are batched does not change the file.
    """
    pending: list[pa.RecordBatch] = []
    n_rows = n_pending = 0
    with atomic_write(path) as temp_path, pq.ParquetWriter(temp_path, schema, compression="zstd") as writer:
        for batch in batches:
            pending.append(batch)
            n_rows, n_pending = n_rows + batch.num_rows, n_pending + batch.num_rows
            if n_pending >= group_rows:
                table = pa.Table.from_batches(pending, schema)
                n_whole = n_pending // group_rows * group_rows
                writer.write_table(table.slice(0, n_whole), row_group_size=group_rows)
                pending, n_pending = table.slice(n_whole).to_batches(), n_pending - n_whole
        writer.write_table(pa.Table.from_batches(pending, schema), row_group_size=group_rows)
    return n_rows
