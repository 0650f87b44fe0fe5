"""Lists of images: text files with one path or URI a line, and Parquet files with a column of them.

Every function raises InputError where the list cannot be read.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from reprlib import repr as shorten
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mmray.images.collection import NAMELESS, SCHEMA, Collection, ImageFile
from mmray.images.parquet_columns import is_text
from mmray.system import locations
from mmray.system.errors import InputError
from mmray.system.locations import error_line, is_uri, resolve
from mmray.system.text_files import read_names
from mmray.system.uris import masked, refusal

Answer = TypeVar("Answer")

_BLOCK = 65_536  # entries at a time
_SINGLE = (
    "(?i)[.](tar|parquet)$|^$"  # names of archives, of which images are listed, and of nothing
)
# In a local list `refusal` allows, and `resolve` and `masked` keep, all paths but those of these
# characters and parts, and the URIs of buckets whose characters are these.
_OTHER_PATH = "[^ -~]|//|(^|/)[.](/|$)|/$"
_BUCKET = "^(s3|gs|gcs)://[A-Za-z0-9._-]+(/[ -\"$%'-9<>A-~]*)?$"
_COLUMNS = ("uri", "url", "path", "file", "file_name", "filename", "image", "name")


def in_blocks(uri: str, entries: Sequence[str | None]) -> Iterator[ImageFile | Collection]:
    """Yield the files that `listed` yields, many of them at once where none is an archive.

    Paths, and URIs of buckets in a local list, take a tenth of the time.
    """
    for start in range(0, len(entries), _BLOCK):
        block = entries[start : start + _BLOCK]
        names = pc.ascii_trim_whitespace(pa.array(block, pa.large_string()))
        single = pc.match_substring_regex(names, _SINGLE)
        if is_uri(uri) or names.null_count or pc.any(single).as_py():
            yield from listed(uri, block, first=start)
            continue
        other = pc.match_substring_regex(names, _OTHER_PATH)
        plain = pc.or_(pc.invert(other), pc.match_substring_regex(names, _BUCKET))
        others = Collection.of(listed(uri, names.filter(pc.invert(plain)).to_pylist()))
        images = Collection.joined([_placed(uri, names.filter(plain)), others])
        order = np.argsort(~plain.to_numpy(zero_copy_only=False), kind="stable")
        yield images.take(np.argsort(order))


def _placed(uri: str, names: pa.Array) -> Collection:
    """Return the files that a local list at `uri` names by plain paths and URIs."""
    folder = pa.scalar(str(Path(uri).absolute().parent).rstrip("/"), names.type)
    below = pc.binary_join_element_wise(folder, names, pa.scalar("/", names.type))
    uris = pc.if_else(pc.match_substring_regex(names, "^/|://"), names, below)
    nothing = {each.name: pa.nulls(len(names), each.type) for each in SCHEMA}
    known = {"uri": uris, "name": names, "size": pa.repeat(-1, len(names))}
    return Collection(pa.table(nothing | known, SCHEMA))


def listed(uri: str, entries: Iterable[str | None], *, first: int = 0) -> Iterator[ImageFile]:
    """Yield the files named in the list at `uri`, from its row `first` on, without opening them."""
    for row, entry in enumerate(entries, first):
        name = "" if entry is None else entry.strip()
        if not name:
            yield ImageFile(uri=uri, name=f"row {row}", error=NAMELESS)
            continue
        error = refusal(name, of_list=uri)
        place = resolve(uri, name) if error is None else name
        yield ImageFile(uri=masked(place) if error else place, name=masked(name), error=error)


def lines(uri: str) -> list[str]:
    """Read the lines of a text file that are not blank, see `read_names`."""
    try:
        content = locations.read_bytes(uri)
    except OSError as error:
        raise InputError(f"{uri}: cannot be read ({error_line(error)})") from error
    try:
        return read_names(content)
    except ValueError as error:
        raise InputError(f"{uri}: {error}; save the list as UTF-8") from error


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
        raise InputError(f"{uri}: {shorten(error.object)} is not UTF-8; mend the list") from error


def _of_parquet(uri: str, ask: Callable[[pq.ParquetFile], Answer]) -> Answer:
    def read() -> Answer:
        with locations.open_file(uri) as file, pq.ParquetFile(file) as parquet:
            return ask(parquet)

    try:
        return locations.with_retries(read, uri)
    except (pa.ArrowException, OSError, LookupError) as error:  # as of two columns of one name
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
