"""Text files that users bring: lists of names, labels, ground truth, tables of two columns.

They are UTF-8, with or without byte order marks, or UTF-16 with one, as spreadsheets write it.
Only LF, CR LF and CR end a line: names may hold U+2028 and the other line ends of Unicode.

Every function raises ValueError, with the line, where a file is of another kind.
"""

import codecs
import csv
import io
import math
import re
import unicodedata
from collections.abc import Iterator

Row = tuple[int, list[str]]  # the line that a row begins in, and its cells

_DELIMITERS = ",\t;"  # in the order of preference
_MARKS = re.compile("(^|[\r\n])\ufeff+")  # each of several files that were joined begins with one
# A name in quotation marks, and all up to the end of its line; else any line.
_NAME = re.compile(r'[^\S\r\n]*+"((?:[^"]++|"")*+)"[^\S\r\n]*+(?:[\r\n]|\Z)|([^\r\n]++)')


def read_text(data: bytes) -> str:
    """Decode the content of a text file, without byte order marks at the beginnings of lines."""
    wide = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    encoding = "utf-16" if wide else "utf-8"
    try:
        return _MARKS.sub(r"\1", data.decode(encoding))
    except UnicodeDecodeError as error:
        before = error.object[: error.start].decode(encoding, "replace")
        number = max(1, len(list(io.StringIO(f"{before}.", newline=""))))
        raise ValueError(f"line {number} is not {'UTF-16' if wide else 'UTF-8'}") from error


def read_lines(data: bytes) -> list[str]:
    """Split the content of a text file into lines, blank ones too, without blanks around each."""
    return [line.strip() for line in io.StringIO(read_text(data), newline="")]


def read_names(data: bytes) -> list[str]:
    """Read names, one a line; blank lines are left out.

    As in a CSV file a name may be in quotation marks, and hold line ends there. Marks that do not
    enclose all of a line, or of several lines, are parts of the names.
    """
    found = _NAME.finditer(read_text(data))
    names = ((each[2] or (each[1] or "").replace('""', '"')).strip() for each in found)
    return [name for name in names if name]


def read_rows(data: bytes) -> list[Row]:
    """Parse a CSV file whose rows have two cells or more; blank rows are left out.

    Cells are separated by the first of comma, tab and semicolon that every row has, and are without
    blanks around them. A cell in quotation marks may hold line ends and the separator.
    """
    text, best, fewest, failure = read_text(data), list[Row](), math.inf, ""
    for delimiter in _DELIMITERS:
        try:
            rows = [(line, cells) for line, cells in _parsed(text, delimiter) if any(cells)]
        except csv.Error as error:
            failure = failure or str(error)
            continue
        short = sum(len(cells) < 2 for _, cells in rows)
        if short < fewest and not (failure and short == len(rows)):
            best, fewest = rows, short
    if fewest and failure:
        raise ValueError(failure)
    for line, cells in best:
        if len(cells) < 2 or not cells[0]:
            raise ValueError(f"line {line} is not name,label; correct or remove it")
    return best


def _parsed(text: str, delimiter: str) -> Iterator[Row]:
    # An unclosed quotation mark would take in the rest of the file, were it not for `strict`.
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, strict=True, skipinitialspace=True)
    start = 1
    try:
        for cells in reader:
            yield start, [cell.strip() for cell in cells]
            start = reader.line_num + 1
    except csv.Error as error:
        raise csv.Error(f"line {start}: {error}") from error


def natural_order(name: str) -> tuple[str, str]:
    """Return a sort key by which numbers in names count as numbers: part.2 before part.10."""
    return re.sub("[0-9]+", lambda digits: digits[0].zfill(20), name), name


def normalized(name: str) -> str:
    """Return the form in which names are compared: composed, without blanks around it or a ./.

    macOS decomposes é into two characters, and most other programs write it as one.
    """
    name = unicodedata.normalize("NFC", name.strip())
    while name.startswith("./"):
        name = name[2:].lstrip("/")
    return name
