"""Decoding of images on Ray: units of images, their decoder, and groups of decoded images.

m images of a group, h x w pixels.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import ray
from numpy.typing import NDArray

from mmray.descriptors.known import KnownDescriptors, KnownImage
from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.shards import HASH
from mmray.images.collection import Collection, ImageFile, image_of
from mmray.images.containers import read_images
from mmray.images.decoding import BatchLimit, Decoded, byte_limit, decode
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
    sizes = np.minimum(images.table["size"].to_numpy(), PIXEL_BUDGET)
    pixels = np.where(sizes < 0, UNKNOWN_PHOTO, _EXPANSION * sizes)
    filled = np.concatenate([[0], np.cumsum(pixels)])  # by the images before each place
    starts, end = [0], 0
    while True:  # a turn for each unit: an image alone may be larger than the budget
        within = int(np.searchsorted(filled, filled[end] + PIXEL_BUDGET, side="right")) - 1
        end = min(max(within, end + 1), end + shard_size)
        if end >= len(images):
            break
        starts.append(end)
    return np.array(starts)


@dataclass(frozen=True, eq=False)
class SeenImage:
    """An image that was read: its pixels, its known descriptors, or the reason why it has none.

    Attributes
    ----------
    item : its place in the collection
    location : for messages
    digest : sha256 of the file's content, and of the box in it; None where it could not be read
    size : bytes of the content, 0 where it could not be read
    found : what became of it
    perceptual_hash : of the reduced pixels; None where there are none
    """

    item: int
    location: str
    digest: bytes | None
    size: int
    found: Decoded | KnownImage
    perceptual_hash: int | None = None

    @property
    def pixels(self) -> Pixels | None:
        return self.found.pixels if isinstance(self.found, Decoded) else None

    @property
    def error(self) -> str | None:
        return self.found.error if isinstance(self.found, Decoded) else None


ABOUT = pa.schema(
    [
        (UNIT, pa.int64()),
        ("item", pa.int64()),
        ("uri", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("digest", pa.binary(32)),
        (HASH, pa.uint64()),
        ("error", pa.string()),
        ("bytes", pa.int64()),
        ("sample", pa.bool_()),
    ]
)


@dataclass(frozen=True, eq=False)
class ImageGroup:
    """Images to describe in one forward pass, or images with nothing to describe.

    Attributes
    ----------
    about : table of m rows with the schema ABOUT; `sample` marks the first decoded image of a unit
    pixels : (m, h, w, 3) uint8; None for known images and for those that cannot be decoded
    known : (m, p, d) float32, the descriptors of known images, rows of zeros for the others; None
        where none is known
    """

    about: pa.Table
    pixels: NDArray[np.uint8] | None = None
    known: NDArray[np.float32] | None = None

    def to_row(self) -> pa.Table:
        """Return a table with this group as its only row, without a copy of the pixels."""
        about = self.about.to_struct_array().combine_chunks()
        columns: dict[str, pa.Array] = {
            "about": pa.ListArray.from_arrays(np.array([0, len(about)], np.int32), about)
        }
        for name, array in (("pixels", self.pixels), ("known", self.known)):
            shape = [] if array is None else list(array.shape)
            columns[f"{name}_shape"] = pa.array([shape], pa.list_(pa.int64()))
            buffer = pa.py_buffer(b"" if array is None else np.ascontiguousarray(array))
            ends = pa.py_buffer(np.array([0, buffer.size], np.int64))
            columns[name] = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, buffer])
        return pa.table(columns)

    @classmethod
    def of_row(cls, row: pa.Table) -> "ImageGroup":
        """Restore a group from a table of one row; its arrays are views that cannot be written."""
        arrays = []
        for name, dtype in (("pixels", np.uint8), ("known", np.float32)):
            shape = row[f"{name}_shape"][0].as_py()
            buffer = row[name][0].as_buffer()
            arrays.append(np.frombuffer(buffer, dtype).reshape(shape) if shape else None)
        return cls(pa.Table.from_struct_array(row["about"][0].values), *arrays)


class Decoder:
    """Decoder of units: reads and decodes their images; failures become error texts.

    Parameters
    ----------
    preprocessing : sizes and crop of the images
    max_pixels : see `decode`
    known : reference to `KnownDescriptors`, in a list; images among them are not decoded
    """

    def __init__(
        self,
        preprocessing: Preprocessing,
        max_pixels: int,
        known: Sequence[ray.ObjectRef[KnownDescriptors]] = (),
    ) -> None:
        self.preprocessing, self.max_pixels = preprocessing, max_pixels
        self.references = known
        self.isolated = IsolatedDecoder()

    @cached_property
    def known(self) -> KnownDescriptors | None:
        return ray.get(self.references[0]) if self.references else None

    def images(self, unit: dict[str, Any]) -> Iterator[SeenImage]:
        """Yield the images of a unit, in order, as they are decoded."""
        # An image may have ended the actor before, and would end it again.
        decoder = self.isolated if unit.get(RESTARTED, False) else decode
        items = [image_of(row) for row in unit["images"]]
        contents = read_images(items, limit=byte_limit(self.max_pixels))
        for place, (item, data) in enumerate(zip(items, contents, strict=True), unit["first"]):
            if isinstance(data, OSError):
                failed = Decoded(None, 0, 0, item.error or error_line(data))
                yield SeenImage(place, item.location, None, 0, failed)
                continue
            digest = _digest(data, item.box)
            known = self.known.find(digest) if self.known else None
            found: Decoded | KnownImage
            hashed: int | None
            if known is not None and known.perceptual_hash is not None:
                found, hashed = known, known.perceptual_hash
            else:  # one that an earlier version described lacks the hash alone
                decoded, hashed = self._decoded(item, data, decoder)
                found = known or decoded
            yield SeenImage(place, item.location, digest, len(data), found, hashed)

    def _decoded(
        self, item: ImageFile, data: bytes, decode: Callable[..., Decoded]
    ) -> tuple[Decoded, int | None]:
        """Decode an image, and hash it before it is cropped."""
        decoded = decode(
            data,
            longest_side=self.preprocessing.longest_side,
            enlarge=self.preprocessing.enlarge,
            box=item.box,
            stored_box=True,
            max_pixels=self.max_pixels,
        )
        if decoded.pixels is None:
            return decoded, None
        hashed = perceptual_hash(decoded.pixels)
        # Here and not beside the network, so that less is sent.
        return replace(decoded, pixels=self.preprocessing.cropped(decoded.pixels)), hashed

    def groups(self, units: Iterable[dict[str, Any]], limit: BatchLimit) -> Iterator[ImageGroup]:
        """Yield the images of units in groups of one shape, each as soon as it is full.

        The groups depend on the units and the limit alone. While more than PIXEL_BUDGET waits, the
        largest group goes first, full or not.

        Parameters
        ----------
        units : whose images may share groups
        limit : of a group
        """
        waiting: dict[tuple[int, ...], list[tuple[int, SeenImage, bool]]] = {}
        held = 0
        for unit in units:
            settled, first = [], True
            for seen in self.images(unit):
                if seen.pixels is None:
                    settled.append((unit[UNIT], seen, False))
                    continue
                shape = seen.pixels.shape
                waiting.setdefault(shape, []).append((unit[UNIT], seen, first))
                held, first = held + seen.pixels.nbytes, False
                if len(waiting[shape]) < limit.of_shape(*shape[:2]):
                    if held <= PIXEL_BUDGET:
                        continue
                    shape = max(waiting, key=lambda each: len(waiting[each]) * np.prod(each))
                full = _group(waiting.pop(shape))
                assert full.pixels is not None
                held -= full.pixels.nbytes
                yield full
            if settled:
                yield _group(settled)
        while waiting:
            yield _group(waiting.pop(next(iter(waiting))))


def _group(images: Sequence[tuple[int, SeenImage, bool]]) -> ImageGroup:
    """Make a group of images, each with its unit and whether it is a sample of this."""
    seen = [image for _, image, _ in images]
    about = pa.table(
        [
            [unit for unit, _, _ in images],
            [image.item for image in seen],
            [image.location for image in seen],
            [image.found.width for image in seen],
            [image.found.height for image in seen],
            [image.digest for image in seen],
            [image.perceptual_hash for image in seen],
            [image.error for image in seen],
            [image.size for image in seen],
            [sample for _, _, sample in images],
        ],
        schema=ABOUT,
    )
    pixels = [image.pixels for image in seen if image.pixels is not None]
    if pixels:
        return ImageGroup(about, np.stack(pixels))
    rows = [
        image.found.descriptors if isinstance(image.found, KnownImage) else None for image in seen
    ]
    shape = next((row.shape for row in rows if row is not None), None)
    if shape is None:
        return ImageGroup(about)
    known = np.stack([np.zeros(shape, np.float32) if row is None else row for row in rows])
    return ImageGroup(about, known=known)


def _digest(content: bytes, box: Box | None) -> bytes:
    """Return the sha256 of a file's content, and of the box that is cut out of it."""
    digest = hashlib.sha256(content)
    if box is not None:
        digest.update(np.array(box).tobytes())
    return digest.digest()
