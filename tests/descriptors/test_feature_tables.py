"""Embeddings of Parquet files come whole and in order, or not at all."""

import struct

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmray.descriptors.files.reading import read_feature_set
from mmray.system.folder import Folder
from tests.made.feature_samples import (
    SIGNALLING,
    column,
    lists,
    refused,
    save_folder,
    save_parquet,
    small_batches,
    with_wrong_bytes,
)
from tests.made.synthetic import clouds, feature_shard


@pytest.mark.parametrize("seed", range(3))
def test_rows_are_put_in_the_order_of_their_image_ids(tmp_path, seed):
    rows = clouds(9, 50)
    ids = np.random.default_rng(seed).permutation(50)
    save_folder(tmp_path / "f", rows, ids=ids, size=13)
    np.testing.assert_array_equal(read_feature_set(str(tmp_path / "f")).features, rows)


def test_without_image_ids_the_order_is_that_of_names_and_rows(tmp_path):
    rows = clouds(10, 12)
    for name, part in (("b", rows[8:]), ("a10", rows[3:8]), ("a9", rows[:3])):
        save_parquet(tmp_path / f"{name}.parquet", column(part))
    (tmp_path / "notes.txt").write_text("no features")
    np.testing.assert_array_equal(read_feature_set(str(tmp_path)).features, rows)


def test_files_and_row_groups_without_rows_are_passed_over(tmp_path):
    rows = clouds(11, 5)
    table = pa.table({"embedding": column(rows)})
    with pq.ParquetWriter(tmp_path / "b.PARQUET", table.schema) as writer:
        writer.write_table(table[:0])
        writer.write_table(table)
        writer.write_table(table[:0])
    pq.write_table(table[:0], tmp_path / "a.parquet")
    np.testing.assert_array_equal(read_feature_set(str(tmp_path)).features, rows)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([[0, 1, 2], [3, 1, 5]], r"part-1\.parquet: row 1 has image_id 1 like .*part-0\.parquet: "
         r"row 1, and 1 ids are missing, the first of them 4; number the 6 items from 0"),
        ([[2, 2, 2], [2, 5, 5]], r"part-0\.parquet: row 1 has image_id 2 like .*part-0\.parquet: "
         r"row 0, and 4 ids are missing, the first of them 0"),
        ([[1, 2, 3], [4, 5, 6]], r"part-1\.parquet: row 2 has image_id 6, as have 1 rows an id "
         r"outside 0\.\.5; number the 6 items"),
        ([[0, 1, 2], [1, 3, 5]], r"part-1\.parquet: row 0 has image_id 1 like .*part-0\.parquet: "
         "row 1, and 1 ids are missing, the first of them 4"),
        ([[0, -1, 2], [3, 40, 5]], r"part-0\.parquet: row 1 has image_id -1, as have 2 rows"),
        ([[0, 1, 2], [3, None, None]], r"part-1\.parquet: row 1 has no image_id \(2 such in rows "
         r"0\.\.2\); number all items"),
        ([[0, 1, 2], None], r"part-1\.parquet: no column image_id, but .*part-0\.parquet has one"),
        ([None, [0, 1, 2]], r"part-0\.parquet: no column image_id, but .*part-1\.parquet has one"),
        ([[0.0, 1, 2], [3.0, 4, 5]], r"part-0\.parquet: the column image_id is of type double"),
    ],
)  # fmt: skip
def test_image_ids_that_are_not_each_there_once_are_refused(tmp_path, ids, message):
    for part, chosen in enumerate(ids):
        others = {} if chosen is None else {"image_id": chosen}
        save_parquet(tmp_path / f"part-{part}.parquet", column(clouds(part, 3)), **others)
    refused(tmp_path, message)


@pytest.mark.parametrize("kind", [pa.int8(), pa.int32(), pa.uint64()])
def test_image_ids_may_be_integers_of_any_size(tmp_path, kind):
    rows = clouds(12, 3)
    ids = pa.array([2, 0, 1], kind)
    save_parquet(tmp_path / "x.parquet", column(rows[[2, 0, 1]]), image_id=ids)
    np.testing.assert_array_equal(read_feature_set(str(tmp_path)).features, rows)


