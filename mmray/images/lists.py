"""Lists of images: text files with one path or URI a line, and Parquet files with a column of them.

Every function raises InputError where the list cannot be read.
"""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from mmray.images.collection import ImageFile
from mmray.images.parquet_columns import is_text
from mmray.system import locations
from mmray.system.errors import InputError
from mmray.system.locations import error_line, is_uri, resolve

Answer = TypeVar("Answer")

NOT_THE_WEB = "only local files and what pyarrow.fs opens (s3://, gs://, hdfs://) are read"
_COLUMNS = ("uri", "url", "path", "file", "file_name", "filename", "image", "name")


def of_the_web(uri: str) -> bool:
    return is_uri(uri) and re.match("(https?|ftps?):", uri, re.IGNORECASE) is not None


def bare(uri: str) -> str:
    """Return a URI without query and fragment; a path is returned as it is."""
    return re.split("[?#]", uri, maxsplit=1)[0] if is_uri(uri) else uri


def listed(uri: str, entries: Iterable[str | None]) -> Iterator[ImageFile]:
    """Yield the files named in the list at `uri`, without opening them: there may be a million."""
    for row, entry in enumerate(entries):
        name = "" if entry is None else entry.strip()
        if not name:
            yield ImageFile(uri=uri, name=f"row {row}", error="this row of the list names no file")
            continue
        error = None
        if of_the_web(name):
            error = NOT_THE_WEB
        elif "\0" in name:
            error = "no file has a NUL character in its name"
        yield ImageFile(uri=resolve(uri, name), name=name, error=error)


def lines(uri: str) -> list[str]:
    """Read the lines of a text file that are not blank."""
    try:
        content = locations.read_bytes(uri)
    except OSError as error:
        raise InputError(f"{uri}: cannot be read ({error_line(error)})") from error
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise InputError(f"{uri}: line {line} is not UTF-8; save the list as UTF-8") from error
    # Not splitlines(), which takes more characters for ends of lines, such as U+2028.
    return [line for line in re.split(r"[\r\n]+", text) if line.strip()]


def column_of(uri: str, column: str | None) -> str:
    """Return the column of a Parquet file that holds paths and URIs; `column` None: detect it."""
    return _of_parquet(uri, lambda file: _text_column(uri, file.schema_arrow, column))


def cells(uri: str, column: str | None) -> list[str | None]:
    """Read the paths and URIs in a Parquet file; `column` is as for `column_of`."""

    def read(file: pq.ParquetFile) -> list[str | None]:
        name = _text_column(uri, file.schema_arrow, column)
        cells: list[str | None] = file.read(columns=[name])[name].to_pylist()
        return cells

    try:
        return _of_parquet(uri, read)
    except UnicodeDecodeError as error:
        raise InputError(f"{uri}: {error.object!r} is not UTF-8; mend the list") from error


def _of_parquet(uri: str, ask: Callable[[pq.ParquetFile], Answer]) -> Answer:
    def read() -> Answer:
        with locations.open_file(uri) as file, pq.ParquetFile(file) as parquet:
            return ask(parquet)

    try:
        return locations.with_retries(read, uri)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{uri}: cannot be read as Parquet ({error_line(error)})") from error


def _text_column(uri: str, schema: pa.Schema, column: str | None) -> str:
    texts = [field.name for field in schema if is_text(field.type)]
    preferred = [name for name in _COLUMNS if name in texts]
    if column is not None:
        if column in texts:
            return column
        problem = f"column {column!r} holds neither images nor text"
    elif len(texts) == 1 or preferred:
        return (preferred or texts)[0]
    else:
        problem = "more than one column holds text" if texts else "no column holds images or text"
    raise InputError(
        f"{uri}: {problem}; name the column of the images, or of their paths or URIs, with "
        f"--image-column (there are {', '.join(map(repr, schema.names[:20]))})"
    )
