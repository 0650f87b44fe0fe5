import codecs
import contextlib
import io
import pickle
import random
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.evaluation.benchmarks.ground_truth import title
from mmray.evaluation.benchmarks.oxford import (
    load_benchmark,
    read_oxford_ground_truth,
    read_pickle_ground_truth,
)
from mmray.evaluation.benchmarks.plain_pickle import load_plain
from mmray.evaluation.ranking import mean_average_precision
from mmray.system.errors import InputError

PARIS = Path(__file__).resolve().parents[3] / "shared" / "data" / "paris250"

IMAGES = ["c.jpg", "a.jpg", "b.jpg", "d.jpg"]


def truth(**changes):
    """Content of a gnd_*.pkl."""
    content = {
        "imlist": ["d", "a", "b"],
        "qimlist": ["a", "c"],
        "gnd": [
            {"bbx": [1.5, 2, 30, 40.25], "ok": [2, 0], "junk": [1]},
            {"bbx": None, "ok": [], "junk": []},
        ],
    }
    return {**content, **changes}


def read(content, images=IMAGES, protocol: int = 4):
    data = content if isinstance(content, bytes) else pickle.dumps(content, protocol=protocol)
    return read_pickle_ground_truth(data, images, source="data/gnd_three.pkl")


def texts(**changes: str | bytes | None) -> dict[str, bytes]:
    """Content of a folder of text files; x_1="..." replaces x_1.txt, None takes it away."""
    files = {
        "x_1_query": "oxc1_b 1.5 2 30 40.25\n",
        "x_1_good": "a\n",
        "x_1_ok": "d\nb\n",
        "x_1_junk": "c\n",
        "w_1_query": "c 0 0 10 10",
        "w_1_good": "",
        "w_1_ok": "",
        "w_1_junk": "\n",
        **changes,
    }
    return {
        f"{name}.txt": text if isinstance(text, bytes) else text.encode()
        for name, text in files.items()
        if text is not None
    }


# Reading the two forms


def test_a_pickle_names_its_database_and_its_queries() -> None:
    benchmark = read(truth())
    assert benchmark.name == "three"
    assert benchmark.images == ("d.jpg", "a.jpg", "b.jpg")
    one, two = benchmark.queries
    assert (one.name, one.image, one.box) == ("a", "a.jpg", (1.5, 2.0, 30.0, 40.25))
    assert (two.name, two.image, two.box) == ("c", "c.jpg", None)
    assert [q.positives.tolist() for q in (one, two)] == [[0, 2], []]
    assert [q.junk.tolist() for q in (one, two)] == [[1], []]
    assert {q.positives.dtype for q in (one, two)} == {np.dtype(np.int64)}


def test_easy_hard_and_junk_make_three_protocols_of_which_medium_is_the_one() -> None:
    gnd = [{"bbx": (0, 0, 9, 9), "easy": [2], "hard": [0], "junk": [1]}, {"easy": [], "hard": [1]}]
    benchmark = read(truth(gnd=gnd))
    found = {
        name: [(q.positives.tolist(), q.junk.tolist()) for q in queries]
        for name, queries in benchmark.protocols.items()
    }
    assert found == {
        "Easy": [([2], [0, 1]), ([], [1])],
        "Medium": [([0, 2], [1]), ([1], [])],
        "Hard": [([0], [1, 2]), ([1], [])],
    }
    assert benchmark.queries == benchmark.protocols["Medium"]
    for queries in benchmark.protocols.values():
        assert [(q.name, q.image, q.box) for q in queries] == [
            ("a", "a.jpg", (0, 0, 9, 9)),
            ("c", "c.jpg", None),
        ]


def test_of_ok_and_junk_there_is_one_rule() -> None:
    assert read(truth()).protocols == {}
    assert read(truth()).labels is None


def test_text_files_take_all_images_as_database_and_good_and_ok_as_positives() -> None:
    benchmark = read_oxford_ground_truth(texts(), IMAGES, source="ground/oxford/")
    assert benchmark.name == "oxford"
    assert benchmark.images == ("a.jpg", "b.jpg", "c.jpg", "d.jpg")
    w, x = benchmark.queries
    assert (x.name, x.image, x.box) == ("x_1", "b.jpg", (1.5, 2.0, 30.0, 40.25))
    assert (x.positives.tolist(), x.junk.tolist()) == ([0, 1, 3], [2])
    assert (w.name, w.image, w.box) == ("w_1", "c.jpg", (0.0, 0.0, 10.0, 10.0))
    assert (w.positives.tolist(), w.junk.tolist()) == ([], [])


