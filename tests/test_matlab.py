"""The matrix V is found in MATLAB files of both versions, and other content is told from it."""

import h5py
import numpy as np
import pytest
from scipy.io import savemat
from scipy.sparse import csc_array

from mmray.feature_files import read_feature_set
from tests.feature_samples import (
    MAT73,
    mat5,
    refused,
    save_mat73,
    unit_rows,
    with_entries,
    with_wrong_bytes,
)
from tests.synthetic import clouds

REAL = r", not a full matrix of real floating-point numbers; save single\(full\(V\)\)"


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"W": [1.0], "v": [2.0]}, "no variable V among 'W', 'v'; name the matrix of features V"),
        ({}, "no variable V among nothing"),
        (np.ones((2, 3), np.int32), f"V is int32{REAL}"),
        (np.ones((2, 3), bool), f"V is uint8{REAL}"),
        (np.ones((2, 3), np.complex128), f"V is complex{REAL}"),
        (csc_array(np.eye(3)), f"V is sparse{REAL}"),
        (np.array([[1, "x"]], object), f"V is cell{REAL}"),
        ({"V": {"a": 1.0}}, f"V is struct{REAL}"),
        ({"V": "text"}, f"V is char{REAL}"),
        (np.ones((2, 3, 4)), r"the array has shape \(4, 3, 2\)"),
        (np.ones((4, 0)), "0 items of 4 dimensions"),
        (np.ones((0, 4)), "4 items of 0 dimensions"),
        (with_entries((3, np.nan)).T, "row 3 holds an entry that is NaN"),
    ],
)
def test_unusable_variables_of_matlab_5_are_refused(tmp_path, value, message, compressed):
    content = value if isinstance(value, dict) else {"V": value}
    savemat(tmp_path / "x.mat", content, do_compression=compressed)
    refused(tmp_path / "x.mat", rf"x\.mat: {message}")


def test_matlab_doubles_stored_as_small_integers_are_read(tmp_path):
    rows = np.array([[3, 4], [0, 255], [5, 12]])
    for kind, dtype in ((2, "u1"), (4, "u2"), (3, "i2"), (12, "i8"), (13, "u8")):
        (tmp_path / "x.mat").write_bytes(mat5(rows, flags=6, kind=kind, dtype=dtype))
        found = read_feature_set(str(tmp_path / "x.mat"))
        np.testing.assert_array_equal(found.features, unit_rows(rows))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flags": 16}, f"V is function{REAL}"),
        ({"flags": 17}, f"V is opaque{REAL}"),
        ({"flags": 99}, "cannot be read .*; check that it is a whole .mat file"),
        ({"kind": 8}, "cannot be read .*; check that it is a whole .mat file"),
        ({"kind": 40_000}, "cannot be read .*; check that it is a whole .mat file"),
        ({"kind": 9, "dtype": "f8", "shape": (5, 2)}, "V has 6 entries, not 5 x 2"),
        ({"shape": (-2, -3)}, "V has 6 entries|cannot be read"),
        ({"name": b"V\n"}, r"no variable V among 'V\\n'"),
    ],
)
@pytest.mark.parametrize("compressed", [False, True])
def test_matlab_files_with_wrong_fields_are_refused(tmp_path, options, message, compressed):
    rows = np.ones((3, 2), np.float32)
    (tmp_path / "x.mat").write_bytes(mat5(rows, compressed=compressed, **options))
    refused(tmp_path / "x.mat", message)


