"""Parquet files that are written while their rows are made."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from codekiln.tables import write_table

SCHEMA = pa.schema([("n", pa.int64())])


@pytest.mark.parametrize("n_rows", [0, 1, 9, 10, 11, 20, 25])
@pytest.mark.parametrize("batch_rows", [1, 3, 10, 100])
def test_rows_are_in_groups_however_they_come(tmp_path: Path, n_rows: int, batch_rows: int) -> None:
    batches = pa.table({"n": list(range(n_rows))}, schema=SCHEMA).to_batches(max_chunksize=batch_rows)
    assert write_table(tmp_path / "a.parquet", batches, SCHEMA, group_rows=10) == n_rows
    metadata = pq.read_metadata(tmp_path / "a.parquet")
    sizes = [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)]
    assert [size for size in sizes if size] == [10] * (n_rows // 10) + [n_rows % 10] * (n_rows % 10 > 0)
    assert pq.read_table(tmp_path / "a.parquet").column("n").to_pylist() == list(range(n_rows))
    whole = pa.table({"n": list(range(n_rows))}, schema=SCHEMA).to_batches()
    write_table(tmp_path / "b.parquet", whole, SCHEMA, group_rows=10)
    assert (tmp_path / "a.parquet").read_bytes() == (tmp_path / "b.parquet").read_bytes()
