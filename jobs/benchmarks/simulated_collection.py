"""A large collection that is simulated: a list of images, few of which exist, and their shards.

n images, m of them in a unit. Units are folders of files and tar files in turn.
"""

import io
import os
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from mmray.descriptors.shards import HASH, features_table
from mmray.images.collection import SCHEMA, Collection
from mmray.images.containers import index
from mmray.pipeline.distributed.units import shard_name
from mmray.system.arrays import Ids
from mmray.system.tables import table_file

UNIT_SIZE = 256  # images in a unit
DIMS = 16  # of a descriptor
_PART = 65_536  # images made at a time, as a listing does
_COPIES = 0.01  # share of the images whose content is that of another


class SimulatedCollection:
    """A list of n images, and the shards of all units but those that are to be described.

    Parameters
    ----------
    folder : in which the images that exist are made
    n : number of images
    described_every : one of so many units is made of images that exist, and has no shard
    """

    def __init__(self, folder: Path, n: int, described_every: int) -> None:
        self.folder, self.n = folder, n
        self.units = -(-n // UNIT_SIZE)
        self.described = range(0, self.units, described_every)
        self._make_photos()

    def parts(self) -> list[Collection]:
        """Return the images as a listing has them: in parts."""
        return [
            self._part(np.arange(start, min(start + _PART, self.n)))
            for start in range(0, self.n, _PART)
        ]

    def _make_photos(self) -> None:
        """Write one tar file and one folder of photos, and a link to one of them for each unit."""
        rng = np.random.default_rng(0)
        first, files = self.folder / "photos.tar", self.folder / "photos"
        files.mkdir()
        with tarfile.open(first, "w") as archive:
            for number in range(UNIT_SIZE):
                path = files / f"{number:03d}.jpg"
                pixels = rng.integers(0, 256, (24, 32, 3), np.uint8)
                content = io.BytesIO()
                Image.fromarray(pixels).save(content, "JPEG")
                path.write_bytes(content.getvalue())
                archive.add(path, path.name)
        for unit in self.described:
            if unit % 2:
                os.link(first, self.folder / f"{unit:06d}.tar")
            else:
                (self.folder / f"{unit:06d}").mkdir()
                for path in files.iterdir():
                    os.link(path, self.folder / f"{unit:06d}" / path.name)
        self._in_tar = index(str(first))[0].table

    def _part(self, places: Ids) -> Collection:
        """Return the images at consecutive places, the first of which begins a unit."""
        unit, row = places // UNIT_SIZE, places % UNIT_SIZE
        in_tar = unit % 2 == 1
        units, name = _digits(unit, 6), _text(_digits(row, 3), ".jpg")
        holder = _text(str(self.folder), "/", units)
        uri = pc.if_else(in_tar, _text(holder, ".tar"), _text(holder, "/", name))
        real = self._in_tar.take(pa.array(row))
        size = np.random.default_rng(int(places[0])).integers(20_000, 200_000, len(places))
        exists = np.isin(unit, np.array(self.described))
        columns = {
            "uri": uri,
            "name": pc.if_else(in_tar, name, _text(units, "/", name)),
            "size": pc.if_else(exists, real["size"], size),
            "offset": pc.if_else(in_tar, real["offset"], pa.scalar(None, pa.int64())),
        }
        nothing = {each.name: pa.nulls(len(places), each.type) for each in SCHEMA}
        return Collection(pa.table(nothing | columns, SCHEMA))

    def write_shards(self, output: Path) -> None:
        """Write the shards of all units that are not to be described, of random descriptors.

        A hundredth of the images has the content of the image before it.
        """
        output.mkdir(parents=True)
        rng, described = np.random.default_rng(1), frozenset(self.described)
        for unit in range(self.units):
            if unit in described:
                continue
            first = unit * UNIT_SIZE
            m = min(UNIT_SIZE, self.n - first)
            digests = np.frombuffer(rng.bytes(32 * m), "S32").copy()
            copies = 1 + np.flatnonzero(rng.random(m - 1) < _COPIES)
            digests[copies] = digests[copies - 1]
            places = [f"{self.folder}/{unit:06d}/{row:03d}.jpg" for row in range(m)]
            about = {
                "item": pa.array(np.arange(first, first + m), pa.int64()),
                "uri": pa.array(places, pa.string()),
                "width": pa.array([32] * m, pa.int32()),
                "height": pa.array([24] * m, pa.int32()),
                "digest": pa.array(
                    [digest.ljust(32, b"\0") for digest in digests.tolist()], pa.binary(32)
                ),
                HASH: pa.array(rng.integers(0, 1 << 63, m), pa.uint64()),
                "error": pa.nulls(m, pa.string()),
            }
            table = features_table(
                pa.table(about),
                deviation=[None] * m,
                poolings=["embedding"],
                descriptors=rng.standard_normal((m, 1, DIMS), np.float32),
            )
            # Not synced to the disk, as a folder's files are.
            (output / shard_name(unit)).write_bytes(table_file(table, use_dictionary=False))


def _digits(numbers: Ids, count: int) -> pa.Array:
    return pc.utf8_lpad(pa.array(numbers).cast(pa.large_string()), count, "0")


def _text(*parts: str | pa.Array) -> pa.Array:
    text = pa.large_string()
    columns = [pa.scalar(each, text) if isinstance(each, str) else each for each in parts]
    return pc.binary_join_element_wise(*columns, pa.scalar("", text))