def test_image_ids_may_be_of_another_size_in_each_file(tmp_path):
    rows = clouds(12, 4)
    for part, kind in enumerate((pa.int64(), pa.uint64())):
        chosen = [3, 1] if part else [2, 0]
        ids = pa.array(chosen, kind)
        save_parquet(tmp_path / f"{part}.parquet", column(rows[chosen]), image_id=ids)
    np.testing.assert_array_equal(read_feature_set(str(tmp_path)).features, rows)


def test_shards_of_an_extraction_that_is_not_finished_are_refused(tmp_path):
    errors = {1: "truncated", 3: "missing"}
    table = feature_shard(clouds(13, 4)[:, None], ("rmac",), errors=errors)
    Folder(str(tmp_path)).write_table("part-0.parquet", table)
    refused(tmp_path, r"part-0\.parquet: row 1 is of an image that could not be read .*\(2 such in "
            r"rows 0\.\.3\); finish the extraction")  # fmt: skip


def test_a_column_of_errors_of_another_kind_is_no_matter(tmp_path):
    rows = clouds(13, 4)
    save_parquet(tmp_path / "x.parquet", column(rows), error=[0.5, None, 0.25, 0.0])
    np.testing.assert_array_equal(read_feature_set(str(tmp_path)).features, rows)


GOOD = lists([0.6, 0.8], [1.0, 0.0], [0.0, 1.0])
PAIRS = pa.list_(pa.float32(), 2)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"vector": GOOD, "uri": list("abc")}, "no column embedding among 'vector', 'uri'; rename"),
        ({"v" * 99: GOOD}, f"no column embedding among '{'v' * 63}';"),
        ({"embedding": [1.0, 2.0]}, "the column embedding is of type double, not of lists or one-"),
        ({"embedding": [[1, 0]]}, "the column embedding is of type list<.*int64>, .*; cast"),
        ({"embedding": [["x"]]}, "the column embedding is of type list<.*string>, "),
        (
            {
                "embedding": pa.ExtensionArray.from_storage(
                    pa.fixed_shape_tensor(pa.float32(), [2, 1]), lists([1, 0], kind=PAIRS)
                )
            },
            r".* is of type extension<.*shape=\[2,1\].*>, not of lists or one-dimensional tensors",
        ),
        ({"embedding": GOOD[:0]}, "no rows; give at least one item"),
        ({"embedding": lists([], [])}, "row 0 has no dimensions; give at least one"),
        ({"embedding": lists([1, 0], None, [0, 1], None)}, r"row 1 is null \(2 such in rows"),
        ({"embedding": lists([1, 0], [None, None])}, r"row 1 holds an entry that is null \(1 such"),
        ({"embedding": lists([1, 0], [0, 1], None, kind=PAIRS)}, r"row 2 is null"),
        ({"embedding": lists([1, 0], [0, None], kind=PAIRS)}, "row 1 holds an entry that is null"),
        ({"embedding": lists([1, 0], [0, 1], [1])}, "row 2 has another number of dimensions than "
         r"the 2 of .*b\.parquet: row 0 \(1 such in rows 0\.\.2\); give all items the same"),
        ({"embedding": lists([1, 0], [0, 1], [1, 0, 0], [])}, r"row 2 has another .* \(2 such"),
        ({"embedding": lists([1, 0], [np.nan, 1])}, "row 1 holds an entry that is NaN, inf"),
        ({"embedding": pa.array([[1.0, 0], [1e39, 1]])}, "row 1 holds an entry .* too large for"),
    ],
)  # fmt: skip
def test_unusable_columns_are_refused(tmp_path, columns, message):
    pq.write_table(pa.table(columns), tmp_path / "b.parquet")
    refused(tmp_path / "b.parquet", rf"b\.parquet: {message}")


