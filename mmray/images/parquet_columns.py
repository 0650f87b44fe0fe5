"""The columns of a Parquet file that hold images, their names and their paths.

They are found by what they hold, not by one type: a column of image bytes is binary of any kind,
dictionary-coded or not, or a struct with a field `bytes` as Hugging Face datasets write it.
"""

from dataclasses import dataclass

import pyarrow as pa

from mmray.system.errors import InputError, first_names, quoted

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "bytes", "data", "content")
NAME_COLUMNS = (
    "name",
    "file_name",
    "filename",
    "path",
    "file",
    "key",
    "__key__",
    "id",
    "uri",
    "url",
)

_HASH = 64  # bytes: the longest usual hash; a fixed size up to it is of hashes, not of images


@dataclass(frozen=True)
class Leaf:
    """A column to read, or the field of a column that is a struct.

    Attributes
    ----------
    column : name of the column
    field : name of the field in the struct; None: the column is none
    """

    column: str
    field: str | None = None

    @property
    def path(self) -> str:
        """Return the name by which Parquet knows it."""
        return self.column if self.field is None else f"{self.column}.{self.field}"


@dataclass(frozen=True)
class Columns:
    """The columns of a file that hold its images, their names and their paths.

    Attributes
    ----------
    image : the image bytes
    names : of each row the first that is not empty is the name
    path : the file that is meant by a row without bytes; None: no column tells
    """

    image: Leaf
    names: tuple[Leaf, ...]
    path: Leaf | None


def is_text(kind: pa.DataType) -> bool:
    """Tell whether an Arrow type is one of strings, perhaps dictionary-coded."""
    tests = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(test(_values(kind)) for test in tests)


def columns_of(schema: pa.Schema, column: str | None) -> Columns:
    """Return the columns to read.

    Parameters
    ----------
    schema : of the file
    column : the column of images; None: detect it

    Raises
    ------
    InputError
        There is no such column, or it is not clear which is meant.
    """
    field = _image_field(schema, column)
    names = [Leaf(name) for name in NAME_COLUMNS if _is_text_field(schema, name)]
    path = next((leaf for leaf in names if leaf.column == "path"), None)
    if not pa.types.is_struct(field.type):
        return Columns(Leaf(field.name), tuple(names), path)
    if _has_path(field.type):
        path = Leaf(field.name, "path")
        names.insert(0, path)
    return Columns(Leaf(field.name, "bytes"), tuple(names), path)


def holds_images(schema: pa.Schema, column: str | None) -> bool:
    """Tell whether there is a column of image bytes: `column` if it is given, else any.

    A column of images as lists of numbers counts too: `columns_of` then tells the remedy.
    """
    fields = {field.name: field.type for field in schema}
    if column is not None:
        return column in fields and (_holds_bytes(fields[column]) or _lists_bytes(fields[column]))
    lists = [name for name in IMAGE_COLUMNS if name in fields and _lists_bytes(fields[name])]
    return bool(_candidates(schema) or lists)


def _values(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values behind a dictionary or an extension type."""
    while pa.types.is_dictionary(kind) or isinstance(kind, pa.BaseExtensionType):
        kind = kind.value_type if pa.types.is_dictionary(kind) else kind.storage_type
    return kind


def _is_binary(kind: pa.DataType) -> bool:
    tests = (
        *(pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view),
        pa.types.is_fixed_size_binary,
    )
    return any(test(_values(kind)) for test in tests)


def _holds_bytes(kind: pa.DataType) -> bool:
    if not pa.types.is_struct(kind):
        return _is_binary(kind)
    place = kind.get_field_index("bytes")
    if place < 0:
        return False
    # A file whose rows all have a path instead may have been written without a type for the bytes.
    inner = kind.field(place).type
    return _is_binary(inner) or (pa.types.is_null(inner) and _has_path(kind))


def _has_path(kind: pa.StructType) -> bool:
    place = kind.get_field_index("path")
    return place >= 0 and is_text(kind.field(place).type)


def _is_hash(kind: pa.DataType) -> bool:
    inner = _values(kind)
    return bool(pa.types.is_fixed_size_binary(inner) and inner.byte_width <= _HASH)


def _candidates(schema: pa.Schema) -> list[str]:
    return [field.name for field in schema if _holds_bytes(field.type) and not _is_hash(field.type)]


def _lists_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list)
    return any(test(kind) for test in tests) and kind.value_type in (pa.uint8(), pa.int8())


def _is_text_field(schema: pa.Schema, name: str) -> bool:
    place = schema.get_field_index(name)
    return place >= 0 and is_text(schema.field(place).type)


def _image_field(schema: pa.Schema, column: str | None) -> pa.Field:
    """Return the column asked for, or the only plausible one; InputError if there is none."""
    fields = {field.name: field for field in schema}
    candidates = _candidates(schema)
    if column is not None:
        if column not in fields:
            raise InputError(
                f"no column {column!r} among {first_names(quoted(fields))}; name another with "
                "--image-column"
            )
        if not _holds_bytes(fields[column].type):
            raise _no_bytes(fields[column], candidates)
        return fields[column]
    preferred = [name for name in IMAGE_COLUMNS if name in candidates]
    if len(candidates) > 1 and not preferred:
        raise InputError(
            f"images may be in any of the columns {first_names(quoted(candidates))}; name one with "
            "--image-column"
        )
    if candidates:
        return fields[(preferred or candidates)[0]]
    for name in IMAGE_COLUMNS:
        if name in fields and _lists_bytes(fields[name].type):
            raise _no_bytes(fields[name], [])
    raise InputError(
        f"no column of image bytes among {first_names(quoted(fields))}; it must be binary, or "
        "a struct with a binary field 'bytes'; a file of paths is read where it is named by itself"
    )


def _no_bytes(field: pa.Field, others: list[str]) -> InputError:
    problem = f"the column {field.name!r} is of type {field.type}, not of image bytes"
    if others:
        return InputError(
            f"{problem}; name one of {first_names(quoted(others))} with --image-column"
        )
    return InputError(f"{problem}; write the bytes of image files as a column of type binary")
