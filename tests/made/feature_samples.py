"""Files of features in every format, whole and damaged."""

import hashlib
import math
import struct
import tempfile
import zlib
from unittest import mock

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.io import savemat

from mmray.descriptors.files import parquet
from mmray.descriptors.files.reading import read_feature_set
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.made.synthetic import clouds, feature_shard

small_batches = mock.patch.object(parquet, "_BATCH_ROWS", 4)  # a decorator of tests

MAT73 = b"MATLAB 7.3 MAT-file, Platform: GLNXA64, HDF5 schema 1.00 .".ljust(124) + b"\x00\x02IM"


def fingerprint(rows):
    """The promise, literally: the shape, then every float32 in little-endian order."""
    digest = hashlib.blake2b(repr(rows.shape).encode(), digest_size=16)
    for row in rows:
        digest.update(b"".join(struct.pack("<f", value) for value in row))
    return digest.hexdigest()


def unit_rows(rows):
    """Each row over its norm, exactly summed; zero rows as they are."""
    norms = [math.sqrt(math.fsum(float(value) ** 2 for value in row)) for row in rows]
    return np.array(
        [
            [float(value) / (norm or 1) for value in row]
            for row, norm in zip(rows, norms, strict=True)
        ],
        np.float32,
    )


def npy(rows, **options):
    with tempfile.TemporaryFile() as file:
        np.lib.format.write_array(file, rows, **options)
        file.seek(0)
        return file.read()


def mat5_element(order, kind, data):
    return struct.pack(f"{order}2I", kind, len(data)) + data + bytes(-len(data) % 8)


def mat5(rows, *, order="<", flags=7, kind=7, dtype="f4", name=b"V", compressed=False, shape=None):
    """A MATLAB 5 file of one variable, written by the book: features in columns."""
    small_name = struct.pack(f"{order}I", len(name) << 16 | 1) + name.ljust(4, b"\0")
    dims = shape or rows.shape[::-1]
    variable = b"".join(
        [
            mat5_element(order, 6, struct.pack(f"{order}2I", flags, 0)),
            mat5_element(order, 5, struct.pack(f"{order}{len(dims)}i", *dims)),
            small_name,
            mat5_element(order, kind, rows.astype(f"{order}{dtype}").tobytes()),
        ]
    )
    content = struct.pack(f"{order}2I", 14, len(variable)) + variable
    if compressed:
        packed = zlib.compress(content)
        content = struct.pack(f"{order}2I", 15, len(packed)) + packed
    head = b"MATLAB 5.0 MAT-file".ljust(124) + struct.pack(f"{order}2H", 0x0100, 0x4D49)
    return head + content


def save_mat73(path, rows, *, header=MAT73, **options):
    with h5py.File(path, "w", userblock_size=512 if header else 0) as file:
        file.create_dataset("#refs#/a", data=np.zeros(3))
        file.create_dataset("V", data=rows, **options)
        file["V"].attrs["MATLAB_class"] = np.bytes_("single")
    if header:
        with path.open("r+b") as file:
            file.write(header)


def column(rows, kind="tensor", value=None):
    """An Arrow column of lists or tensors (m, d), as `value` or the rows' own type."""
    value = value or pa.from_numpy_dtype(rows.dtype)
    d = rows.shape[1]
    if kind in ("list", "large_list"):
        return pa.array(rows.tolist(), pa.list_(value) if kind == "list" else pa.large_list(value))
    fixed = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)).cast(value), d)
    if kind == "fixed":
        return fixed
    return pa.ExtensionArray.from_storage(pa.fixed_shape_tensor(value, [d]), fixed)


def lists(*rows, kind=None):
    return pa.array(rows, kind or pa.list_(pa.float32()))


def save_parquet(path, embedding, **others):
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({**others, "embedding": embedding}), path, row_group_size=7)


def save_folder(path, rows, *, ids=None, size=8, **options):
    """Files of `size` rows each; row i of `rows` has the id i, and ids gives the order of rows."""
    for part, start in enumerate(range(0, len(rows), size)):
        chosen = (np.arange(len(rows)) if ids is None else ids)[start : start + size]
        others = {} if ids is None else {"image_id": pa.array(chosen, pa.int64())}
        save_parquet(path / f"part-{part:02}.parquet", column(rows[chosen], **options), **others)


