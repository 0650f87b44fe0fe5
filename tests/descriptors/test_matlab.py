"""The matrix V is found in MATLAB files of both versions; other content is read as plain Python."""

import io
import struct
import zlib

import h5py
import numpy as np
import pytest
from scipy.io import loadmat, savemat
from scipy.sparse import csc_array

from mmray.descriptors.files import matlab_plain
from mmray.descriptors.files.matlab_plain import read_plain
from mmray.descriptors.files.reading import read_feature_set
from mmray.system.errors import InputError
from tests.made.benchmark_samples import cells, structs
from tests.made.feature_samples import (
    MAT73,
    mat5,
    mat5_element,
    refused,
    save_mat73,
    unit_rows,
    with_entries,
    with_wrong_bytes,
)
from tests.made.synthetic import clouds

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
        ({"V": h5py.SoftLink("/W"), "W": [[1.0]]}, f"V is a link to another place{REAL}"),
        ({"V": h5py.ExternalLink("nowhere.h5", "V")}, f"V is a link to another place{REAL}"),
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


# Plain values


GND = [
    {"ok": np.array([[3.0, 1.0]]), "bbx": np.array([[1.5, 2, 30, 40]])},
    {"ok": np.array([[2.0]]), "bbx": np.array([[0, 0, 9.0, 9]])},
]
SAMPLE = {
    "imlist": cells("INSTRE-S1/01a_canada_book/001.jpg", "b/é.jpg", ""),
    "square": cells(1.0, 2.0, 3.0, 4.0, 5.0, 6.0, shape=(2, 3)),
    "gnd": structs(*GND),
    "one": {"a": 1.0, "b": {"c": "deep", "d": cells(cells(7.0))}},
    "lines": np.array(["ab", "cd", "ef"]),
    "floats": np.arange(6.0).reshape(2, 3) / 4,
    "single": np.float32([[0.5], [-2]]),
    "bytes": np.array([[0, 255]], np.uint8),
    "longs": np.array([[-(2**40)]], np.int64),
    "flags": np.array([[True, False]]),
    "solid": np.arange(24, dtype=np.int16).reshape(2, 3, 4),
    "nothing": np.empty((0, 3)),
    "no text": "",
}


def saved(content, **options):
    with io.BytesIO() as file:
        savemat(file, content, **options)
        return file.getvalue()


def plain(value):
    """What scipy.io.loadmat(chars_as_strings=True) reads, as `read_plain` gives it."""
    if value.dtype.names is not None:
        found = [
            {name: plain(row[name]) for name in value.dtype.names} for row in value.ravel(order="F")
        ]
        return found[0] if value.size == 1 else found
    if value.dtype == object:
        return [plain(each) for each in value.ravel(order="F")]
    if value.dtype.kind == "U":
        return "" if not value.size else str(value[0]) if value.size == 1 else value.tolist()
    return value


def same(one, two):
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return one.shape == two.shape and np.array_equal(one, two)
    if isinstance(one, list) and isinstance(two, list):
        return len(one) == len(two) and all(map(same, one, two))
    if isinstance(one, dict) and isinstance(two, dict):
        return list(one) == list(two) and all(same(one[key], two[key]) for key in one)
    return type(one) is type(two) and one == two


@pytest.mark.parametrize("compressed", [False, True])
def test_cells_structs_text_and_numbers_are_read_as_scipy_reads_them(compressed):
    data = saved(SAMPLE, do_compression=compressed)
    found = read_plain(data, tuple(SAMPLE), "x.mat")
    oracle = loadmat(io.BytesIO(data))
    for name in SAMPLE:
        assert same(found[name], plain(oracle[name])), name
    assert found["imlist"] == ["INSTRE-S1/01a_canada_book/001.jpg", "b/é.jpg", ""]
    assert found["one"]["b"]["c"] == "deep"
    assert [row["ok"].tolist() for row in found["gnd"]] == [[[3.0, 1.0]], [[2.0]]]
    assert found["lines"] == ["ab", "cd", "ef"]
    assert not same(found["floats"], found["floats"].T)


def test_no_more_variables_are_read_than_are_asked_for():
    data = saved({"a": 1.0, "bad": np.ones(3, complex), "c": "text"})
    assert read_plain(data, ["c"], "x.mat") == {"c": "text"}


