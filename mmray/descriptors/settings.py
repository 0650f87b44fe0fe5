"""Settings of describing an image: the preprocessing of its pixels, and the network's pass."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, get_args

from mmray.config.choices import Descriptor, Interpolation, Precision
from mmray.config.describing import SCALE, DescribingConfig
from mmray.config.run import stored
from mmray.config.sections import TrainingConfig
from mmray.descriptors.regions import Rmac
from mmray.images.cropping import center_crop
from mmray.images.decoding import MAX_PIXELS
from mmray.system.arrays import Pixels
from mmray.system.folder import Folder
from mmray.system.foreign import JsonObject

CONFIG = "config.json"  # in a model's folder


@dataclass(frozen=True)
class Preprocessing:
    """Preprocessing of an image before a network: its size, central crop, scales.

    Attributes
    ----------
    longest_side : pixels to which the longest side is reduced; None: the original size
    enlarge : enlarge images that are smaller, too
    crop : side in pixels of the central crop that is then given to a network trained on crops;
        None: the whole image
    resize_size : pixels to which the shorter side is resized before the crop; None: `crop`
    interpolation : of that resizing
    scales : multiples of its size at which an image is described, see `EmbeddingNet.descriptors`
    """

    longest_side: int | None = 1024
    crop: int | None = None
    scales: tuple[float, ...] = (1.0,)
    enlarge: bool = False
    resize_size: int | None = None
    interpolation: Interpolation = "bilinear"

    @classmethod
    def in_training(cls, config: TrainingConfig) -> "Preprocessing":
        """Return that of images which training embeds; a network trained on crops sees centres."""
        if config.augmentation == "none":
            return cls(config.longest_side)
        return cls(config.longest_side, config.crop_size, resize_size=config.resize_size)

    def stored(self) -> dict[str, Any]:
        """Return the attributes as JSON-like values, as `read` finds them in a model's folder.

        What was added since the first models is left out where it changes nothing.
        """
        first = {"longest_side": self.longest_side, "crop": self.crop, "scales": list(self.scales)}
        added = {name: getattr(self, name) for name in ("enlarge", "resize_size", "interpolation")}
        as_before = Preprocessing()
        return first | {k: value for k, value in added.items() if value != getattr(as_before, k)}

    def cropped(self, pixels: Pixels) -> Pixels:
        """Cut out of a decoded image (h, w, 3) uint8 what the network is given."""
        if self.crop is None:
            return pixels
        return center_crop(pixels, self.crop, self.resize_size, self.interpolation)

    @classmethod
    def read(cls, folder: Folder) -> "Preprocessing":
        """Read the preprocessing in a model's config.json; values that it lacks are the defaults.

        Raises
        ------
        InputError
            The file is missing or unreadable, a size is neither null nor a whole number from 1, the
            shorter side is less than the crop, `enlarge` is neither true nor false, the
            interpolation is not known, or the scales are not a list of numbers from 0.05 to 4.
        """
        config = read_config(folder)
        pixels = "write a whole number of pixels from 1, or null"
        sizes = {
            key: config.value(key, lambda size: size is None or is_size(size), pixels)
            for key in ("longest_side", "crop")
            if key in config.values
        }
        least = sizes.get("crop") or 1
        resize_size = config.value(
            "resize_size",
            lambda size: size is None or (is_size(size) and size >= least),
            f"write a whole number of pixels from {least}, or null",
            None,
        )
        enlarge = config.value(
            "enlarge", lambda value: isinstance(value, bool), "write true or false", False
        )
        numbers = f"write a list of numbers from {SCALE.low:g} to {SCALE.high:g}"
        scales = config.value("scales", _are_scales, numbers, [1.0])
        known = get_args(Interpolation)
        interpolation: Any = config.value(
            "interpolation", known.__contains__, f"known are {', '.join(known)}", "bilinear"
        )
        return cls(
            **sizes,
            scales=tuple(map(float, scales)),
            enlarge=enlarge,
            resize_size=resize_size,
            interpolation=interpolation,
        )


def read_config(folder: Folder) -> JsonObject:
    """Read the config.json of a model's folder; InputError where it is none."""
    what = "not the description of a saved model"
    return JsonObject.read(folder, CONFIG, what, "give a folder that a run left as model/")


def _are_scales(values: Any) -> bool:
    return isinstance(values, list) and bool(values) and all(map(_is_scale, values))


def _is_scale(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and SCALE.low <= value <= SCALE.high


def is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


@dataclass(frozen=True, kw_only=True)
class DescriptorSettings:
    """Settings of describing images, as the stages, the workers and the index need them.

    Attributes
    ----------
    preprocessing : of the pixels, before the network
    poolings : p descriptors of one forward pass
    regions : the variant of R-MAC for "rmac"
    precision : of the network
    batch_size : most images in a forward pass; all have one shape
    max_pixels : images with more are refused
    shard_size : images in a unit of work; no descriptor depends on it
    fixed_batches : fill up every batch of a shape to the same number of images
    """

    preprocessing: Preprocessing
    poolings: Sequence[Descriptor]
    regions: Rmac = field(default_factory=Rmac)
    precision: Precision = "float32"
    batch_size: int = 32
    max_pixels: int = MAX_PIXELS
    shard_size: int = 256
    fixed_batches: bool = False

    @classmethod
    def of(
        cls,
        config: DescribingConfig,
        preprocessing: Preprocessing,
        poolings: Sequence[Descriptor],
        *,
        precision: Precision | None = None,
    ) -> "DescriptorSettings":
        """Combine a job's settings with preprocessing and poolings.

        Parameters
        ----------
        config : precision, batches and limits
        preprocessing, poolings : as the attributes
        precision : overrides that of `config`; None: that of `config`
        """
        return cls(
            preprocessing=preprocessing,
            poolings=poolings,
            precision=precision or config.precision,
            batch_size=config.batch_size,
            max_pixels=config.max_pixels,
            shard_size=config.shard_size,
            fixed_batches=config.fixed_batches,
        )

    def stored(self) -> dict[str, Any]:
        """Return the settings that descriptors depend on as JSON-like values, for a fingerprint.

        A whitening of regions is left out.
        """
        values = {
            **self.preprocessing.stored(),
            "poolings": self.poolings,
            "regions": asdict(replace(self.regions, whitening=None)),
            "precision": self.precision,
            "batch_size": self.batch_size,
            "max_pixels": self.max_pixels,
            "fixed_batches": self.fixed_batches,
        }
        return stored(values)
