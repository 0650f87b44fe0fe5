"""A Parquet file of mmray says so when any of its bits was flipped, and is one to other readers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmray.system.tables import read_table_file, table_file

TABLE = pa.table({"a": np.arange(50), "b": [f"name {i}" for i in range(50)]})


def test_it_comes_back_equal_with_its_own_metadata():
    table = TABLE.replace_schema_metadata({"whose": "mine"})
    read = read_table_file(pa.py_buffer(table_file(table)))
    assert read.equals(table, check_metadata=True)
    assert read_table_file(pa.py_buffer(table_file(TABLE)), ["b"]).equals(TABLE.select(["b"]))
    assert read_table_file(pa.py_buffer(table_file(TABLE))).schema.metadata is None


def test_other_readers_read_it_and_the_same_table_gives_the_same_bytes():
    assert pq.read_table(pa.BufferReader(bytes(table_file(TABLE)))).equals(TABLE)
    assert table_file(TABLE) == table_file(TABLE)


def test_files_of_other_writers_have_no_digest(tmp_path):
    pq.write_table(TABLE, tmp_path / "x.parquet")
    assert read_table_file(pa.py_buffer((tmp_path / "x.parquet").read_bytes())).equals(TABLE)


def test_every_flipped_bit_is_noticed():
    content = table_file(TABLE, compression="none")
    for bit in range(8 * len(content)):
        content[bit // 8] ^= 1 << bit % 8
        with pytest.raises((ValueError, LookupError, OSError, pa.ArrowException)):
            read_table_file(pa.py_buffer(bytes(content)))
        content[bit // 8] ^= 1 << bit % 8


@pytest.mark.parametrize("length", [0, 3, 8, 11, 500])
def test_a_cut_file_is_noticed(length):
    content = bytes(table_file(TABLE))[:length]
    with pytest.raises((ValueError, OSError, pa.ArrowException)):
        read_table_file(pa.py_buffer(content))


def test_a_column_that_is_not_there_is_an_error():
    with pytest.raises(LookupError, match="without the column 'c'"):
        read_table_file(pa.py_buffer(table_file(TABLE)), ["a", "c"])


@pytest.mark.parametrize("rows", [7, 1000])
def test_row_groups_come_back_in_order(rows):
    content = pa.py_buffer(table_file(TABLE, row_group_size=rows))
    assert read_table_file(content).equals(TABLE)
    assert read_table_file(content, ["b", "a"]).equals(TABLE.select(["b", "a"]))