def test_a_query_without_positives_is_left_out_of_the_mean() -> None:
    benchmark = read_oxford_ground_truth(texts(), IMAGES, source="oxford")
    ranks = np.array([[0, 1, 3, 2], [0, 1, 3, 2]]).T
    mean, each = mean_average_precision(ranks, benchmark.queries)
    assert mean == 1
    np.testing.assert_array_equal(each, [np.nan, 1])


def test_windows_line_ends_and_byte_order_marks_are_read() -> None:
    files = texts(x_1_ok=b"\xef\xbb\xbfd\r\n\r\nb\r\n")
    benchmark = read_oxford_ground_truth(files, IMAGES, source="oxford")
    assert benchmark.queries[1].positives.tolist() == [0, 1, 3]


def test_a_file_or_a_folder_is_read_by_path_or_uri(tmp_path, monkeypatch) -> None:
    (tmp_path / "gnd_three.pkl").write_bytes(pickle.dumps(truth()))
    folder = tmp_path / "ox ford"
    folder.mkdir()
    for name, data in texts().items():
        (folder / name).write_bytes(data)
    (folder / "README.md").write_text("not a part of it")
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "gnd_three.pkl"
    for where in (file, file.name, file.as_uri()):
        assert load_benchmark(str(where), IMAGES).images == ("d.jpg", "a.jpg", "b.jpg")
    for where in (folder, f"{folder}/", "ox ford", folder.as_uri()):
        assert len(load_benchmark(str(where), IMAGES).queries) == 2


@pytest.mark.skipif(not PARIS.exists(), reason="photos of ../shared/data/paris250 are not here")
def test_the_paris_ground_truth_is_read() -> None:
    listing = [path.name for path in (PARIS / "jpg").iterdir()]
    benchmark = load_benchmark(str(PARIS / "gnd_paris250.pkl"), listing)
    assert benchmark.name == "paris250"
    assert (len(benchmark.images), len(benchmark.queries)) == (250, 12)
    assert sorted(benchmark.images) == sorted(listing)
    first = benchmark.queries[0]
    assert first.image == "paris_defense_000056.jpg"
    assert first.box == pytest.approx((3.498, 45.477, 309.154, 399.233), abs=1e-3)
    assert (len(first.positives), first.junk.tolist()[:3]) == (39, [26, 34, 82])
    assert all("defense" in benchmark.images[i] for i in first.positives)


# Names of images


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("a", "a.jpg"),
        ("a", "sub/a.JPEG"),
        ("a", "a"),
        ("a.jpg", "a.png"),
        ("sub/a", "deep/sub/a.jpg"),
        ("a", "a.JFIF"),
        ("a.jpe", "a.heic"),
        ("v1.2", "v1.2.jpg"),
        ("sub/a.png", "sub/a"),
    ],
)
def test_a_name_fits_a_file_whatever_its_suffix_and_folder(name: str, file: str) -> None:
    content = truth(imlist=["b", name], qimlist=["c"], gnd=[{"ok": [1]}])
    images = ["c.jpg", "other/v1.jpg", "b.jpg", "ba.jpg", "b/xa.jpg", file]
    assert read(content, images).images == ("b.jpg", file)


def test_a_folder_in_a_name_tells_two_files_apart() -> None:
    images = ["x/a.jpg", "y/a.jpg", "xy/a.jpg", "b.jpg", "c.jpg", "d.jpg"]
    content = truth(imlist=["d", "y/a", "b"], qimlist=["x/a", "c"])
    benchmark = read(content, images)
    assert benchmark.images[1] == "y/a.jpg"
    assert benchmark.queries[0].image == "x/a.jpg"
    deep = truth(imlist=["d", "z/x/a", "b"], qimlist=["y/a", "c"])
    assert read(deep, [*images, "w/z/x/a.jpg", "uz/x/a.jpg"]).images[1] == "w/z/x/a.jpg"


