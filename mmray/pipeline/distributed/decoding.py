"""Decoding of images on Ray: units of images, and their decoder."""

import hashlib
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from mmray.descriptors.known import KnownDescriptors, KnownImage
from mmray.descriptors.shards import HASH
from mmray.images.collection import Collection, ImageFile, image_of
from mmray.images.containers import read_images
from mmray.images.cropping import center_crop
from mmray.images.decoding import Decoded, byte_limit, decode
from mmray.images.isolated_decoding import IsolatedDecoder
from mmray.images.perceptual_hash import perceptual_hash
from mmray.pipeline.distributed.units import ITEMS, RESTARTED, UNIT
from mmray.system.arrays import Box, Ids, Pixels
from mmray.system.locations import error_line

PIXEL_BUDGET = 256 << 20  # approximate bytes of the decoded images of a unit
UNKNOWN_PHOTO = 36 << 20  # bytes of a decoded photo of 12 megapixels
_EXPANSION = 12  # approximate bytes of pixels for a byte of JPEG


def units_of(images: Collection, *, shard_size: int, longest_side: int | None) -> pa.Table:
    """Divide images into units of `shard_size`, or fewer where the pixel budget is smaller."""
    starts = _starts(images, shard_size, longest_side)
    ends = np.append(starts[1:], len(images)).astype(np.int64)
    rows = pa.StructArray.from_arrays(
        [images.table[name].combine_chunks() for name in images.table.column_names],
        images.table.column_names,
    )
    return pa.table(
        {
            UNIT: pa.array(np.arange(len(starts))),
            ITEMS: pa.array(ends - starts),
            "first": pa.array(starts),
            "images": pa.LargeListArray.from_arrays(np.append(starts, len(images)), rows),
        }
    )


def _starts(images: Collection, shard_size: int, longest_side: int | None) -> Ids:
    """Return the place of the first image of each unit."""
    if longest_side is not None:
        size = max(1, min(shard_size, PIXEL_BUDGET // (3 * longest_side**2)))
        return np.arange(0, len(images), size)
    sizes = images.table["size"].to_numpy()
    pixels = np.where(sizes < 0, UNKNOWN_PHOTO, _EXPANSION * sizes)
    starts, filled = [0], 0
    for place, size in enumerate(pixels.tolist()):
        if place > starts[-1] and (
            filled + size > PIXEL_BUDGET or place - starts[-1] == shard_size
        ):
            starts.append(place)
            filled = 0
        filled += size
    return np.array(starts)


class Decoder:
    """Decoder of units: reads and decodes their images; failures become error texts.

    Parameters
    ----------
    longest_side, max_pixels : see `decode`
    crop : side of the central crop to keep; None: whole images
    known : reference to `KnownDescriptors`, in a list; images among them are not decoded
    """

    def __init__(
        self,
        longest_side: int | None,
        max_pixels: int,
        crop: int | None = None,
        known: Sequence[ray.ObjectRef[KnownDescriptors]] = (),
    ) -> None:
        self.longest_side, self.max_pixels, self.crop = longest_side, max_pixels, crop
        self.references = known
        self.isolated = IsolatedDecoder()

    @cached_property
    def known(self) -> KnownDescriptors | None:
        return ray.get(self.references[0]) if self.references else None

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        # An image may have ended the actor before, and would end it again.
        isolated = unit.get(RESTARTED, False)
        items = [image_of(row) for row in unit["images"]]
        found, digests, hashes, total = list[Decoded | KnownImage](), [], list[int | None](), 0
        for item, data in zip(
            items, read_images(items, limit=byte_limit(self.max_pixels)), strict=True
        ):
            digest = None if isinstance(data, OSError) else _digest(data, item.box)
            known = self.known.find(digest) if self.known and digest else None
            if known is not None and known.perceptual_hash is not None:
                found.append(known)
                hashes.append(known.perceptual_hash)
            else:  # one that an earlier version described lacks the hash alone
                decoded = self._decode(item, data, self.isolated if isolated else decode)
                found.append(known or decoded)
                hashes.append(None if decoded.pixels is None else perceptual_hash(decoded.pixels))
            digests.append(digest)
            total += 0 if isinstance(data, OSError) else len(data)
        fresh = [each for each in found if isinstance(each, Decoded)]
        pixels = [each.pixels for each in fresh if each.pixels is not None]
        if self.crop is not None:  # here and not beside the network, so that less is sent
            pixels = [center_crop(image, self.crop) for image in pixels]
        known_rows = [each.descriptors for each in found if isinstance(each, KnownImage)]
        return {
            UNIT: unit[UNIT],
            ITEMS: unit[ITEMS],
            "first": unit["first"],
            "uri": [item.location for item in items],
            "width": [each.width for each in found],
            "height": [each.height for each in found],
            "digest": digests,
            # As bytes: Arrow finds no type for a list of numbers of 64 bits.
            HASH: [None if each is None else each.to_bytes(8, "big") for each in hashes],
            "error": [each.error if isinstance(each, Decoded) else None for each in found],
            "known": [isinstance(each, KnownImage) for each in found],
            "descriptors": b"".join(known_rows),  # type: ignore[arg-type] # likewise
            "shape": [list(image.shape) for image in pixels],
            "pixels": b"".join(pixels),  # type: ignore[arg-type] # arrays are buffers
            "bytes": total,
            "bad": len(fresh) - len(pixels),
        }

    def _decode(
        self, item: ImageFile, data: bytes | OSError, decode: Callable[..., Decoded]
    ) -> Decoded:
        if isinstance(data, OSError):
            return Decoded(None, 0, 0, item.error or error_line(data))
        return decode(
            data, longest_side=self.longest_side, box=item.box, max_pixels=self.max_pixels
        )


def _digest(content: bytes, box: Box | None) -> bytes:
    """Return the sha256 of a file's content, and of the box that is cut out of it."""
    digest = hashlib.sha256(content)
    if box is not None:
        digest.update(np.array(box).tobytes())
    return digest.digest()


def unpacked(pixels: bytes, shapes: Sequence[Sequence[int]]) -> list[Pixels]:
    """Split a buffer into images of the given shapes (h, w, 3), which lie one after the other."""
    flat = np.frombuffer(pixels, np.uint8)
    ends = np.cumsum([height * width * depth for height, width, depth in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=False)]
