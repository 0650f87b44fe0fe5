"""Thumbnails of photos: made when they are first asked for, the latest kept in memory."""

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mmray.images.collection import ImageFile
from mmray.images.containers import read_image
from mmray.images.decoding import byte_limit
from mmray.images.perceptual_hash import perceptual_hash
from mmray.images.reduced_jpeg import reduced_jpeg
from mmray.mining.near_duplicates.groups import near_duplicate_groups
from mmray.serving.live.decoders import DecoderPool
from mmray.serving.live.photos import Photos
from mmray.serving.live.searching import LiveIndex
from mmray.system.arrays import Ids
from mmray.system.errors import InputError
from mmray.system.locations import error_line

SIDE = 240  # pixels of the longer side
KEPT = 64 << 20  # bytes of thumbnails in memory, some thousands


@dataclass(frozen=True)
class Thumbnail:
    """A small JPEG file, and the perceptual hash of the image."""

    jpeg: bytes
    hash: int


class Thumbnails:
    """Thumbnails of photos by their numbers; the least recently used go first.

    Parameters
    ----------
    photos : whose thumbnails are made
    decoders : that decode them; `make` runs in their threads
    max_pixels : an image with more has none
    kept : bytes to keep in memory
    """

    def __init__(
        self, photos: Photos, decoders: DecoderPool, *, max_pixels: int, kept: int = KEPT
    ) -> None:
        self._photos, self._decoders = photos, decoders
        self._max_pixels, self._room = max_pixels, kept
        self._kept: OrderedDict[int, Thumbnail] = OrderedDict()
        self._lock = threading.Lock()

    def kept(self, number: int) -> Thumbnail | None:
        """Return the thumbnail of a photo if it is in memory."""
        with self._lock:
            if number in self._kept:
                self._kept.move_to_end(number)
            return self._kept.get(number)

    def make(self, number: int) -> Thumbnail:
        """Return the thumbnail of a photo, made anew if it is not in memory.

        Raises
        ------
        InputError
            The image can no longer be read.
        """
        if (known := self.kept(number)) is not None:
            return known
        image = self._photos.images[number]
        made = self._made(image)
        with self._lock:
            if number not in self._kept:
                self._kept[number] = made
                self._room -= len(made.jpeg)
            while self._room < 0:
                self._room += len(self._kept.popitem(last=False)[1].jpeg)
        return made

    def _made(self, image: ImageFile) -> Thumbnail:
        try:
            data = read_image(image, limit=byte_limit(self._max_pixels))
        except OSError as error:
            raise InputError(f"{image.location}: cannot be read ({error_line(error)})") from error
        # Twice the size: JPEG's own reduction is coarse, and the second one smooth.
        decoded = self._decoders.decode(
            data,
            longest_side=2 * SIDE,
            box=image.box,
            stored_box=True,
            max_pixels=self._max_pixels,
        )
        if decoded.pixels is None:
            raise InputError(f"{image.location}: cannot be decoded ({decoded.error})")
        return Thumbnail(reduced_jpeg(decoded.pixels, SIDE), perceptual_hash(decoded.pixels))

    def near_duplicates(self, live: LiveIndex, rows: Ids, numbers: Sequence[int]) -> list[int]:
        """Find near-duplicates among some photos, as a run finds them in its collection.

        Parameters
        ----------
        live : an index that holds the photos
        rows : (m,) of the photos in it
        numbers : of the m photos

        Returns
        -------
        For each the first photo of its group, itself where it is alone. Photos that can no longer
        be read are alone.
        """
        hashes, known = np.zeros(len(rows), np.uint64), np.zeros(len(rows), bool)
        for place, number in enumerate(numbers):
            try:
                hashes[place], known[place] = self.make(number).hash, True
            except InputError:
                continue
        vectors = np.ascontiguousarray(live.index.vectors[rows])
        groups, _ = near_duplicate_groups(vectors, hashes, known)
        return [numbers[first] for first in groups.tolist()]