@pytest.mark.parametrize("other", ["a.png", "sub/a.jpg"])
def test_a_name_that_fits_two_files_is_refused(other: str) -> None:
    message = r"gnd_three.pkl: imlist\[1\]: a may be a.jpg or .*a\.\w+: keep one"
    with pytest.raises(InputError, match=message):
        read(truth(), [*IMAGES, other])
    # In the database alone it does no harm to text files.
    more = [*IMAGES, "e.jpg", "e.png"]
    assert len(read_oxford_ground_truth(texts(), more, source="oxford").images) == 6


def test_missing_images_are_named_and_counted() -> None:
    message = (
        r"three.pkl: 3 of 4 names .* of the 1 images: 'd' \(imlist\[0\]\), .* \(qimlist\[1\]\)$"
    )
    with pytest.raises(InputError, match=message):
        read(truth(), ["a.jpg"])
    message = (
        r"oxford: 4 of 4 .* 1 images, such as 'z.jpg': 'c' \(w_1_query.txt:1\), .*, .*, 'd' \(x"
    )
    with pytest.raises(InputError, match=message):
        read_oxford_ground_truth(texts(), ["z.jpg"], source="oxford")
    with pytest.raises(InputError, match=r"1 of 5 names .* 'zz' \(x_1_ok.txt:3"):
        read_oxford_ground_truth(texts(x_1_ok="d\n\nzz"), IMAGES, source="oxford")
    with pytest.raises(InputError, match="none of the 0 images"):
        read(truth(), [])


def test_many_missing_images_are_named_up_to_twenty() -> None:
    names = [f"x{i}" for i in range(23)]
    with pytest.raises(InputError, match=r"23 of 24 names .*'x19' \(imlist\[19\]\) and 3 more$"):
        read(truth(imlist=names, qimlist=["a"], gnd=[{"ok": []}]))


def test_corrupt_images_are_no_part_of_the_database_nor_of_the_lists() -> None:
    benchmark = read_oxford_ground_truth(texts(), IMAGES, source="oxford", corrupt={"a"})
    assert benchmark.images == ("b.jpg", "c.jpg", "d.jpg")
    x = benchmark.queries[1]
    assert (x.positives.tolist(), x.junk.tolist()) == ([0, 2], [1])
    with pytest.raises(InputError, match=r"'b' \(x_1_query.txt:1\)"):
        read_oxford_ground_truth(texts(), IMAGES, source="oxford", corrupt={"b"})


