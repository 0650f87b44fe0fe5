"""Extraction as on GPUs, with a double in the GPU's place that takes a given time for an image.

It shows without a GPU how long one would wait: for decoding, for what carries images to it, for the
writing of shards.
"""

import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmray.descriptors.embedding import batch_limit
from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.shards import features_table
from mmray.images.collection import Collection
from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.capacity import Capacity
from mmray.pipeline.distributed.decoding import Decoder, ImageGroup, units_of
from mmray.pipeline.distributed.image_units import stream_image_units
from mmray.pipeline.distributed.units import UNIT, ActorPool
from mmray.system.folder import Folder
from mmray.system.locations import prefetch

DIMS = 512


class SleepingDevice:
    """Worker that sleeps instead of describing, one call at a time, and notes when.

    Parameters
    ----------
    seconds : for an image
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self.turn = seconds, threading.Lock()

    def __call__(self, groups: Sequence[ImageGroup]) -> pa.Table:
        tables = []
        for group in groups:
            m = len(group.about)
            with self.turn:
                begin = time.time()
                time.sleep(self.seconds * m)
                end = time.time()
            rows = features_table(
                group.about,
                deviation=[None] * m,
                poolings=("mac",),
                descriptors=np.zeros((m, 1, DIMS), np.float32),
            )
            for name in (UNIT, "bytes"):
                rows = rows.append_column(name, group.about[name])
            tables.append(
                rows.append_column("begin", [[begin] * m]).append_column("end", [[end] * m])
            )
        return pa.concat_tables(tables)

    @staticmethod
    def shard(rows: pa.Table) -> pa.Table:
        return rows.sort_by("item")


@dataclass(frozen=True, kw_only=True)
class DeviceUse:
    """The use that was made of the device.

    Attributes
    ----------
    images : that it had
    batch : images of one shape in a pass, on average
    seconds : from its first pass to the end of its last
    busy : the share of them in which it worked
    before : seconds from the start of the stage to its first pass
    """

    images: int
    batch: float
    seconds: float
    busy: float
    before: float

    def row(self) -> tuple[str, ...]:
        """Return the row of the printed table."""
        times = f"{self.before:.1f}", f"{self.seconds:.1f}", f"{self.images / self.seconds:.1f}"
        return (str(self.images), f"{self.batch:.1f}", *times, f"{self.busy:.1%}")


def measure_device_use(
    images: Collection, *, longest_side: int, rate: float, cpus: int, shard_size: int
) -> DeviceUse:
    """Measure how busy a device is that describes `rate` images a second, with `cpus` decoding."""
    # The actor has one more, and Ray Data's own tasks.
    capacity = Capacity(given_cpus=cpus + 2)
    cluster.connect(capacity)
    with tempfile.TemporaryDirectory() as folder:
        output = Folder(folder)
        start = time.time()
        stream_image_units(
            units_of(images, shard_size=shard_size, longest_side=longest_side),
            Decoder(Preprocessing(longest_side), 10**9),
            SleepingDevice,
            (1 / rate,),
            limit=batch_limit("cuda", 32),
            output=output,
            pool=ActorPool(maximum=1, capacity=capacity),
            label="stream",
        )
        tables = prefetch(lambda name: output.read_table(name, ["begin", "end"]), output.names())
        times = pa.concat_tables(tables)
    begins, first = np.unique(times["begin"].to_numpy(), return_index=True)
    ends = times["end"].to_numpy()[first]
    seconds = float(ends.max() - begins.min())
    return DeviceUse(
        images=len(times),
        batch=len(times) / len(begins),
        seconds=seconds,
        busy=float((ends - begins).sum()) / seconds,
        before=float(begins.min() - start),
    )
