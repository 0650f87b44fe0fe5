"""Text files of users are read as their writers meant them, whatever program wrote them."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmray.system.text_files import normalized, read_lines, read_names, read_rows, read_text

ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg.jpg"  # what str.splitlines() would split


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_end_at_lf_and_cr_alone_in_each_encoding(encoding, end):
    lines = ["first.jpg", "", ODD, "café 日.jpg"]
    assert read_lines(end.join(lines).encode(encoding)) == lines
    assert read_lines((end.join(lines) + end).encode(encoding)) == lines


def test_big_endian_utf_16_is_read():
    assert read_lines("\ufeffa.jpg\nb.jpg".encode("utf-16-be")) == ["a.jpg", "b.jpg"]


def test_blanks_around_a_line_are_no_part_of_it():
    assert read_lines("  a b.jpg\t\n \u3000\n".encode()) == ["a b.jpg", ""]
    assert read_lines(b"") == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            'a, b.jpg\r\n"c\nd.jpg"\r\n\r\n "e ""f"".jpg"\r\n',
            ["a, b.jpg", "c\nd.jpg", 'e "f".jpg'],
        ),
        ('"a, b.jpg"\n', ["a, b.jpg"]),
        ('5" disk.jpg\nb.jpg\n', ['5" disk.jpg', "b.jpg"]),
        ('"a.jpg\nb.jpg\n', ['"a.jpg', "b.jpg"]),
        ('"a" b.jpg\nc.jpg\n', ['"a" b.jpg', "c.jpg"]),
        (
            '"a, b.jpg" \n"c.jpg\n 5" d.jpg\n\t"e.jpg"\r"f".jpg',
            [*("a, b.jpg", '"c.jpg', '5" d.jpg', "e.jpg", '"f".jpg')],
        ),
        (f"{ODD}\r\n", [ODD]),
        ("\ufeff\n \n", []),
        ("\ufeffa.jpg\r\n\ufeffb.jpg\r\ufeff\ufeffc\ufeff.jpg", ["a.jpg", "b.jpg", "c\ufeff.jpg"]),
    ],
)
def test_names_may_be_in_quotation_marks(text, names):
    assert read_names(text.encode()) == names


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"a\r\nb\rc\nd\xe9", "line 4 is not UTF-8"),
        (b"\xef\xbb\xbf\n\xff", "line 2 is not UTF-8"),
        (b"\xe9", "line 1 is not UTF-8"),
        ("a\u2028\nb".encode() + b"\xff", "line 2 is not UTF-8"),
        ("a\nb\n".encode("utf-16") + b"x", "line 3 is not UTF-16"),
    ],
)
def test_the_line_that_is_of_another_encoding_is_told(data, message):
    with pytest.raises(ValueError, match=f"^{message}$"):
        read_text(data)


cells = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs"]) | st.sampled_from('\n\r,;\t" ')
)


@given(st.lists(st.tuples(cells, cells, cells), max_size=5), st.sampled_from(["\n", "\r\n"]))
def test_rows_are_what_a_csv_writer_wrote(rows, end):
    rows = [tuple(cell.strip() for cell in row) for row in rows]
    rows = [row for row in rows if row[0] and not row[0].startswith("\ufeff")]
    file = io.StringIO(newline="")
    csv.writer(file, lineterminator=end, quoting=csv.QUOTE_ALL).writerows(rows)
    assert [tuple(found) for _, found in read_rows(file.getvalue().encode())] == rows


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('"a\nb.jpg",cat\nc.jpg,dog', [(1, ["a\nb.jpg", "cat"]), (3, ["c.jpg", "dog"])]),
        (f"{ODD},cat", [(1, [ODD, "cat"])]),
        ("\n a.jpg , cat \n\n , \nb.jpg,\n", [(2, ["a.jpg", "cat"]), (5, ["b.jpg", ""])]),
        ('a.jpg, "cat, black"\n', [(1, ["a.jpg", "cat, black"])]),
        ("a.jpg;cat\nb.jpg;dog, black", [(1, ["a.jpg", "cat"]), (2, ["b.jpg", "dog, black"])]),
        ("a, b.jpg\tcat\nb.jpg\tdog", [(1, ["a, b.jpg", "cat"]), (2, ["b.jpg", "dog"])]),
        ("a;b.jpg,cat\nc.jpg,dog", [(1, ["a;b.jpg", "cat"]), (2, ["c.jpg", "dog"])]),
        ("a.jpg,cat,more\n", [(1, ["a.jpg", "cat", "more"])]),
        ('a"b.jpg,cat\n', [(1, ['a"b.jpg', "cat"])]),
        ("", []),
    ],
)
def test_rows_are_separated_by_what_every_row_has(text, rows):
    assert read_rows(text.encode()) == rows
    assert read_rows(text.encode("utf-16")) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a.jpg,cat\n\nalone\nb.jpg,dog", "line 3 is not name,label; correct or remove it"),
        ("a.jpg;cat\nb.jpg;dog\nalone", "line 3 is not name,label"),
        ("alone\n", "line 1 is not name,label"),
        ("a.jpg,cat\n,dog", "line 2 is not name,label"),
        ('a.jpg,cat\n"b.jpg,dog\nc.jpg,cat\n', "line 2: unexpected end of data"),
        ('a.jpg,cat\nb.jpg,"dog\nc.jpg,cat\n', "line 2: unexpected end of data"),
    ],
)
def test_a_row_that_is_no_pair_is_told_by_its_line(text, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        read_rows(text.encode())


def test_names_are_compared_composed_and_stripped():
    assert normalized(" cafe\u0301.jpg\t") == "caf\u00e9.jpg" == normalized("./caf\u00e9.jpg")
    assert normalized(".//./a") == "a"
    assert normalized("../a") == "../a"
    assert normalized(".hidden") == ".hidden"
