"""Features are the same from every format, and what cannot be used is said with file and row."""

import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.descriptors.files import reading
from mmray.descriptors.files.reading import read_feature_set
from mmray.system.folder import Folder
from tests.made.feature_samples import (
    SIGNALLING,
    WRITERS,
    column,
    fingerprint,
    npy,
    refused,
    save_folder,
    save_mat73,
    save_parquet,
    small_batches,
    unit_rows,
    with_entries,
    with_wrong_bytes,
)
from tests.made.synthetic import clouds


@pytest.fixture
def remote(monkeypatch, tmp_path):
    """File systems are taken for remote ones; returns where copies are made meanwhile."""
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setattr(Folder, "local", property(lambda folder: None))
    return scratch


@small_batches
@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("scale", [1, 3])
def test_every_format_gives_the_same_features_and_fingerprint(tmp_path, name, scale):
    rows = clouds(0, 20, 5) * np.float32(scale)
    WRITERS[name](tmp_path / name, rows)
    found = read_feature_set(str(tmp_path / name))
    expected = rows if scale == 1 else unit_rows(rows)
    np.testing.assert_array_max_ulp(found.features, expected, 0 if scale == 1 else 1)
    assert found.features.dtype == np.float32
    assert found.features.flags.c_contiguous
    assert found.fingerprint == fingerprint(found.features)
    assert found.normalized == (scale == 3)
    np.save(tmp_path / "again.npy", rows)
    assert found.fingerprint == read_feature_set(str(tmp_path / "again.npy")).fingerprint


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("scale", [1, 3])
def test_a_remote_file_gives_the_same_and_leaves_no_copy(tmp_path, remote, name, scale):
    rows = clouds(1, 20, 5) * np.float32(scale)
    WRITERS[name](tmp_path / name, rows)
    found = read_feature_set((tmp_path / name).as_uri())
    np.testing.assert_array_max_ulp(found.features, unit_rows(rows), 2)
    assert found.fingerprint == fingerprint(found.features)
    assert type(found.features) is np.ndarray
    assert list(remote.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "write"),
    [
        ("half.npy", np.save),
        ("half.mat", save_mat73),
        ("list.parquet", lambda path, rows: save_parquet(path, column(rows, "list"))),
        ("fixed.parquet", lambda path, rows: save_parquet(path, column(rows, "fixed"))),
        ("tensor.parquet", lambda path, rows: save_parquet(path, column(rows))),
    ],
)
def test_half_precision_is_widened_and_not_changed(tmp_path, name, write):
    rows = clouds(2, 12, 64).astype(np.float16)
    write(tmp_path / name, rows)
    found = read_feature_set(str(tmp_path / name))
    np.testing.assert_array_equal(found.features, rows)
    assert found.fingerprint == fingerprint(rows)
    assert not found.normalized


@settings(max_examples=60)
@given(
    n=st.integers(1, 40),
    d=st.integers(1, 12),
    seed=st.integers(0, 100),
    name=st.sampled_from(sorted(WRITERS)),
)
@small_batches
def test_any_shape_is_read_whole(n, d, seed, name):
    rows = np.random.default_rng(seed).standard_normal((n, d)).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        WRITERS[name](path, rows)
        found = read_feature_set(str(path))
        np.testing.assert_array_max_ulp(found.features, unit_rows(rows), 1)
        assert found.fingerprint == fingerprint(found.features)


def test_a_fingerprint_changes_with_the_shape_and_with_one_bit(tmp_path):
    rows = np.zeros((4, 6), np.float32)
    rows[:, 0] = 1
    variants = [rows, rows.reshape(8, 3), rows[::-1].copy(), rows.copy(), rows.copy()]
    variants[2][0, 5] = np.float32(1e-45)
    variants[3][3, 5] = np.float32(1e-45)
    variants[4][2, 1] = np.float32(1e-45)
    found = set()
    for rows in variants:
        np.save(tmp_path / "x.npy", rows)
        result = read_feature_set(str(tmp_path / "x.npy"))
        assert len(result.fingerprint) == 32
        found.add(result.fingerprint)
    assert len(found) == 5


def test_paths_and_uris_of_all_kinds_are_read(tmp_path, monkeypatch):
    rows = clouds(3, 6)
    folder = tmp_path / "100% #1 ü?"
    folder.mkdir()
    np.save(folder / "x y%20.npy", rows)
    save_folder(folder / "a b%20", rows)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder))
    for name in ("x y%20.npy", "a b%20", "a b%20/"):
        uri = (folder / name).as_uri() + ("/" if name.endswith("/") else "")
        for given_name in (name, f"~/{name}", str(folder / name), uri):
            np.testing.assert_array_equal(read_feature_set(given_name).features, rows)


