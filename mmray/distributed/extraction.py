"""Extraction: images to descriptors, a shard of images at a time."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from mmray.descriptors.embedding import embed, region_moments
from mmray.descriptors.inference import fused
from mmray.descriptors.moments import Moments
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import Description
from mmray.descriptors.shards import features_table, moments_table, read_moments
from mmray.distributed.stage import ITEMS, RESTARTED, UNIT, Pool, run_units
from mmray.images.collection import Collection, ImageFile, image_of
from mmray.images.containers import read_images
from mmray.images.cropping import center_crop
from mmray.images.decoding import Decoded, byte_limit, decode
from mmray.images.isolated_decoding import CarefulDecoder
from mmray.system.arrays import Features, Ids, Pixels
from mmray.system.folder import Folder
from mmray.system.locations import ahead, reason

PIXEL_BUDGET = 256 << 20  # bytes of decoded images in a unit, about
UNKNOWN_PHOTO = 36 << 20  # bytes of a decoded photo of 12 megapixels
_EXPANSION = 12  # bytes of pixels for a byte of JPEG, about


def units_of(images: Collection, *, shard_size: int, longest_side: int | None) -> pa.Table:
    """Table of work: consecutive images, `shard_size` a unit or as many as fit the pixel budget."""
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
    """The first image of each unit."""
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
    """Reads and decodes the images of a unit; what cannot be read becomes an error text."""

    def __init__(self, longest_side: int | None, max_pixels: int, crop: int | None = None) -> None:
        self.longest_side, self.max_pixels, self.crop = longest_side, max_pixels, crop
        self.careful = CarefulDecoder()

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        # Whatever ended the actor may have been an image, and it would end it again.
        careful = unit.get(RESTARTED, False)
        items = [image_of(row) for row in unit["images"]]
        decoded, digests, total = [], [], 0
        for item, data in zip(
            items, read_images(items, limit=byte_limit(self.max_pixels)), strict=True
        ):
            decoded.append(self._decode(item, data, self.careful if careful else decode))
            digests.append(None if isinstance(data, OSError) else hashlib.sha256(data).digest())
            total += 0 if isinstance(data, OSError) else len(data)
        pixels = [each.pixels for each in decoded if each.pixels is not None]
        if self.crop is not None:  # here, not beside the network: less is sent to it
            pixels = [center_crop(image, self.crop) for image in pixels]
        return {
            UNIT: unit[UNIT],
            ITEMS: unit[ITEMS],
            "first": unit["first"],
            "uri": [item.location for item in items],
            "width": [each.width for each in decoded],
            "height": [each.height for each in decoded],
            "digest": digests,
            "error": [each.error for each in decoded],
            "shape": [list(image.shape) for image in pixels],
            "pixels": b"".join(pixels),  # type: ignore[arg-type] # arrays are buffers
            "bytes": total,
            "bad": len(items) - len(pixels),
        }

    def _decode(
        self, item: ImageFile, data: bytes | OSError, decode: Callable[..., Decoded]
    ) -> Decoded:
        if isinstance(data, OSError):
            return Decoded(None, 0, 0, item.error or reason(data))
        return decode(
            data, longest_side=self.longest_side, box=item.box, max_pixels=self.max_pixels
        )


def _prepared_device(threads: int) -> torch.device:
    """Where this actor computes."""
    # oneDNN compiles a kernel for each layer and shape of a batch, and keeps but 1,024: with images
    # of many shapes it would compile most of the time (bfloat16: 11.4 ms an image instead of 8).
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    torch.set_num_threads(threads)
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class ExtractionWorker:
    """Holds the network and turns units of decoded images into shards of descriptors."""

    def __init__(self, network: list[ray.ObjectRef[Any]], how: Description, threads: int) -> None:
        self.device = _prepared_device(threads)
        model: EmbeddingNet = ray.get(network[0])
        self.exact = fused(model).to(self.device)
        self.reduced = None
        if how.precision == "bfloat16":
            self.reduced = fused(model, dtype=torch.bfloat16).to(self.device)
        self.how, self.regions = how, how.regions.to(self.device)

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        images = unpacked(unit["pixels"], unit["shape"])
        good = np.flatnonzero([error is None for error in unit["error"]])
        shape = (unit[ITEMS], len(self.how.poolings), self.exact.width(self.how.poolings))
        descriptors = np.zeros(shape, np.float32)
        deviations: list[float | None] = [None] * unit[ITEMS]
        descriptors[good] = self._embed(self.reduced or self.exact, images)
        if self.reduced is not None and images:
            # One image a unit, also in single precision: cheap, and spread over the collection.
            exact = self._embed(self.exact, images[:1])[0]
            deviations[good[0]] = 1 - (descriptors[good[0]] * exact).sum(axis=1).min()
        return features_table(
            item=unit["first"] + np.arange(unit[ITEMS]),
            **{name: unit[name] for name in ("uri", "width", "height", "digest", "error")},
            deviation=deviations,
            poolings=self.how.poolings,
            descriptors=descriptors,
        )

    def _embed(self, model: EmbeddingNet, images: Sequence[Pixels]) -> Features:
        """(m, p, d)."""
        how = self.how
        return embed(
            model,
            images,
            how.poolings,
            batch_size=how.batch_size,
            device=self.device,
            scales=how.scales,
            regions=self.regions,
        )


class RegionWorker:
    """Sums up the vectors of the regions of a unit's images, from which a PCA is learned."""

    def __init__(self, network: list[ray.ObjectRef[Any]], how: Description, threads: int) -> None:
        self.device = _prepared_device(threads)
        self.model = fused(ray.get(network[0])).to(self.device)
        self.how = how

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        moments = region_moments(
            self.model,
            unpacked(unit["pixels"], unit["shape"]),
            self.how.regions,
            scales=self.how.scales,
            batch_size=self.how.batch_size,
            device=self.device,
        )
        return moments_table(moments)