# Damaged ground truth


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "expected a dict of imlist, qimlist, gnd"),
        ({"imlist": ["a"], "gnd": []}, "expected a dict of imlist, qimlist, gnd"),
        (truth(imlist=[]), "imlist: expected a list that is not empty"),
        (truth(imlist="abc"), "imlist: expected a list that is not empty"),
        (truth(qimlist=[], gnd=[]), "qimlist: expected a list that is not empty"),
        (truth(gnd={}), "gnd: expected a list that is not empty"),
        (truth(imlist=["a", 3]), r"imlist\[1\] is 3: expected a str"),
        (truth(gnd=[{"ok": []}, [1]]), r"gnd\[1\] is \[1\]: expected a dict"),
        (truth(qimlist=["a"]), "1 queries in qimlist, 2 in gnd"),
        (truth(imlist=["d", "", "b"]), r"1 of \d names fit none of .*'' \(imlist\[1\]\)"),
        (truth(gnd=[{"good": []}, {}]), r"gnd\[0\] \(a\): expected ok or easy and hard, .*'good'"),
        (truth(gnd=[{"ok": []}, {"easy": [], "hard": []}]), r"gnd\[1\] \(c\): expected ok, found"),
        (truth(gnd=[{"easy": [], "hard": []}, {"ok": []}]), r"\(c\): expected easy and hard, fo"),
        (truth(gnd=[{"easy": [], "hard": [3]}, {}]), r"gnd\[0\] \(a\): hard holds 3"),
        (truth(gnd=[{"ok": [3]}, {}]), r"gnd\[0\] \(a\): ok holds 3: expected rows .* 0\.\.2"),
        (truth(gnd=[{"ok": [-1]}, {}]), r"gnd\[0\] \(a\): ok holds -1"),
        (truth(gnd=[{"ok": [1.5]}, {}]), r"ok holds 1.5: expected rows of imlist"),
        (truth(gnd=[{"ok": [True]}, {}]), "ok holds True: expected rows of imlist"),
        (truth(gnd=[{"ok": [], "junk": ["a"]}, {}]), "junk holds 'a': expected rows of imlist"),
        (truth(gnd=[{"ok": 2}, {}]), "ok is 2: expected rows of imlist"),
        (truth(gnd=[{"ok": [], "bbx": [1, 2, 3]}, {}]), r"\(a\): box .1, 2, 3.: .* four numbers"),
        (truth(gnd=[{"ok": [], "bbx": 7}, {}]), "box 7: expected four numbers"),
        (truth(gnd=[{"ok": [], "bbx": [9, 2, 3, 4]}, {}]), "expected x1 < x2 and y1 < y2"),
        (truth(gnd=[{"ok": [], "bbx": [0, 4, 3, 4]}, {}]), "expected x1 < x2 and y1 < y2"),
        (truth(gnd=[{"ok": [], "bbx": [0, 1, 2, np.nan]}, {}]), "expected x1 < x2 and y1 < y2"),
    ],
)
def test_a_damaged_pickle_is_refused_by_item(content, message: str) -> None:
    with pytest.raises(InputError, match=rf"^data/gnd_three\.pkl: .*{message}"):
        read(content)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x_1_query": None, "w_1_query": None}, "oxford: neither a .pkl file nor a folder"),
        ({"x_1_junk": None}, "oxford/x_1_junk.txt: there is no such file"),
        ({"x_1_query": ""}, "oxford/x_1_query.txt: 0 lines, expected one"),
        ({"x_1_query": "b 0 0 9 9\nb 0 0 9 9\n"}, "x_1_query.txt: 2 lines, expected one"),
        ({"x_1_query": "0 0 9 9"}, "x_1_query.txt:1: '0 0 9 9': expected 'image x1 y1 x2 y2'"),
        ({"x_1_query": "b 0 0 9 wide"}, "x_1_query.txt:1: box .*'wide'.: expected four numbers"),
        ({"x_1_query": "\nb 9 0 0 9"}, "x_1_query.txt:2: box .*: expected x1 < x2"),
        ({"x_1_query": "b 0 0 9 inf"}, "x_1_query.txt:1: box .*: expected x1 < x2"),
        ({"x_1_good": "a\n\na b\n"}, "oxford/x_1_good.txt:3: 'a b': expected 'image'"),
        ({"x_1_ok": b"\xff\xfe\x00"}, "oxford/x_1_ok.txt: not a text file"),
    ],
)
def test_a_damaged_text_file_is_refused_by_file_and_line(changes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_oxford_ground_truth(texts(**changes), IMAGES, source="oxford")


@pytest.mark.parametrize("name", ["gnd_none.pkl", "none", "ftp9://somewhere/x.pkl"])
def test_a_ground_truth_that_is_not_there_is_refused(tmp_path, name: str) -> None:
    where = name if "://" in name else str(tmp_path / name)
    with pytest.raises(InputError, match=r"none|ftp9"):
        load_benchmark(where, IMAGES)


# The unpickler


PLAIN = {
    "matrix": np.arange(6).reshape(2, 3),
    "columns": np.asfortranarray(np.arange(6).reshape(2, 3)),
    "turned": np.arange(6).reshape(2, 3).T,
    "big-endian": np.array([1, 2], ">i4"),
    "floats": np.array([0.5, np.inf], np.float32),
    "booleans": np.array([True, False]),
    "texts": np.array(["a", "bcd"]),
    "bytes": np.array([b"x", b"yz"]),
    "objects": np.array([None, "x", {"k": [1]}], object),
    "empty": np.array([], np.int64),
    "number": np.float64(1.5),
    "integer": np.int32(-4),
    "true": np.bool_(True),
    "text": np.str_("né"),
    "plain": [(1, 2.5, None, True), {"k": "v"}, {1, 2}, frozenset([3]), b"", b"\xff", 10**30],
}
READ = {
    **{
        key: value.tolist() if isinstance(value, np.ndarray | np.generic) else value
        for key, value in PLAIN.items()
    },
    "bytes": ["x", "yz"],
}


@pytest.mark.parametrize("numpy_version", [1, 2])
@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_scalars_of_every_protocol_become_lists_and_numbers(
    protocol: int, numpy_version: int
) -> None:
    data = pickle.dumps(PLAIN, protocol=protocol)
    if numpy_version == 1:
        assert b"numpy._core" in data
        # One byte shorter; protocol 4 and later count the letters (0x16: 22) and the frame.
        for name in (b"multiarray", b"numeric"):
            new, old = b"numpy._core." + name, b"numpy.core." + name
            data = data.replace(bytes([len(new)]) + new, bytes([len(old)]) + old)
            data = data.replace(new, old)
        if protocol >= 4:
            data = data[:3] + (len(data) - 11).to_bytes(8, "little") + data[11:]
    assert load_plain(data, "x") == READ


def test_an_array_as_python_2_wrote_it_is_read() -> None:
    # pickle.dumps({'ok': np.array([1, 200])}, 2) of Python 2: the bytes are a str.
    data = (
        b"\x80\x02}q\x01U\x02okq\x02cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\n"
        b"q\x04K\x00\x85q\x05U\x01bq\x06\x87q\x07Rq\x08(K\x01K\x02\x85q\tcnumpy\ndtype\nq\n"
        b"U\x02i8q\x0bK\x00K\x01\x87q\x0cRq\r(K\x03U\x01<q\x0eNNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        b"K\x00tq\x0fb\x89U\x10\x01\x00\x00\x00\x00\x00\x00\x00\xc8\x00\x00\x00\x00\x00\x00\x00"
        b"q\x10tq\x11bs."
    )
    assert pickle.loads(data, encoding="latin1")["ok"].tolist() == [1, 200]
    assert load_plain(data, "x") == {"ok": [1, 200]}


def test_ground_truth_of_arrays_is_read_like_one_of_lists() -> None:
    gnd = [
        {"bbx": np.array([1.5, 2, 30, 40.25]), "ok": np.array([2, 0]), "junk": np.array([1])},
        {"bbx": None, "ok": np.array([], int), "junk": []},
    ]
    arrays = truth(
        imlist=np.array(["d", "a", "b"]), qimlist=np.array(["a", "c"]), gnd=np.array(gnd)
    )
    plain, other = read(truth()), read(arrays)
    assert other.images == plain.images
    for one, two in zip(plain.queries, other.queries, strict=True):
        assert (one.image, one.box) == (two.image, two.box)
        assert one.positives.tolist() == two.positives.tolist()
        assert one.junk.tolist() == two.junk.tolist()


class Calls:
    """Pickles to a call."""

    def __init__(self, function, *arguments) -> None:
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize(
    ("function", "argument", "name"),
    [
        (eval, "open('{}', 'w')", r"\w+\.eval"),
        (getattr, "", r"\w+\.getattr"),
        (bytearray, 5, r"\w+\.bytearray"),
        (np.load, "{}", r"numpy\.load"),
        (random.Random, 1, r"random\.Random"),
        (Path, "x", r"pathlib\.Path"),
    ],
)
def test_other_globals_are_refused_by_name_and_not_called(
    tmp_path, function, argument, name: str, protocol: int
) -> None:
    witness = tmp_path / "witness"
    if isinstance(argument, str):
        argument = argument.format(witness)
    data = pickle.dumps(truth(gnd=[Calls(function, argument)]), protocol=protocol)
    with pytest.raises(InputError, match=f"gnd_three.pkl: not a pickle of plain .*asks for {name}"):
        read(data)
    assert not witness.exists()


@pytest.mark.parametrize(
    "value",
    [
        np.array([(1, 2.0)], dtype="i4,f8"),
        np.array(["2020-01-01"], "datetime64[D]"),
        np.array([1j]),
        np.array([[None, 1]], object),
        np.array(None, object),
        np.ma.masked_array([1, 2], [0, 1]),
    ],
)
def test_arrays_of_other_types_are_refused(value) -> None:
    with pytest.raises(InputError, match="refused"):
        load_plain(pickle.dumps(value), "x")


def hostile(*, state: bytes, of: bytes) -> bytes:
    """A pickle that sets a state (protocol 2 instructions) on a global or on what it returned."""
    return b"\x80\x02" + of + state + b"b."


DTYPE = b"cnumpy\ndtype\nU\x02i8\x89\x89\x87R"  # the int64 type that all of numpy shares


@pytest.mark.parametrize(
    "data",
    [
        # A byte order for the shared int64, fields beyond the element, flags of objects.
        hostile(of=DTYPE, state=b"(K\x03U\x01>NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00t"),
        hostile(of=DTYPE, state=b"(K\x03U\x01|NNNM\x00\x10K\x01K?t"),
        # Attributes of what stands for numpy's functions and classes.
        hostile(of=b"cnumpy\ndtype\n", state=b"N}U\x08__init__cbuiltins\nset\ns\x86"),
        hostile(of=b"cnumpy.core.multiarray\nscalar\n", state=b"N}U\x0c__defaults__)s\x86"),
        # Bytes that are not enough for the shape; a shape that is large though it is empty.
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(U\x08abcdefgh"
        + DTYPE
        + b"J\xff\xff\xff\x7f\x85U\x01CtR.",
        b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(U\x00"
        + DTYPE
        + b"J\xff\xff\xff\x7fK\x00\x86U\x01CtR.",
        # Text beyond Unicode.
        b"\x80\x02cnumpy._core.multiarray\nscalar\ncnumpy\ndtype\nU\x02U1\x85RU\x04\xff\xff\xff\xff\x86R.",
        b"\x80\x02cbuiltins\nbytes\nJ\xff\xff\xff\x7f\x85R.",
        b"\x80\x02Vx\nQ.",  # a persistent id
        b"\x80\x02}r\xff\xff\xff\x7f.",  # an object that is given a large number
        b"\x80\x05\x96\xff\xff\xff\xff\xff\x00\x00\x00abc.",  # 2^40 bytes, of which 3 are there
    ],
)
def test_crafted_pickles_change_nothing_and_end_in_a_clear_refusal(data: bytes) -> None:
    array, before = np.array([1, 256]), pickle.dumps(PLAIN)
    with pytest.raises(InputError):
        read(data)
    assert array.tolist() == [1, 256]
    assert np.dtype("i8") == np.int64
    assert np.frombuffer(b"\x01" + bytes(7), np.int64).tolist() == [1]
    assert load_plain(before, "x") == READ


def test_a_codec_is_not_looked_up() -> None:
    data = pickle.dumps(Calls(codecs.encode, "a", "rot13"), protocol=2)
    with pytest.raises(InputError, match="refused: the codec 'rot13'"):
        load_plain(data, "x")


def test_a_message_about_a_nested_value_is_short() -> None:
    value = [1]
    for _ in range(100):
        value = [value, value]  # written out, 2^100 numbers
    with pytest.raises(InputError) as caught:
        read(truth(gnd=[{"ok": [value]}, {}]))
    assert len(str(caught.value)) < 2000


@given(st.integers(0, 10**9), st.sampled_from([0, 2, 4, 5]))
def test_a_pickle_with_damaged_bytes_is_read_or_refused(seed: int, protocol: int) -> None:
    data = bytearray(pickle.dumps(truth(more=PLAIN), protocol=protocol))
    rng = random.Random(seed)
    for _ in range(rng.randint(1, 3)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    cut = rng.choice([len(data), rng.randrange(len(data))])
    with contextlib.suppress(InputError):
        read(bytes(data[:cut]))


@pytest.mark.parametrize("data", [b"", b"not a pickle", b"\x80\x04", b"(l."])
def test_a_file_that_is_no_pickle_is_refused(data: bytes) -> None:
    with pytest.raises(InputError, match=r"gnd_three\.pkl: not a"):
        read(data)


# A thousand entries under memo 0, then references to them.
THOUSAND = b"]q\0(" + b"N" * 1000 + b"e"


def laughter(levels: int) -> bytes:
    """Lists of ten references to the list before: 10^levels entries in 25 bytes a level."""
    lists = b"".join(
        b"]q" + bytes([i]) + b"(" + (b"h" + bytes([i - 1])) * 10 + b"e" for i in range(1, levels)
    )
    return b"]q\0K\0a" + lists + b"."


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"(" * 3_000_000 + b".", "100 marks within one another"),
        (b"]" + (b"(" * 200 + b"1" * 200) * 20_000 + b".", "100 marks within one another"),
        (b"N" + b"\x85" * 300_000 + b".", "nested 100 deep"),
        (b"]q\0h\0a.", "nested 100 deep"),
        (laughter(30), "more than 65536 entries"),
        (THOUSAND + b"0(" + b"h\0" * 200_000 + b"l.", "more than .* entries, most repeated"),
        # Tuples of a pair of the tuple before: hashing the last one takes 2^60 steps.
        (b"}N" + b"2\x86" * 60 + b"Ns.", r"refused: \(.* as a key or in a set"),
        (b"(N" + b"2\x86" * 60 + b"\x91.", r"refused: \(.* as a key or in a set"),
        (b"(N" + b"\x85" * 300_000 + b"Nd.", r"refused: \(.* as a key or in a set"),
        # Numbers with one and the same hash.
        (
            b"}("
            + b"".join(
                b"\x8a\x20" + (i * (2**61 - 1)).to_bytes(32, "little") + b"N" for i in range(10**5)
            )
            + b"u.",
            "as a key or in a set",
        ),
        (
            b"N" + b"".join(b"p%d\n" % (i * (2**61 - 1)) for i in range(10**5)) + b".",
            "more than 10 digits",
        ),
        # Copies: of a list as sets, of bytes as arrays, of an entry as lists within one another.
        (
            b"cbuiltins\nset\nq\1" + THOUSAND + b"0(" + b"h\1h\0\x85R" * 100_000 + b"l.",
            "refused: .* (as a key|entries)",
        ),
        (
            b"\x80\x02cnumpy._core.numeric\n_frombuffer\nq\1B\x00\x00\x01\x00"
            + bytes(1 << 16)
            + b"q\2cnumpy\ndtype\nU\x02i1\x85Rq\3J\x00\x00\x01\x00\x85q\4("
            + b"h\1(h\2h\3h\4U\x01CtR" * 10_000
            + b"l.",
            "entries, most repeated",
        ),
        (
            b"\x80\x02cnumpy._core.numeric\n_frombuffer\n(B\x00\x00\x10\x00"
            + bytes(1 << 20)
            + b"cnumpy\ndtype\nU\x02i1\x85R(J\x00\x00\x10\x00"
            + b"K\1" * 40
            + b"tU\x01CtR.",
            "an array of 41 axes",
        ),
        (b"\x8b\x00\x00\x10\x00" + b"\x7f" * (1 << 20) + b".", "a number of 256 bytes"),
    ],
)
def test_a_pickle_that_would_take_years_is_refused_at_once(data: bytes, message: str) -> None:
    start = time.process_time()
    with pytest.raises(InputError, match=f"x: not a pickle of plain .*{message}"):
        load_plain(data, "x")
    assert time.process_time() - start < 2


def test_shared_parts_of_a_ground_truth_are_read() -> None:
    """Many queries may have one list of junk, and any keys that data has."""
    junk = [*range(500)]
    content = {"gnd": [{"ok": [i], "junk": junk} for i in range(100)], 7: {1.5, None, "a", b"b"}}
    assert load_plain(pickle.dumps(content), "x") == content


def test_reading_from_a_stream_of_pickles_takes_the_first() -> None:
    stream = io.BytesIO()
    pickle.dump(truth(), stream)
    pickle.dump("more", stream)
    assert read(stream.getvalue()).images == ("d.jpg", "a.jpg", "b.jpg")


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("/data/gnd_paris6k.pkl", "paris6k"),
        ("/data/gnd_instre.mat", "instre"),
        ("/data/odd?name/gt?/", "gt?"),
        ("s3://bucket/test/gt?scheme=http&endpoint_override=127.0.0.1:9000", "gt"),
    ],
)
def test_a_set_is_called_after_its_file_without_the_options_of_a_bucket(source, name):
    assert title(source) == name


def test_names_of_ground_truths_are_found_in_either_form_of_unicode() -> None:
    files = {
        "x_1_query.txt": "\ufeffcaf\u00e9 1 2 3 4\r\n".encode(),
        "x_1_good.txt": "a\u2028b\r\n\r\ne\u0301\u0085x.jpg\r\n".encode(),
        "x_1_ok.txt": b"",
        "x_1_junk.txt": "caf\u00e9".encode("utf-16"),
    }
    images = ["cafe\u0301.jpg", "a\u2028b.png", "\u00e9\u0085x.jpg", "z.jpg"]
    found = read_oxford_ground_truth(files, images, source="oxford")
    (query,) = found.queries
    assert query.image == "cafe\u0301.jpg"
    assert [found.images[row] for row in query.positives] == ["a\u2028b.png", "\u00e9\u0085x.jpg"]
    assert [found.images[row] for row in query.junk] == ["cafe\u0301.jpg"]
    with pytest.raises(InputError, match="caf\u00e9 may be"):
        read_oxford_ground_truth(files, [*images, "caf\u00e9.jpg"], source="oxford")
