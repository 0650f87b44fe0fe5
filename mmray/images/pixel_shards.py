"""Decoded images in Arrow files that are mapped to memory: read in any order, without decoding.

h x w pixels. A shard is an Arrow file of one uncompressed batch, a row for each image: its pixels,
height and width, and an XXH3 of these, which is compared whenever the image is read.
"""

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import numpy as np
import pyarrow as pa
import xxhash

from mmray.system.arrays import Ids, Pixels
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import DAMAGE, Folder
from mmray.system.locations import error_line, prefetch
from mmray.system.progress import announce

_SCHEMA = pa.schema(
    {
        "pixels": pa.large_binary(),
        "height": pa.int32(),
        "width": pa.int32(),
        "digest": pa.uint64(),
    }
)
_SAID_FROM = 10**9  # bytes


def pixel_table(images: Iterable[Pixels]) -> pa.Table:
    """Return the table of a shard of images (h, w, 3) uint8."""
    contents, heights, widths, digests = [], [], [], []
    for image in images:
        contents.append(image.tobytes())
        heights.append(image.shape[0])
        widths.append(image.shape[1])
        digests.append(_digest(contents[-1], *image.shape[:2]))
    return pa.table([contents, heights, widths, digests], _SCHEMA)


def arrow_file(table: pa.Table) -> bytes:
    """Return the content of an Arrow file of one batch, as it lies in memory."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table.combine_chunks())
    content: bytes = sink.getvalue().to_pybytes()
    return content


def _digest(content: bytes | memoryview, height: int, width: int) -> int:
    return xxhash.xxh3_64_intdigest(content, seed=height << 32 | width)


class PixelShards(Sequence[Pixels]):
    """The images of several shards, in order; threads may read them at once.

    Parameters
    ----------
    folder : of the shards; images are read where it is local, see `copied`
    counts : images of each shard, by the name of its file
    origin : folder that these are copies from; None: they are none
    """

    def __init__(
        self, folder: Folder, counts: Mapping[str, int], origin: Folder | None = None
    ) -> None:
        self.folder, self.counts, self.origin = folder, dict(counts), origin
        self._names, self._starts = list(counts), np.cumsum([0, *counts.values()])
        self._opened: dict[str, tuple[Ids, memoryview, list[tuple[int, int, int]]]] = {}

    def __reduce__(self) -> tuple[type["PixelShards"], tuple[Any, ...]]:
        return PixelShards, (self.folder, self.counts, self.origin)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @overload
    def __getitem__(self, place: int) -> Pixels: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[Pixels]: ...
    def __getitem__(self, place: int | slice) -> Pixels | Sequence[Pixels]:
        """Return an image (h, w, 3) uint8, a view of the file that cannot be written.

        Raises
        ------
        DamagedFileError
            Its file is missing or damaged. Of a copy, the original is named, and the copy removed.
        """
        if isinstance(place, slice):
            return [self[each] for each in range(len(self))[place]]
        place = range(len(self))[place]
        shard = int(np.searchsorted(self._starts, place, "right")) - 1
        name, row = self._names[shard], place - int(self._starts[shard])
        try:
            bounds, content, facts = self._opened.get(name) or self._open(name)
            height, width, digest = facts[row]
            part = content[bounds[row] : bounds[row + 1]]
            if len(part) != 3 * height * width or _digest(part, height, width) != digest:
                raise ValueError(f"the digest of image {row} differs")
        except DAMAGE as error:
            if self.origin is not None:
                self._path(name).unlink(missing_ok=True)
            location = (self.origin or self.folder).location(name)
            raise DamagedFileError(location, error_line(error)) from error
        return np.frombuffer(part, np.uint8).reshape(height, width, 3)

    def _open(self, name: str) -> tuple[Ids, memoryview, list[tuple[int, int, int]]]:
        """Map a shard: where each image begins, the pixels, and height, width and digest."""
        with pa.memory_map(str(self._path(name))) as source, pa.ipc.open_file(source) as file:
            if file.schema != _SCHEMA or file.num_record_batches != 1:
                raise ValueError("no shard of images")
            batch = file.get_batch(0)
        _, bounds, content = batch.column("pixels").buffers()
        facts = [batch.column(fact).to_pylist() for fact in ("height", "width", "digest")]
        rows = list(zip(*facts, strict=True))
        self._opened[name] = np.frombuffer(bounds, np.int64), memoryview(content), rows
        return self._opened[name]

    def _path(self, name: str) -> Path:
        assert self.folder.local is not None, "copied before it is read"
        return self.folder.local / name

    def copied(self, target: Path) -> "PixelShards":
        """Copy the files to a folder of this machine, but for those that are there; return these.

        Raises
        ------
        InputError
            There is no room for them.
        """
        near = PixelShards(Folder(str(target)), self.counts, self.folder)
        sizes, there = self.folder.sizes(), near.folder.sizes()
        missing = [name for name in self.counts if there.get(name) != sizes[name]]
        target.mkdir(parents=True, exist_ok=True)
        needed, free = sum(sizes[name] for name in missing), shutil.disk_usage(target).free
        if needed > free:
            raise InputError(
                f"{target}: no room for a copy of {needed / 1e9:.1f} GB of training images "
                f"({free / 1e9:.1f} GB are free): name a folder with more by TMPDIR, or choose a "
                "smaller --mining.anchors"
            )

        if needed >= _SAID_FROM:
            announce(f"images: {needed / 1e9:.1f} GB for training are copied to {target}")

        def copy(name: str) -> None:
            with self.folder.reading(name) as source, near.folder.writing(name) as sink:
                shutil.copyfileobj(source, sink, 1 << 23)

        for _ in prefetch(copy, missing, 8):
            pass
        return near