def unpacked(pixels: bytes, shapes: Sequence[Sequence[int]]) -> list[Pixels]:
    """The images, of shapes (h, w, 3), that lie one after the other in a buffer."""
    flat = np.frombuffer(pixels, np.uint8)
    ends = np.cumsum([height * width * depth for height, width, depth in shapes])
    return [part.reshape(shape) for part, shape in zip(np.split(flat, ends), shapes, strict=False)]


def extract(
    images: Collection,
    model: EmbeddingNet,
    *,
    how: Description,
    output: Folder,
    shard_size: int,
    pool: Pool,
    label: str,
    report: Callable[[Mapping[str, float]], None] | None = None,
    most_bad: int | None = None,
) -> None:
    """Write the descriptors of all images as shards into `output`; those that are there are kept.

    Where more images than `most_bad` cannot be read it ends early.
    """
    _run(
        ExtractionWorker,
        images,
        model,
        how,
        output=output,
        shard_size=shard_size,
        pool=pool,
        label=label,
        report=report,
        most_bad=most_bad,
    )


def sum_up_regions(
    images: Collection,
    model: EmbeddingNet,
    *,
    how: Description,
    output: Folder,
    shard_size: int,
    pool: Pool,
    label: str,
) -> Moments:
    """Moments of the vectors of all regions of the images, those that cannot be read left out.

    Those of a unit are written as a shard into `output`; the ones that are there are kept.
    """
    _run(
        RegionWorker,
        images,
        model,
        how,
        output=output,
        shard_size=shard_size,
        pool=pool,
        label=label,
    )
    total = Moments.none(model.channels)
    for table in ahead(output.read_table, output.names()):
        total = total.merge(read_moments(table))
    return total


def _run(
    worker: type[ExtractionWorker | RegionWorker],
    images: Collection,
    model: EmbeddingNet,
    how: Description,
    *,
    shard_size: int,
    pool: Pool,
    **options: Any,
) -> None:
    """`run_units` of decoded images; the options are its own."""
    run_units(
        units_of(images, shard_size=shard_size, longest_side=how.longest_side),
        worker,
        ([ray.put(model.cpu())], how, pool.cpus),
        pool=pool,
        prepare=Decoder(how.longest_side, how.max_pixels, how.crop),
        ahead_bytes=PIXEL_BUDGET if pool.gpus else 0,
        **options,
    )