@pytest.mark.parametrize(
    ("embedding", "message"),
    [
        (lists([1, 0, 0], [1, 0, 0]), r"row 0 has another number of dimensions than the 2 of .*"
         r"a\.parquet: row 0 \(2 such in rows 0\.\.1\)"),
        (column(clouds(0, 3, 3)), "row 0 has another number of dimensions than the 2 of"),
        (pa.array([1.0, 2.0]), "the column embedding is of type double"),
        (lists([1, 0], None), "row 1 is null"),
        (lists([1, 0], [0, np.inf]), "row 1 holds an entry that is NaN, infinite or"),
        (pa.array([[1.0, 0], [0, 1e39]]), "row 1 holds an entry .* too large for float32"),
        (pa.array([[1.0, 0], [0, SIGNALLING]]), "row 1 holds an entry that is NaN"),
    ],
)  # fmt: skip
def test_the_file_that_differs_from_the_others_is_named(tmp_path, embedding, message):
    for name in "ac":
        pq.write_table(pa.table({"embedding": GOOD}), tmp_path / f"{name}.parquet")
    pq.write_table(pa.table({"embedding": embedding}), tmp_path / "b.parquet")
    refused(tmp_path, rf"b\.parquet: {message}")


@small_batches
@pytest.mark.parametrize("kind", ["list", "fixed", "tensor"])
@pytest.mark.parametrize("row", [0, 3, 4, 13, 14, 29])
def test_a_null_row_is_found_in_any_batch_and_row_group(tmp_path, kind, row):
    rows = clouds(15, 30, 3).tolist()
    rows[row] = None
    storage = pa.list_(pa.float32()) if kind == "list" else pa.list_(pa.float32(), 3)
    embedding = pa.array(rows, storage)
    if kind == "tensor":
        tensor = pa.fixed_shape_tensor(pa.float32(), [3])
        embedding = pa.ExtensionArray.from_storage(tensor, embedding)
    save_parquet(tmp_path / "x.parquet", embedding)
    refused(tmp_path, rf"x\.parquet: row {row} is null .*; mend or remove such items")


@small_batches
def test_a_ragged_row_is_found_in_any_batch(tmp_path):
    rows = clouds(15, 30, 3).tolist()
    rows[17] = rows[17][:2]
    save_parquet(tmp_path / "x.parquet", lists(*rows))
    refused(tmp_path, r"x\.parquet: row 17 has another number of dimensions than the 3 of")


def test_a_damaged_page_is_said_in_the_words_of_the_reader(tmp_path):
    pq.write_table(pa.table({"embedding": lists([0.6, 0.8], [0, 1])}), tmp_path / "x.parquet")
    data = (tmp_path / "x.parquet").read_bytes()
    outcomes = with_wrong_bytes(tmp_path / "x.parquet", data, range(4, 40), (0, 1, 255))
    sentences = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert any("(ArrowInvalid: " in sentence for sentence in sentences)
    assert not any("TypeError" in sentence for sentence in sentences)  # one of ours


@pytest.mark.parametrize("part", [0, 1, 2])
def test_the_damaged_file_of_a_folder_is_named(tmp_path, part):
    save_folder(tmp_path, clouds(17, 20))
    path = tmp_path / f"part-0{part}.parquet"
    path.write_bytes(path.read_bytes()[:-9])
    refused(
        tmp_path, rf"part-0{part}\.parquet: cannot be read .*check that it is a whole \.parquet"
    )


def test_a_wrong_count_of_rows_is_refused_and_never_filled_up(tmp_path):
    """Wherever a footer says 40 (zigzag: 80), it says 39 or 41."""
    rows = clouds(20, 40, 3)
    for others in ({}, {"image_id": np.arange(40)}):
        pq.write_table(pa.table({**others, "embedding": column(rows)}), tmp_path / "x.parquet")
        data = (tmp_path / "x.parquet").read_bytes()
        start = len(data) - 8 - struct.unpack("<I", data[-8:-4])[0]
        counts = [place for place in range(start, len(data)) if data[place] == 80]
        outcomes = list(with_wrong_bytes(tmp_path / "x.parquet", data, counts, [78, 82]))
        sentences = [outcome for outcome in outcomes if isinstance(outcome, str)]
        for wrong in (39, 41):
            reason = f"its metadata count {wrong} rows, its pages 40"
            assert any(reason in sentence for sentence in sentences)
        for features in outcomes:
            if not isinstance(features, str):
                np.testing.assert_array_equal(features, rows)