def test_a_bucket_is_a_folder_without_a_parent():
    for uri in ("s3://bucket", "s3://bucket/"):
        whole, _, name = reading._located(uri)
        assert (whole.uri, name) == ("s3://bucket", "")
    whole, parent, name = reading._located("s3://bucket/a%20b.npy")
    assert (parent.uri, name) == ("s3://bucket", "a b.npy")


@pytest.mark.parametrize("name", ["plain.npy", "version3.npy", "stage"])
def test_normalised_float32_is_mapped_and_not_copied(tmp_path, name):
    rows = clouds(4, 20)
    WRITERS[name](tmp_path / name, rows)
    found = read_feature_set(str(tmp_path / name)).features
    assert isinstance(found, np.memmap)
    assert found.mode == "r"
    assert not found.flags.writeable
    path = tmp_path / name
    assert Path(found.filename) == (path / "features.npy" if name == "stage" else path)


@pytest.mark.parametrize("name", ["columns.npy", "double.npy", "big.npy", "v5.mat", "in order"])
def test_other_files_are_copied(tmp_path, name):
    WRITERS[name](tmp_path / name, clouds(4, 20))
    assert not isinstance(read_feature_set(str(tmp_path / name)).features, np.memmap)


@pytest.mark.parametrize("name", WRITERS)
def test_files_are_left_as_they_were(tmp_path, name):
    WRITERS[name](tmp_path / name, clouds(4, 20) * np.float32(2))
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert read_feature_set(str(tmp_path / name)).normalized
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def saved(path, rows):
    np.save(path, rows)
    return read_feature_set(str(path))


def test_all_rows_are_normalised_where_one_departs_by_more_than_a_thousandth(tmp_path):
    rows = clouds(5, 30) * np.linspace(0.9992, 1.0008, 30, dtype=np.float32)[:, None]
    kept = saved(tmp_path / "near.npy", rows)
    np.testing.assert_array_equal(kept.features, rows)
    assert not kept.normalized
    for factor in (1.0012, 0.9988):
        far = rows.copy()
        far[17] = clouds(6, 1)[0] * np.float32(factor)
        found = saved(tmp_path / "far.npy", far)
        assert found.normalized
        np.testing.assert_array_max_ulp(found.features, unit_rows(far), 1)
        assert np.abs(np.linalg.norm(found.features, axis=1) - 1).max() < 1e-6


@pytest.mark.parametrize("scale", [1, 2])
def test_zero_rows_stay_zero_and_are_counted(tmp_path, scale):
    rows = clouds(7, 10) * np.float32(scale)
    rows[[0, 4, 9]] = 0
    found = saved(tmp_path / "x.npy", rows)
    assert found.zero_rows == 3
    assert found.normalized == (scale == 2)
    np.testing.assert_array_max_ulp(found.features, unit_rows(rows), 1 if scale == 2 else 0)
    assert not found.features[[0, 4, 9]].any()


def test_only_zero_rows_are_allowed(tmp_path):
    found = saved(tmp_path / "x.npy", np.zeros((3, 4), np.float32))
    assert (found.zero_rows, found.normalized) == (3, False)


def test_norms_beyond_the_range_of_float32_squares_are_exact(tmp_path):
    rows = clouds(8, 4, 6) * np.array([1e38, 1e-38, 1e-43, 1e25], np.float32)[:, None]
    found = saved(tmp_path / "x.npy", rows)
    np.testing.assert_array_max_ulp(found.features, unit_rows(rows), 1)
    np.testing.assert_allclose(np.linalg.norm(found.features, axis=1), 1, rtol=1e-6)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.float32(1), r"the array has shape \(\), but features are two-dimensional; reshape"),
        (np.ones(4, np.float32), r"the array has shape \(4,\)"),
        (np.ones((2, 3, 4), np.float32), r"the array has shape \(2, 3, 4\)"),
        (np.ones((0, 4), np.float32), "0 items of 4 dimensions are no features"),
        (np.ones((4, 0), np.float32), "4 items of 0 dimensions are no features"),
        (np.ones((4, 2), np.int64), r"the entries are int64, not float16.*astype\(np.float32\)"),
        (np.ones((4, 2), np.complex64), "the entries are complex64, not float16"),
        (np.ones((4, 2), bool), "the entries are bool, not float16"),
        (np.ones((4, 2), np.longdouble), "the entries are .*, not float16"),
        (np.ones(4, [("a", "f4"), ("b", "f4")]), r"the array has shape \(4,\)"),
        (with_entries((3, np.nan)).astype(np.float32), r"row 3 holds an entry that is NaN, infinite"
         r" or too large for float32 \(1 such in rows 0\.\.9\); mend or remove"),
        (with_entries((5, np.inf), (8, -np.inf)), r"row 5 holds .* \(2 such in rows 0\.\.9\)"),
        (with_entries((6, 1e39)), "row 6 holds an entry .* too large for float32"),
        (with_entries((6, np.inf)).astype(np.float16), "row 6 holds an entry"),
        (with_entries((6, SIGNALLING)), "row 6 holds an entry"),
    ],
)  # fmt: skip
def test_unusable_arrays_are_refused(tmp_path, rows, message):
    np.save(tmp_path / "x.npy", rows)
    refused(tmp_path / "x.npy", rf"x\.npy: {message}")


