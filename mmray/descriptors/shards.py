"""Shards of an extraction, and the files that are made of them once all are complete.

n images, m of them in a shard, p poolings, d dims.
"""

from collections.abc import Sequence
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from mmray.descriptors.moments import Moments
from mmray.system.arrays import Features, Ids
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder
from mmray.system.formats import write_header
from mmray.system.locations import prefetch
from mmray.system.rows import Rows, StoredMatrix

HASH = "perceptual_hash"
HASHES = pa.schema([(HASH, pa.uint64())])  # which shards of earlier versions lack
# In the order of writing: the last one says that all of them are there.
_MADE_OF_SHARDS = (
    "quarantine.parquet",
    "duplicates.parquet",
    "deviation.parquet",
    "images.parquet",
)
_OF_IMAGES = ("uri", "width", "height", "digest", "shard", "row", HASH)


def column_of(poolings: Sequence[str], pooling: str) -> str:
    """Return the column of a descriptor in the shards: `embedding` for the first, else its name."""
    return "embedding" if pooling == poolings[0] else pooling


def features_table(
    about: pa.Table,
    *,
    deviation: Sequence[float | None],
    poolings: Sequence[str],
    descriptors: Features,
) -> pa.Table:
    """Build a shard of features, one row for each of m images.

    Parameters
    ----------
    about : table of m rows, with at least these columns
        `item` int64, place in the collection; `uri`, location; `width` and `height` int32, of the
        whole original image in pixels, 0 where it was not decoded; `digest`, sha256 of a file's
        content and of the box in it, null where it could not be read; `perceptual_hash` uint64, of
        the reduced pixels, null where there are none; `error`, reason why an image could not be
        described, or null.
    deviation : 1 - cosine of a descriptor to that in single precision, where that was measured
    poolings : p names, of the columns of descriptors
    descriptors : (m, p, d) float32; rows of images with an error are ignored
    """
    _, p, d = descriptors.shape
    assert p == len(poolings), (p, poolings)
    table = about.select(["item", "uri", "width", "height", "digest", HASH, "error"])
    table = table.append_column("deviation", pa.array(deviation, pa.float32()))
    for index, pooling in enumerate(poolings):
        flat = pa.array(np.ascontiguousarray(descriptors[:, index]).reshape(-1), pa.float32())
        rows = pa.FixedSizeListArray.from_arrays(flat, d)
        tensor = pa.fixed_shape_tensor(pa.float32(), [d])
        column = pa.ExtensionArray.from_storage(tensor, rows)
        table = table.append_column(column_of(poolings, pooling), column)
    return table


def rows_of(column: pa.ChunkedArray) -> Features:
    """Return a fixed-shape tensor column as an array (m, d) float32."""
    parts = [chunk.to_numpy_ndarray() for chunk in column.chunks if len(chunk)]
    if not parts:
        return np.empty((0, column.type.shape[0]), np.float32)
    return np.concatenate(parts)


def finish_features(
    folder: Folder,
    poolings: Sequence[str],
    *,
    total: int,
    max_bad_fraction: float | None,
    flag: str = "",
    deduplicate: bool = False,
    locations: pa.ChunkedArray | None = None,
) -> dict[str, float]:
    """Give readable images dense ids, and set unreadable and repeated ones aside.

    Every step leaves the same files however often it runs, so a kill in between does no harm. The
    shards stay as they are: images.parquet says where in them an image is.

    Parameters
    ----------
    folder : of the extraction; its shards are below `features`
    poolings : p names, in the order of the extraction
    total : number of images that were to be described
    max_bad_fraction : share of them that may be unreadable; None: even all of them
    flag : name of the setting of this share, for the message
    deduplicate
        Keep only the first of images with equal content; the others go to duplicates.parquet.
    locations
        Strings by item, under which the images are stored; None: those of the shards, in which the
        images of one tar or Parquet file may be alike.

    Returns
    -------
    Counts: images, quarantined, duplicates; where it was measured, the mean and the largest
    deviation of descriptors from single precision.

    Raises
    ------
    InputError
        No image, or too few of them, could be read. Shards with bad images are removed, so that
        the same command tries these again once the cause is mended; quarantine.parquet stays.
    DamagedFileError
        A shard or a file made of them is damaged.
    """
    shards = folder / "features"
    if not all(folder.has(name) for name in _MADE_OF_SHARDS):
        if folder.has("images.parquet"):  # written last, it says that the others are there
            folder.delete("images.parquet")
        seen = _seen(shards, locations)
        _set_bad_aside(folder, seen, total, max_bad_fraction, flag)
        if len(seen) < total:
            _remove_all(shards)
        good = seen  # a copy of ten million rows takes a GB
        if seen["error"].null_count < len(seen):
            good = seen.filter(pc.is_null(seen["error"]))
        rows = np.arange(len(good))
        first = _first_of_equals(good["digest"]) if deduplicate else rows
        is_first = first == rows
        repeated, of = good["uri"].filter(~is_first), _taken(good["uri"], first[~is_first])
        folder.write_table("duplicates.parquet", pa.table({"uri": repeated, "of": of}))
        folder.write_table("deviation.parquet", seen.select(["deviation"]).drop_null())
        images = good.select(["item", *_OF_IMAGES]).filter(is_first)
        ids = pa.array(np.arange(len(images), dtype=np.int64))
        folder.write_table("images.parquet", images.add_column(0, "image_id", ids))
    chosen = folder.read_table("images.parquet", ["shard", "row"])
    for pooling in poolings:
        _gather(folder, shards, column_of(poolings, pooling), chosen)
    counts: dict[str, float] = {
        "images": len(chosen),
        "quarantined": len(folder.read_table("quarantine.parquet", ["error"])),
        "duplicates": len(folder.read_table("duplicates.parquet", ["of"])),
    }
    deviation = folder.read_table("deviation.parquet")["deviation"].to_numpy()
    if len(deviation):
        counts |= {"deviation": float(deviation.mean()), "deviation_max": float(deviation.max())}
    return counts


