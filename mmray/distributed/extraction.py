"""Extraction: images to descriptors, a shard of images at a time."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch

from mmray.arrays import Pixels
from mmray.artifacts import features_table
from mmray.collection import ImageFile
from mmray.config import Pooling
from mmray.distributed.stage import ITEMS, UNIT, Pool, run_units
from mmray.images import load_image
from mmray.models import EmbeddingNet
from mmray.storage import Folder
from mmray.training import embed

PIXEL_BUDGET = 256 << 20  # bytes of decoded images in a unit, at most


def units_of(items: Sequence[ImageFile], *, shard_size: int, longest_side: int) -> pa.Table:
    """Table of work: consecutive items, `shard_size` a unit or as many as fit the pixel budget."""
    size = max(1, min(shard_size, PIXEL_BUDGET // (3 * longest_side**2)))
    starts = range(0, len(items), size)
    slices = [items[start : start + size] for start in starts]
    return pa.table(
        {
            UNIT: pa.array(range(len(slices)), pa.int64()),
            ITEMS: pa.array([len(part) for part in slices], pa.int64()),
            "first": pa.array(starts, pa.int64()),
            "uri": pa.array([[item.uri for item in part] for part in slices]),
            "box": pa.array(
                [[item.box for item in part] for part in slices],
                pa.list_(pa.list_(pa.float64())),
            ),
        }
    )


class Decoder:
    """Reads and decodes the images of a unit; what cannot be read becomes an error text."""

    def __init__(self, longest_side: int) -> None:
        self.longest_side = longest_side

    def __call__(self, unit: dict[str, Any]) -> dict[str, Any]:
        decoded = [
            load_image(uri, longest_side=self.longest_side, box=box)
            for uri, box in zip(unit["uri"], unit["box"], strict=True)
        ]
        pixels = [np.empty((0, 0, 3), np.uint8) if d.pixels is None else d.pixels for d in decoded]
        return {
            **unit,
            "shape": [list(image.shape) for image in pixels],
            "pixels": [image.tobytes() for image in pixels],
            "width": [d.width for d in decoded],
            "height": [d.height for d in decoded],
            "error": [d.error for d in decoded],
        }


class ExtractionWorker:
    """Holds the network and turns units of decoded images into shards of descriptors."""

    def __init__(
        self,
        network: list[ray.ObjectRef[Any]],
        poolings: Sequence[Pooling],
        batch_size: int,
        threads: int,
    ) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.set_num_threads(threads)
        model: EmbeddingNet = ray.get(network[0])
        self.model = model.to(self.device)
        self.poolings, self.batch_size = poolings, batch_size

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        images = [
            as_image(data, shape) for data, shape in zip(unit["pixels"], unit["shape"], strict=True)
        ]
        good = [row for row, image in enumerate(images) if image.size]
        descriptors = np.zeros((len(images), len(self.poolings), self.model.dim), np.float32)
        descriptors[good] = embed(
            self.model,
            [images[row] for row in good],
            self.poolings,
            batch_size=self.batch_size,
            device=self.device,
        )
        columns = zip(unit["uri"], unit["width"], unit["height"], unit["error"], strict=True)
        records = [
            {
                "image_id": unit["first"] + row,
                "uri": uri,
                "width": width,
                "height": height,
                "error": error,
            }
            for row, (uri, width, height, error) in enumerate(columns)
        ]
        return features_table(records, self.poolings, descriptors)


def as_image(data: bytes, shape: Sequence[int]) -> Pixels:
    return np.frombuffer(data, np.uint8).reshape(shape)


def extract(
    items: Sequence[ImageFile],
    model: EmbeddingNet,
    *,
    output: Folder,
    longest_side: int,
    poolings: Sequence[Pooling],
    shard_size: int,
    batch_size: int,
    pool: Pool,
    label: str,
) -> None:
    """Write the descriptors of all items as shards into `output`; those that are there are kept."""
    run_units(
        units_of(items, shard_size=shard_size, longest_side=longest_side),
        ExtractionWorker,
        ([ray.put(model.cpu())], tuple(poolings), batch_size, pool.cpus),
        output=output,
        pool=pool,
        label=label,
        prepare=Decoder(longest_side),
    )
