"""What MLflow loads as a model: images in any form that it passes on, descriptors out.

n images, d dimensions. MLflow imports this module by its name; nothing is unpickled. A REST server
takes JSON, so an image is sent there as "data:image/jpeg;base64,..."; a path is one of the server's
own files.
"""

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mmray.serving.encoder import ImageEncoder, ImageSource
from mmray.system.arrays import Features
from mmray.system.errors import InputError

_DATA = "data:"  # how RFC 2397 begins a URI that is the content itself
_BASE64 = ";base64"


@dataclass(frozen=True, eq=False)
class ImageModel:
    """A describer with the method that MLflow calls."""

    describer: ImageEncoder

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Features:
        """Descriptors of images.

        Parameters
        ----------
        model_input : n images in a list, a tuple, an array, a pandas Series or the one column of a
            DataFrame, or one image alone. An image is a path, a URI (data: too, in base64), or the
            content of a file as bytes.
        params : "longest_side", pixels; 0 or none: the model's own

        Returns
        -------
        (n, d) float32, rows in order, l2-normalised.

        Raises
        ------
        InputError
            As `ImageEncoder.encode`, or the images come in another form.
        """
        images = [_content(image) for image in _listed(model_input)]
        return self.describer.encode(images, (params or {}).get("longest_side") or "own")


def _load_pyfunc(data_path: str) -> ImageModel:
    """The model in a folder, as MLflow asks for it."""
    return ImageModel(ImageEncoder.load(data_path))


def _listed(images: Any) -> list[Any]:
    """The images one by one; MLflow has made a DataFrame of most forms before."""
    if isinstance(images, str | bytes):
        return [images]
    if hasattr(images, "columns"):  # pandas is MLflow's dependency, not this package's
        if len(images.columns) != 1:
            raise InputError(
                f"images: a table of {len(images.columns)} columns; give it one, of paths or of "
                "the contents of image files"
            )
        images = images.iloc[:, 0]
    if getattr(images, "dtype", None) is not None:
        if isinstance(images, np.ndarray) and (images.dtype.kind == "S" or images.ndim > 1):
            raise InputError(
                f"images: an array of shape {images.shape} and type {images.dtype}; give one row "
                "of objects or strings (an array of bytes loses zeros at an image's end)"
            )
        images = images.tolist()
        return images if isinstance(images, list) else [images]
    if not isinstance(images, list | tuple):
        raise InputError(
            f"images: a list of paths or of the contents of image files is wanted, not "
            f"{type(images).__name__}"
        )
    return list(images)


def _content(image: Any) -> ImageSource:
    """The bytes of a data: URI; anything else as it is."""
    if not isinstance(image, str) or not image.startswith(_DATA):
        checked: ImageSource = image
        return checked
    header, comma, text = image.partition(",")
    if not comma or not header.endswith(_BASE64):
        raise InputError(f"{header[:60]}: not an image: write {_DATA}image/jpeg{_BASE64},...")
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as error:
        raise InputError(f"{header},{text[:20]}...: not an image in base64 ({error})") from error