def save_shards(path, rows):
    """As extraction leaves them, two poolings, not in order."""
    for part, chosen in enumerate((slice(0, 9), slice(9, None))):
        items = range(len(rows))[chosen]
        both = np.stack([rows, -rows], axis=1)[chosen]
        table = feature_shard(both, ("rmac", "mac"), items=items)
        Folder(str(path)).write_table(f"part-{part}.parquet", table)


def save_stage(path, rows):
    save_shards(path / "features", rows)
    Folder(str(path)).write_table("images.parquet", pa.table({"image_id": np.arange(len(rows))}))
    np.save(path / "features.npy", rows)


def chunks_of(rows):
    return min(7, rows.shape[0]), min(2, rows.shape[1])


def shuffled(rows):
    return np.random.default_rng(5).permutation(len(rows))


WRITERS = {
    "plain.npy": np.save,
    "columns.npy": lambda path, rows: np.save(path, np.asfortranarray(rows)),
    "double.npy": lambda path, rows: np.save(path, rows.astype(np.float64)),
    "big.npy": lambda path, rows: np.save(path, rows.astype(">f4")),
    "UPPER.NPY": lambda path, rows: path.write_bytes(npy(rows)),
    "version3.npy": lambda path, rows: path.write_bytes(npy(rows, version=(3, 0))),
    "v5.mat": lambda path, rows: savemat(path, {"other": "text", "V": rows.T}),
    "v5double.mat": lambda path, rows: savemat(path, {"V": rows.T.astype(np.float64)}),
    "v7.mat": lambda path, rows: savemat(path, {"a": [1], "V": rows.T}, do_compression=True),
    "hand.mat": lambda path, rows: path.write_bytes(mat5(rows)),
    "packed.mat": lambda path, rows: path.write_bytes(mat5(rows, compressed=True)),
    "big.mat": lambda path, rows: path.write_bytes(mat5(rows, order=">")),
    "v73.mat": save_mat73,
    "v73double.mat": lambda path, rows: save_mat73(path, rows.astype(np.float64)),
    "v70.mat": lambda path, rows: save_mat73(path, rows, header=MAT73.replace(b"7.3", b"7.0")),
    "noheader.mat": lambda path, rows: save_mat73(path, rows, header=b""),
    "chunks.mat": lambda path, rows: save_mat73(path, rows, chunks=chunks_of(rows), compression=1),
    "tensor.parquet": lambda path, rows: save_parquet(path, column(rows)),
    "list.parquet": lambda path, rows: save_parquet(path, column(rows, "list")),
    "large.parquet": lambda path, rows: save_parquet(path, column(rows, "large_list")),
    "fixed.parquet": lambda path, rows: save_parquet(path, column(rows, "fixed")),
    "double.parquet": lambda path, rows: save_parquet(path, column(rows.astype(np.float64))),
    "in order": save_folder,
    "spark.parquet": lambda path, rows: save_folder(path, rows, size=3),
    "shuffled": lambda path, rows: save_folder(path, rows, ids=shuffled(rows)),
    "shards": save_shards,
    "stage": save_stage,
}


def refused(path, message):
    with pytest.raises(InputError, match=message) as caught:
        read_feature_set(str(path))
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    assert ";" in text  # the remedy follows
    assert "InputError" not in text  # not one sentence within another


def with_entries(*entries):
    rows = clouds(14, 10, 4).astype(np.float64)
    for row, value in entries:
        rows[row, 2] = value
    return rows


SIGNALLING = struct.unpack("<d", b"\1\0\0\0\0\0\xf0\x7f")[0]  # a NaN that numpy warns of


def with_wrong_bytes(path, data, positions, values):
    """Change one byte after the other; features or sentences that reading ends with."""
    for position in positions:
        for value in values:
            changed = bytearray(data)
            changed[position] = value
            path.write_bytes(changed)
            try:
                yield read_feature_set(str(path)).features
            except InputError as error:
                yield str(error)