def save_hdf5(path, **variables):
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            file[name] = value
    with path.open("r+b") as file:
        file.write(MAT73)


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"W": [1.0], "#refs#": [1]}, "no variable V among 'W'; name the matrix of features V"),
        ({"V": np.ones((3, 2), np.uint16)}, f"V is uint16{REAL}"),
        ({"V": np.ones((3, 2), [("real", "f8"), ("imag", "f8")])}, rf"V is \[.*imag.*\]{REAL}"),
        ({"V": "text"}, f"V is object{REAL}"),
        ({"V/data": [1.0], "V/ir": [1]}, f"V is sparse or a struct{REAL}"),
        ({"V": np.ones((3, 2, 4))}, r"the array has shape \(3, 2, 4\)"),
        ({"V": 3.0}, r"the array has shape \(\)"),
        ({"V": h5py.Empty("f4")}, "V is empty; save a matrix with one column an item"),
        ({"V": np.ones((0, 4))}, "0 items of 4 dimensions"),
        ({"V": with_entries((3, np.nan), (4, 1e39))}, r"row 3 holds an entry .* \(2 such"),
        ({"V": h5py.SoftLink("/nowhere")}, "cannot be read .*; check that it is a whole .mat"),
        (
            {"V": h5py.ExternalLink("nowhere.h5", "V")},
            "cannot be read .*; check that it is a whole",
        ),
    ],
)
def test_unusable_variables_of_matlab_73_are_refused(tmp_path, variables, message):
    save_hdf5(tmp_path / "x.mat", **variables)
    refused(tmp_path / "x.mat", rf"x\.mat: {message}")


def test_an_empty_variable_of_matlab_73_is_refused(tmp_path):
    """MATLAB stores the shape of an empty matrix in its place."""
    save_hdf5(tmp_path / "x.mat", V=np.array([[0, 128]], np.uint64))
    with h5py.File(tmp_path / "x.mat", "r+") as file:
        file["V"].attrs["MATLAB_empty"] = np.uint8(1)
    refused(tmp_path / "x.mat", "V is empty; save a matrix with one column an item")


def test_other_mat_files_are_refused(tmp_path):
    savemat(tmp_path / "x.mat", {"V": np.ones((2, 3))}, format="4")
    refused(tmp_path / "x.mat", r"not a MATLAB file of version 5 or 7\.3; save V again by save")
    (tmp_path / "x.mat").write_text("# Created by Octave\n# name: V\n" * 10)
    refused(tmp_path / "x.mat", r"not a MATLAB file of version 5 or 7\.3")


def test_no_chunk_is_read_twice(tmp_path, monkeypatch):
    """All is read at once, as each reading decompresses all chunks that it touches."""
    rows = clouds(4, 20, 5)
    save_mat73(tmp_path / "x.mat", rows.astype(np.float64), chunks=(7, 2), compression=1)
    readings, wholes = [], h5py.Dataset.read_direct
    monkeypatch.setattr(h5py.Dataset, "__getitem__", lambda *arguments: pytest.fail("a part"))
    monkeypatch.setattr(
        h5py.Dataset,
        "read_direct",
        lambda dataset, target, *part: readings.append(part) or wholes(dataset, target, *part),
    )
    np.testing.assert_array_equal(read_feature_set(str(tmp_path / "x.mat")).features, rows)
    assert readings == [()]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (mat5(clouds(0, 3))[:-8], r"EOFError: a variable has \d+ of its \d+ bytes"),
        (MAT73, "OSError: .*truncated|OSError: .*signature not found"),
        (MAT73.ljust(512) + b"\x89HDF\r\n\x1a\n", "OSError: "),
    ],
)
def test_a_mat_file_cut_short_is_said_by_the_reader_of_its_version(tmp_path, data, reason):
    (tmp_path / "x.mat").write_bytes(data)
    refused(tmp_path / "x.mat", rf"cannot be read \({reason}")


def test_a_wrong_byte_in_a_matlab_73_file_never_crashes(tmp_path):
    save_mat73(tmp_path / "x.mat", clouds(19, 3, 2), header=b"")
    data = (tmp_path / "x.mat").read_bytes()
    outcomes = list(with_wrong_bytes(tmp_path / "x.mat", data, range(8, 200), [0x7F]))
    sentences = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert 0 < len(sentences) < len(outcomes)


@pytest.mark.parametrize("compressed", [False, True])
def test_a_wrong_byte_in_a_matlab_5_file_never_crashes(tmp_path, compressed):
    data = mat5(clouds(19, 3, 2), compressed=compressed)
    positions, values = range(6, len(data)), (0, 0x7F)
    outcomes = list(with_wrong_bytes(tmp_path / "x.mat", data, positions, values))
    sentences = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert 0 < len(sentences) < len(outcomes)
    assert not any("\n" in sentence for sentence in sentences)
