"""The model that MLflow loads: images in any form that it passes on, descriptors out.

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
    """An image encoder with the method that MLflow calls."""

    encoder: ImageEncoder

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Features:
        """Compute the descriptors of images.

        Parameters
        ----------
        model_input : n images in a list, a tuple, an array, a pandas Series or a DataFrame of one
            column; or a single image. An image is a path, a URI (also data: in base64), or the
            content of a file as bytes.
        params : "longest_side" in pixels; 0 or none: that of the model

        Returns
        -------
        (n, d) float32, rows in order, l2-normalised.

        Raises
        ------
        InputError
            `ImageEncoder.encode` raises it, or the images come in another form.
        """
        images = [_content(image) for image in _listed(model_input)]
        return self.encoder.encode(images, (params or {}).get("longest_side") or "own")


def _load_pyfunc(data_path: str) -> ImageModel:
    """Load a model from its folder; MLflow calls this function by its name."""
    return ImageModel(ImageEncoder.load(data_path))


def _listed(images: Any) -> list[Any]:
    """List the images of an input; MLflow has converted most forms to a DataFrame before."""
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
    """Decode a data: URI to bytes; return anything else unchanged."""
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