class Trap:
    def __reduce__(self):
        return pytest.fail, ("a pickle was executed",)


@pytest.mark.parametrize("name", ["x.npy", "x.mat", "x.parquet"])
def test_nothing_is_unpickled(tmp_path, name):
    (tmp_path / name).write_bytes(pickle.dumps(Trap()))
    refused(tmp_path / name, "check that it is a whole|not a MATLAB file")
    with (tmp_path / name).open("wb") as file:
        np.lib.format.write_array(file, np.array([[Trap()]], object))
    message = r"Python objects in dtype\.\); check that it is a whole \.npy file of numbers, not of"
    refused(tmp_path / name, message if name == "x.npy" else "check that|not a MATLAB file")


def test_an_archive_named_npy_is_refused(tmp_path):
    with (tmp_path / "x.npy").open("wb") as file:
        np.savez(file, x=clouds(0, 3))
    refused(tmp_path / "x.npy", r"x\.npy: cannot be read \(ValueError: the magic string is not")


def test_a_file_that_is_missing_or_of_another_kind_is_refused(tmp_path):
    formats = r"give an \.npy file, a \.parquet file or a folder of them, a \.mat file with the"
    refused(tmp_path / "x.npy", f"no such file, nor a folder with files in it; {formats}")
    refused(tmp_path / "none" / "x.npy", f"no such file, nor a folder with files in it; {formats}")
    refused(tmp_path, f"no such file, nor a folder with files in it; {formats}")
    for name in ("x.csv", "x.npz", "npy", "x.h5"):
        (tmp_path / name).write_text("1,2")
        refused(tmp_path / name, f"the name has none of the known endings; {formats}")
    refused(tmp_path, rf"no \.parquet file among 'npy', 'x.csv', 'x.h5', 'x.npz'; {formats}")
    for number in range(4):
        (tmp_path / f"y{number}").write_text("")
    refused(tmp_path, "among 'npy', 'x.csv', 'x.h5', 'x.npz', 'y0' and 3 more;")


@pytest.mark.parametrize("uri", ["nosuchscheme://x/y.npy", "s3://", "\0.npy"])
def test_a_uri_that_cannot_be_opened_is_refused(uri):
    refused(uri, r"cannot be read \(.*\); give a local path, or a URI \(s3:")


DAMAGED = [name for name in WRITERS if Path(name).suffix and name != "spark.parquet"]


@pytest.mark.parametrize("name", DAMAGED)
def test_a_file_cut_short_is_refused(tmp_path, name):
    WRITERS[name](tmp_path / name, clouds(16, 20, 5))
    data = (tmp_path / name).read_bytes()
    for length in {*range(0, len(data), max(1, len(data) // 25)), 127, 128, 512, len(data) - 1}:
        (tmp_path / name).write_bytes(data[:length])
        refused(tmp_path / name, f"{name}: .*(cannot be read|not a MATLAB file|no variable V)")


@pytest.mark.parametrize(
    "header",
    [
        f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({10**30}, 2)}}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-3, -2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}" + " " * 20_000,
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True, 2)}",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2",
        "[]",
    ],
)
def test_an_array_with_an_impossible_header_is_refused(tmp_path, header):
    start = b"\x93NUMPY\1\0" + struct.pack("<H", len(header))
    (tmp_path / "x.npy").write_bytes(start + header.encode() + bytes(64))
    refused(tmp_path / "x.npy", r"x\.npy: cannot be read \(")


def test_a_remote_file_cut_short_is_refused_and_leaves_no_copy(tmp_path, remote):
    for name in ("plain.npy", "v5.mat", "v73.mat", "list.parquet"):
        WRITERS[name](tmp_path / name, clouds(18, 20, 5))
        data = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(data[:-20])
        refused(tmp_path / name, "cannot be read")
    assert list(remote.iterdir()) == []


@pytest.mark.filterwarnings("default")  # numpy's on its own header
def test_a_wrong_byte_in_an_npy_file_never_crashes(tmp_path):
    data = npy(clouds(19, 3, 2))
    positions, values = range(6, len(data)), (0, 0x7F)
    outcomes = list(with_wrong_bytes(tmp_path / "x.npy", data, positions, values))
    sentences = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert 0 < len(sentences) < len(outcomes)
    assert not any("\n" in sentence for sentence in sentences)
