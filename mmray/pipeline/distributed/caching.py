"""A cache of reduced images, so that the epochs of training do not decode the originals again.

n images. A unit of consecutive images becomes a shard of pixels, see `images.pixel_shards`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from mmray.descriptors.settings import Preprocessing
from mmray.images.collection import Collection
from mmray.images.pixel_shards import PixelShards, arrow_file, pixel_table
from mmray.pipeline.distributed.decoding import Decoder, units_of
from mmray.pipeline.distributed.units import (
    ITEMS,
    UNIT,
    ActorPool,
    ShardForm,
    run_units,
    shard_name,
)
from mmray.system.errors import InputError
from mmray.system.folder import Folder

_FORM = ShardForm("arrow", arrow_file)


class CachingWorker:
    """Worker that turns units of images into shards of the cache."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        images, unit["bytes"] = [], 0
        for seen in self.decoder.images(unit):
            if seen.pixels is None:
                raise InputError(
                    f"{seen.location}: {seen.error}; this image could be read before: restore it, "
                    "then run the same command again; what is done is kept"
                )
            images.append(seen.pixels)
            unit["bytes"] += seen.size
        return pixel_table(images)


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
        (Decoder(Preprocessing(longest_side), max_pixels),),
        output=output,
        pool=pool,
        label=label,
        form=_FORM,
        report=report,
    )


def cached(
    images: Collection, output: Folder, *, longest_side: int, shard_size: int
) -> PixelShards:
    """Return the images as `cache_images` wrote them, in the same order.

    They are the originals decoded with the same `longest_side`, bit for bit. No shard is opened:
    the places follow from the numbers of images.

    Parameters
    ----------
    images, output, longest_side, shard_size : the arguments of `cache_images`

    Raises
    ------
    InputError
        A shard is missing.
    """
    units = units_of(images, shard_size=shard_size, longest_side=longest_side)
    shards = [shard_name(unit, _FORM) for unit in units[UNIT].to_pylist()]
    present = set(output.names())
    missing = [name for name in shards if name not in present]
    if missing:
        raise InputError(
            f"{output.location(missing[0])}: missing, as {len(missing)} of the {len(shards)} files "
            f"of cached images are; delete the folder {output.uri}, then run the same command again"
        )
    return PixelShards(output, dict(zip(shards, units[ITEMS].to_pylist(), strict=True)))
