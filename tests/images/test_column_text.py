"""The text of a column is that of the Python list of its values, whatever these are."""

import numpy as np
import pyarrow as pa
import pytest

from mmray.images.column_text import list_text

STRINGS = [
    *("a", "", "/photos/b c.jpg", 'say "x"', "it's", "both ' and \"", "back\\slash", "tab\t"),
    *("line\n", "\x7f", "\x00", "ü", "日本", "e\u0301", "\u200b", "😀", "~ !", None),
]


def texts(column):
    return list_text(column).decode()


@pytest.mark.parametrize("value", STRINGS, ids=repr)
def test_a_string_is_written_as_python_writes_it(value):
    for values in ([value], ["x", value], [value, None, "y"]):
        column = pa.chunked_array([values], pa.large_string())
        assert texts(column) == repr(values)


def test_random_columns_in_any_chunks_are_written_as_python_writes_them():
    rng = np.random.default_rng(0)
    plain = ["a", "", "b c", 'q"q', None]
    for _ in range(300):
        given = STRINGS if rng.random() < 0.5 else plain
        values = [given[i] for i in rng.integers(0, len(given), rng.integers(0, 20))]
        numbers = [None if i % 5 == 0 else int(i) for i in rng.integers(-(2**62), 2**62, 9)]
        cut = int(rng.integers(0, len(values) + 1))
        chunks = [values[:cut], values[cut:]]
        column = pa.chunked_array(chunks, pa.large_string())
        part = slice(int(rng.integers(0, 5)), int(rng.integers(5, 20)))
        assert texts(column) == repr(values)
        assert texts(column[part.start : part.stop]) == repr(values[part])
        assert texts(pa.chunked_array([numbers[:4], numbers[4:]], pa.int64())) == repr(numbers)
        rows = pa.chunked_array([[0, None, 7]], pa.int32())
        assert texts(rows) == "[0, None, 7]"


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([None, [0.5, 1.0, 1e22], None], pa.list_(pa.float64())),
        ([None, None], pa.list_(pa.float64())),
        ([], pa.large_string()),
        ([None], pa.int32()),
    ],
)
def test_other_columns_are_written_as_python_writes_them(values, kind):
    assert texts(pa.chunked_array([values], kind)) == repr(values)