def _set_bad_aside(
    folder: Folder, seen: pa.Table, total: int, limit: float | None, flag: str
) -> None:
    """Write quarantine.parquet; InputError if it has too many images."""
    shards = folder / "features"
    bad = seen.filter(pc.is_valid(seen["error"]))
    folder.write_table("quarantine.parquet", bad.select(["uri", "error"]))
    if limit is None or (len(bad) < total and len(bad) <= limit * total):
        return
    for name in shards.names():
        errors = shards.read_table(name, ["error"])["error"]
        if errors.null_count < len(errors):
            shards.delete(name)
    first = bad.slice(0, 1).to_pylist()[0]
    why = f"{len(bad) / total:.1%} > {flag}{' ' if flag else ''}{limit:.1%}"
    if not limit or len(bad) == total:
        why = "none is left" if limit else "all are needed"
    raise InputError(
        f"{len(bad)} of {total} images could not be read ({why}), the first of them "
        f"{first['uri']}: {first['error']}; "
        f"see {folder.location('quarantine.parquet')} for each"
    )


def _seen(shards: Folder, locations: pa.ChunkedArray | None) -> pa.Table:
    """Read all shards, in order, without the descriptors; `shard` and `row` say where a row was.

    The locations by item, if they are given, take the place of those in the shards.
    """
    columns = ["item", "width", "height", "digest", "error", "deviation"]
    columns += ["uri"] if locations is None else []
    names = shards.names()
    parts = []
    tables = prefetch(lambda name: shards.read_table(name, columns, HASHES), names)
    for number, part in enumerate(tables):
        places = np.full(len(part), number, np.int32), np.arange(len(part), dtype=np.int32)
        if locations is not None:
            part = part.append_column("uri", locations.take(part["item"]).cast(pa.string()))
        parts.append(part.append_column("shard", [places[0]]).append_column("row", [places[1]]))
    return pa.concat_tables(parts)


def _remove_all(shards: Folder) -> None:
    """Delete the shards of an earlier version, which lack the rows that it had set aside.

    Raises
    ------
    DamagedFileError
        Always, for the last of them.
    """
    names = shards.names()
    for name in names[:-1]:
        shards.delete(name)
    raise DamagedFileError(shards.location(names[-1]), "rows are missing in the shards")


def _first_of_equals(digests: pa.ChunkedArray) -> Ids:
    """Return for each image (n,) the row of the first one of the same content."""
    held = digests.combine_chunks()
    words = np.frombuffer(held.buffers()[1] or b"", np.uint64).reshape(-1, 4)
    words = words[held.offset : held.offset + len(held), 0].copy()
    order = np.argsort(words)
    # Few are repeated. Only those that begin alike are compared: a table of all takes a second and
    # 100 MB a million.
    alike = np.flatnonzero(words[order[1:]] == words[order[:-1]])
    rows = np.unique(np.concatenate([order[alike], order[alike + 1]]))
    codes = held.take(pa.array(rows)).dictionary_encode().indices.to_numpy()
    first = np.arange(len(held))
    first[rows] = rows[np.unique(codes, return_index=True)[1]][codes]
    return first


def _taken(column: pa.ChunkedArray, rows: Ids) -> pa.ChunkedArray:
    """Return few entries of a column of strings, which `take` would join: over 2 GB it cannot."""
    wanted, places = np.unique(rows, return_inverse=True)
    flags = np.zeros(len(column), bool)
    flags[wanted] = True
    return column.filter(flags).take(pa.array(places))


def _gather(folder: Folder, shards: Folder, column: str, chosen: pa.Table) -> None:
    """Write one descriptor of chosen rows as <column>.npy ("features" for `embedding`)."""
    names, rows = shards.names(), chosen["row"].to_numpy()
    starts = np.searchsorted(chosen["shard"].to_numpy(), np.arange(len(names) + 1))
    parts = prefetch(lambda name: rows_of(shards.read_table(name, [column])[column]), names)
    first = next(parts)
    with folder.writing(array_name(column)) as sink:
        write_header(sink, (len(rows), first.shape[1]))
        for part, start, end in zip(chain([first], parts), starts, starts[1:], strict=False):
            sink.write(part[rows[start:end]].tobytes())


def array_name(column: str) -> str:
    return "features.npy" if column == "embedding" else f"features-{column}.npy"


def read_features(folder: Folder, poolings: Sequence[str], pooling: str) -> Features:
    """Read the descriptors (n, d) float32 of one pooling, in the order of images.parquet."""
    return Rows(stored_features(folder, poolings, pooling)).read()


def stored_features(folder: Folder, poolings: Sequence[str], pooling: str) -> StoredMatrix:
    """Return what `read_features` reads as a file, of which parts can be read."""
    return StoredMatrix(folder, array_name(column_of(poolings, pooling)))


def moments_table(moments: Moments) -> pa.Table:
    """Store moments as a table of one row, a shard of its stage."""
    arrays = {name: [array.ravel()] for name, array in moments.to_arrays().items()}
    return pa.table({name: pa.array(rows) for name, rows in arrays.items()})


def read_moments(table: pa.Table) -> Moments:
    """Restore moments from the table that `moments_table` made."""
    arrays = {name: table[name][0].values.to_numpy() for name in table.column_names}
    d = len(arrays["mean"])
    return Moments.of_arrays(
        {
            "count": arrays["count"][0],
            "mean": arrays["mean"],
            "scatter": arrays["scatter"].reshape(d, d),
        }
    )