def big_endian(kind, *parts, flags):
    """A variable of a class with its parts, in the other byte order."""
    dims = struct.pack(">2i", 1, 2)
    content = [(6, struct.pack(">2I", flags, 0)), (5, dims), (1, b"v"), *parts]
    inside = b"".join(mat5_element(">", *element) for element in content)
    return mat5_element(">", kind, inside)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        (1, b"hi"),
        (2, b"hi"),
        (4, "hi".encode("utf-16-be")),
        (16, b"hi"),
        (17, "hi".encode("utf-16-be")),
        (18, "hi".encode("utf-32-be")),
        (16, "né".encode()),
        (4, "\N{GRINNING FACE}".encode("utf-16-be")),  # MATLAB counts it as two
    ],
)
def test_text_is_read_in_every_encoding_and_the_other_byte_order(kind, text):
    head = mat5(clouds(0, 1), order=">")[:128]
    found = read_plain(head + big_endian(14, (kind, text), flags=4), ["v"], "x")["v"]
    codec = {1: "ascii", 2: "ascii", 16: "utf-8", 18: "utf-32-be"}.get(kind, "utf-16-be")
    assert found == text.decode(codec)


def test_numbers_and_cells_are_read_in_the_other_byte_order():
    head = mat5(clouds(0, 1), order=">")[:128]
    number = big_endian(14, (4, struct.pack(">2H", 1, 513)), flags=6)
    cell = big_endian(14, (14, number[8:]), (14, b""), flags=1)
    found = read_plain(head + cell, ["v"], "x")["v"]
    assert [each.tolist() for each in found] == [[[1, 513]], []]


def nested(depth):
    value = 1.0
    for _ in range(depth):
        value = cells(value)
    return value


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (saved({"a": 1.0, "b": 2.0}), "no variable v among 'a', 'b'; give the file as it is publ"),
        (saved({"v": 1.0}, format="4"), r"not a MATLAB file of version 5; save it again by save\("),
        (MAT73.ljust(1000), r"not a MATLAB file of version 5; .*'-v7'\)"),
        (b"", "not a MATLAB file of version 5"),
        (saved({"v": np.ones(3, complex)}), "a value of the class complex, which is not read"),
        (saved({"v": csc_array(np.eye(3))}), "a value of the class sparse, which is not read"),
        (mat5(np.ones((1, 1)), name=b"v", flags=16), "a value of the class function"),
        (mat5(np.ones((1, 1)), name=b"v", flags=99), "cannot be read"),
        (mat5(np.ones((3, 2)), name=b"v", shape=(5, 2)), "an array has 6 entries, not 5 x 2"),
        (mat5(np.ones((3, 2)), name=b"v", shape=(-3, -2)), r"a variable of shape \[-3, -2\]"),
        (mat5(np.ones((3, 2)), name=b"v", shape=(6,)), r"a variable of shape \[6\]"),
        (mat5(np.ones((3, 2)), name=b"v", flags=1, shape=(3, 2)), "1 values where .* be 6"),
        (mat5(np.ones((1, 1)), name=b"v", flags=1), "an element of type 7 where .* be a value"),
        (mat5(np.ones((1, 1)), name=b"v", flags=4, kind=4, dtype="u2", shape=(1, 9)), "1 letters,"),
        (saved({"v": nested(17)}), "nested more than 16 deep"),
        (saved({"v": 1.0})[:-8], "a variable has 48 of its 56 bytes"),
        (saved({"v": 1.0}, do_compression=True)[:-3], "EOFError"),
    ],
)
def test_values_that_cannot_be_read_are_refused_in_a_sentence(data, message):
    with pytest.raises(InputError, match=rf"^x\.mat: .*{message}") as caught:
        read_plain(data, ["v"], "x.mat")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("tag", [struct.pack("<2I", 9, 16), struct.pack("<2H", 9, 12) + bytes(4)])
def test_an_element_with_fewer_bytes_than_it_says_is_refused(tag):
    data = mat5(np.ones((1, 1)), name=b"v", flags=6, kind=9, dtype="f8")
    assert read_plain(data, ["v"], "x")["v"] == 1
    with pytest.raises(InputError, match=r"an element of 1\d bytes, which are not there"):
        read_plain(data[:-16] + tag + data[-8:], ["v"], "x")


def test_a_compressed_variable_without_its_end_is_refused():
    """Its checksum is in the last four bytes: what came before them may be wrong."""
    data = saved({"v": 1.0}, do_compression=True)
    size = struct.pack("<I", len(data) - 136 - 4)
    with pytest.raises(InputError, match="a compressed variable is cut short"):
        read_plain(data[:132] + size + data[136:-4], ["v"], "x")


def test_a_struct_array_without_fields_takes_no_memory():
    empty = [(5, struct.pack("<i", 1)), (1, b"")]
    content = [(6, struct.pack("<2I", 2, 0)), (5, struct.pack("<2i", 1 << 30, 1)), (1, b"v")]
    inside = b"".join(mat5_element("<", *element) for element in content + empty)
    data = mat5(clouds(0, 1))[:128] + mat5_element("<", 14, inside)
    with pytest.raises(InputError, match="1073741824 structs without fields"):
        read_plain(data, ["v"], "x")


