"""Settings that say how an image becomes a descriptor."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mmray.config.choices import Descriptor, Precision
from mmray.descriptors import weights
from mmray.descriptors.pooling import Rmac
from mmray.images.decoding import MAX_PIXELS
from mmray.system.errors import InputError
from mmray.system.folder import Folder


@dataclass(frozen=True)
class Preprocessing:
    """How images are made ready for a network.

    Attributes
    ----------
    longest_side : pixels to which the longest side is reduced; None: the original size
    crop : pixels of a side of the centre that the network sees after that, where it was trained on
        crops; None: it sees all of an image
    scales : at which each image is described, see `EmbeddingNet.descriptors`
    """

    longest_side: int | None = 1024
    crop: int | None = None
    scales: tuple[float, ...] = (1.0,)

    @classmethod
    def read(cls, folder: Folder) -> "Preprocessing":
        """What config.json of a model's folder says; the defaults where it says nothing.

        Raises
        ------
        InputError
            The file is missing or unreadable, a size is neither null nor a whole number from 1, or
            the scales are no list of numbers from 0.05 to 4.
        """
        path = folder.location(weights.CONFIG)
        try:
            config = json.loads(folder.read(weights.CONFIG))
            sizes = {k: config[k] for k in ("longest_side", "crop") if k in config}
            scales = config.get("scales", [1.0])
        except (OSError, ValueError, TypeError) as error:
            raise InputError(f"{path}: not the description of a saved model ({error!r})") from error
        for name, size in sizes.items():
            if size is not None and not _is_size(size):
                raise InputError(
                    f"{path}: {name} is {size!r}: write a whole number of pixels from 1, or null"
                )
        if not (isinstance(scales, list) and scales and all(map(_is_scale, scales))):
            raise InputError(
                f"{path}: scales is {scales!r}: write a list of numbers from 0.05 to 4"
            )
        return cls(**sizes, scales=tuple(map(float, scales)))


def _is_scale(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0.05 <= value <= 4


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True, kw_only=True)
class DescriptorSettings:
    """How images are described.

    Attributes
    ----------
    longest_side : pixels that images are reduced to; None: as they are
    crop : their centre is described, of so many pixels a side; None: all of them
    scales : at which each is described
    poolings : p descriptors of one pass
    regions : those of "rmac"
    precision : of the network
    batch_size : images of one shape in a pass, at most
    max_pixels : images with more are refused
    """

    longest_side: int | None
    crop: int | None = None
    poolings: Sequence[Descriptor]
    scales: Sequence[float] = (1.0,)
    regions: Rmac = field(default_factory=Rmac)
    precision: Precision = "float32"
    batch_size: int = 32
    max_pixels: int = MAX_PIXELS
