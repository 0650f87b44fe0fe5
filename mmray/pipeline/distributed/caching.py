"""A cache of reduced images, so that the epochs of training do not decode the originals again.

n images. A unit of consecutive images becomes a Parquet shard with one column of image files and a
row group per image: a single image, drawn at random, is then read without its neighbours.

The images are stored as uncompressed bitmaps (BMP): of the lossless formats that `images.decoding`
reads, PIL reads these fastest. An image of 362 x 272 pixels takes 0.24 ms as BMP, 0.31 as TIFF, and
2.4 as PNG, as much as decoding a small JPEG original. It has 290 kB as BMP and 130 as PNG. The
compression of Parquet saves up to a third of the space and takes 0.1 to 0.3 ms more.
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from mmray.images.collection import SCHEMA, Collection
from mmray.pipeline.distributed.decoding import Decoder, units_of
from mmray.pipeline.distributed.units import ITEMS, UNIT, ActorPool, run_units, shard_name
from mmray.system.arrays import Pixels
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import uri_of

_COLUMN = "image"
# Statistics of pixels are useless, and a dictionary of them would be a second copy; both, like each
# row, lengthen the footer, which is read again with every image.
_LAYOUT = {
    "row_group_size": 1,
    "compression": "none",
    "use_dictionary": False,
    "write_statistics": False,
    "write_page_checksum": True,  # rows are read alone, so the digest of the file is not checked
}


class CachingWorker:
    """Worker that turns units of images into shards of the cache."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        bitmaps, unit["bytes"] = [], 0
        for seen in self.decoder.images(unit):
            if seen.pixels is None:
                raise InputError(
                    f"{seen.location}: {seen.error}; this image could be read before: restore it, "
                    "then run the same command again; what is done is kept"
                )
            bitmaps.append(_bitmap(seen.pixels))
            unit["bytes"] += seen.size
        return pa.table({_COLUMN: pa.array(bitmaps, pa.binary())})


def _bitmap(pixels: Pixels) -> bytes:
    """Encode pixels (h, w, 3) as the content of a BMP file."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "BMP")
    return file.getvalue()


def cache_images(
    images: Collection,
    *,
    longest_side: int,
    max_pixels: int,
    output: Folder,
    pool: ActorPool,
    shard_size: int,
    label: str,
    report: Callable[[Mapping[str, float]], None] | None = None,
) -> None:
    """Write all images, cropped to their boxes and reduced, as shards into `output`.

    Existing shards are kept: other images, another `longest_side` or another `shard_size` need
    another folder `output`.

    Parameters
    ----------
    images : n images, all of which could be read before
    longest_side : pixels to which they are reduced, never enlarged; see `images.decoding.decode`
    max_pixels : an image with more is refused
    output : folder of the shards
    pool : the actors to run
    shard_size : most images of a shard
    label : of the progress display
    report : receives the figures of the progress now and then

    Raises
    ------
    InputError
        An image can no longer be read. Shards that are written stay.
    """
    run_units(
        units_of(images, shard_size=shard_size, longest_side=longest_side),
        CachingWorker,
        (Decoder(longest_side, max_pixels),),
        output=output,
        pool=pool,
        label=label,
        layout=_LAYOUT,
        report=report,
    )


def cached(images: Collection, output: Folder, *, longest_side: int, shard_size: int) -> Collection:
    """Return the images as `cache_images` wrote them, in the same order, under the same names.

    Decoded with the same `longest_side`, or None, they have the pixels of the originals decoded
    with it, bit for bit. No shard is opened: the places follow from the numbers of images.

    Parameters
    ----------
    images, output, longest_side, shard_size : the arguments of `cache_images`

    Raises
    ------
    InputError
        A shard is missing.
    """
    units = units_of(images, shard_size=shard_size, longest_side=longest_side)
    shards = [shard_name(unit) for unit in units[UNIT].to_pylist()]
    present = set(output.names())
    missing = [name for name in shards if name not in present]
    if missing:
        raise InputError(
            f"{output.location(missing[0])}: missing, as {len(missing)} of the {len(shards)} files "
            f"of cached images are; delete the folder {output.uri}, then run the same command again"
        )
    sizes, n = units[ITEMS].to_numpy(), len(images)
    uris = pa.array([_uri(output, name) for name in shards], pa.large_string())
    columns = {
        "uri": uris.take(pa.array(np.repeat(np.arange(len(shards)), sizes))),
        "name": images.table["name"],
        "size": np.full(n, -1),
        "offset": np.zeros(n, np.int64),  # a row group has one row
        "row_group": (np.arange(n) - np.repeat(units["first"].to_numpy(), sizes)).astype(np.int32),
        "column": pa.repeat(pa.scalar(_COLUMN, pa.large_string()), n),
        "box": pa.nulls(n, SCHEMA.field("box").type),
        "error": pa.nulls(n, pa.large_string()),
    }
    return Collection(pa.table(columns, SCHEMA))


def _uri(folder: Folder, name: str) -> str:
    """Return the location of a file in the form that collections use."""
    return folder.location(name) if folder.local is None else uri_of(folder.local / name)