def variable(kind, sizes, *parts):
    """A compressed variable v of a class, as a file."""
    content = [(6, struct.pack("<2I", kind, 0)), (5, struct.pack("<2i", *sizes)), (1, b"v"), *parts]
    inside = b"".join(mat5_element("<", *element) for element in content)
    packed = zlib.compress(mat5_element("<", 14, inside))
    return mat5(clouds(0, 1))[:128] + struct.pack("<2I", 15, len(packed)) + packed


def test_cells_by_the_million_are_refused_before_they_are_made():
    """An empty cell has eight bytes, which deflate packs a thousand times."""
    few, many = (variable(1, (1, n), *[(14, b"")] * n) for n in (1000, 1 << 20))
    assert len(read_plain(few, ["v"], "x")["v"]) == 1000
    assert len(many) < 20_000
    with pytest.raises(InputError, match="a variable has more than 8388608 bytes"):
        read_plain(many, ["v"], "x")


def test_names_of_fields_take_no_memory_where_there_are_no_values(monkeypatch):
    made = []
    monkeypatch.setattr(matlab_plain, "bytes", lambda *x: made.append(x) or bytes(*x), False)
    names = ((5, struct.pack("<i", 1)), (1, b"a" * 5000))
    assert read_plain(variable(2, (1, 0), *names), ["v"], "x")["v"] == []
    with pytest.raises(InputError, match="0 values where there should be 5000"):
        read_plain(variable(2, (1, 1), *names), ["v"], "x")
    assert len(made) == 2  # the name of each variable


def test_chunks_that_are_larger_than_their_matrix_are_refused(tmp_path):
    with h5py.File(tmp_path / "x.mat", "w") as file:
        options = {"maxshape": (None, None), "chunks": (1 << 13, 1 << 13)}
        file.create_dataset("V", shape=(10, 6), dtype="f4", **options)
    refused(tmp_path / "x.mat", "V claims 268435456 bytes out of 0")


def test_a_compressed_variable_of_gigabytes_is_not_unpacked(monkeypatch):
    monkeypatch.setattr(matlab_plain, "_LARGEST", 10_000)
    fits = saved({"v": np.zeros(1200)}, do_compression=True)
    assert read_plain(fits, ["v"], "x")["v"].shape == (1, 1200)
    bomb = saved({"v": np.zeros(100_000)}, do_compression=True)
    assert len(bomb) < 10_000
    with pytest.raises(InputError, match="a variable has more than 10000 bytes"):
        read_plain(bomb, ["v"], "x")


@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_bytes_end_in_a_value_or_in_a_sentence(compressed):
    data = saved(SAMPLE, do_compression=compressed)
    rng, refusals = np.random.default_rng(0), []
    for _ in range(1500):
        changed = bytearray(data)
        for place in rng.integers(0, len(data), rng.integers(1, 4)):
            changed[place] = rng.choice([0, 1, 0x7F, 0x80, 0xFF, rng.integers(256)])
        cut = len(data) if rng.random() < 0.7 else rng.integers(len(data))
        try:
            read_plain(bytes(changed[:cut]), tuple(SAMPLE), "x.mat")
        except InputError as error:
            refusals.append(str(error))
    assert len(refusals) > 200
    assert not any("\n" in refusal for refusal in refusals)


@pytest.mark.parametrize("size", [2**31 - 1, 2**32 - 1])
def test_sizes_of_gigabytes_are_compared_with_the_file_first(tmp_path, size):
    data = mat5(clouds(19, 3, 2))
    (tmp_path / "x.mat").write_bytes(data[:132] + struct.pack("<I", size) + data[136:])
    refused(tmp_path / "x.mat", rf"EOFError: a variable has \d+ of its {size} bytes")


def test_a_matrix_of_zeros_that_the_file_does_not_hold_is_refused(tmp_path):
    with h5py.File(tmp_path / "x.mat", "w") as file:
        file.create_dataset("V", shape=(1 << 20, 1 << 10), dtype="f4", chunks=(64, 64))
    refused(tmp_path / "x.mat", "V claims 4294967296 bytes out of 0")
    bomb = mat5(np.zeros((1 << 16, 300), np.float32), compressed=True)
    assert len(bomb) < 100_000
    (tmp_path / "x.mat").write_bytes(bomb)
    refused(tmp_path / "x.mat", r"a variable has more than \d+ bytes")
