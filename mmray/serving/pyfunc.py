"""The model that MLflow loads: images in any form that it passes on, descriptors out.

n images, d dimensions. MLflow imports this module by its name; nothing is unpickled. A REST server
takes JSON, so an image is sent there in base64, as it is or as "data:image/jpeg;base64,...".

Whoever can send a request must not be able to read what the server can. So a server reads files
only below the folder or URI that the environment variable MMRAY_SERVING_ROOT names, none by
default, and answers the same for what is not there, not allowed, and not an image. In a program of
one's own, paths and URIs are read as its user may, unless that variable is set.
"""

import base64
import binascii
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from mmray.images.decoding import decode
from mmray.images.image_formats import format_of
from mmray.serving.encoder import ImageEncoder, ImageSource
from mmray.system.arrays import Features
from mmray.system.errors import InputError
from mmray.system.locations import absolute, is_uri, joined, local_path, read_bytes, resolve
from mmray.system.retrying_file import UNREADABLE
from mmray.system.uris import inherited, is_remote, refusal

ROOT = "MMRAY_SERVING_ROOT"  # environment variable
LARGEST = 64 << 20  # bytes of the file of an image that a server takes

_SERVERS = ("mlflow.pyfunc.scoring_server", "mlserver")  # modules that call for whoever asks
_DATA = "data:"  # how RFC 2397 begins a URI that is the content itself, in letters of any case
_BASE64 = ";base64"
_CODE = 1000  # MLflow's INVALID_PARAMETER_VALUE
_SHORTEST = 40  # letters of the smallest image in base64, more than short names have
_REFUSED = (
    "not an image, or not one that this server may read; send the content of an image file in "
    f"base64, or a path below the folder that {ROOT} names where the server runs"
)


@dataclass(frozen=True, eq=False)
class ImageModel:
    """An image encoder with the method that MLflow calls."""

    encoder: ImageEncoder

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> Features:
        """Compute the descriptors of images.

        Parameters
        ----------
        model_input : n images in a list, a tuple, an array, a pandas Series or a DataFrame of one
            column; or a single image. An image is the content of a file as bytes, or as text in
            base64, which may begin with "data:image/jpeg;base64,"; or a path or URI, on a server
            below MMRAY_SERVING_ROOT alone.
        params : "longest_side" in pixels; 0 or none: that of the model

        Returns
        -------
        (n, d) float32, rows in order, l2-normalised.

        Raises
        ------
        InputError
            `ImageEncoder.encode` raises it, or an image comes in another form or may not be read.
            For MLflow it is an MlflowException too, which its server answers with status 400.
        """
        try:
            images, guarded = [_content(image) for image in _listed(model_input)], _is_guarded()
            if guarded:
                images = [
                    _allowed(image, f"image {place} of {len(images)}")
                    for place, image in enumerate(images, start=1)
                ]
            return self.encoder.encode(images, (params or {}).get("longest_side") or "own")
        except InputError as error:
            raise _refusal(str(error)) from None


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
                f"images: a table of {len(images.columns)} columns; give it one, of the contents "
                "of image files"
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
    """Decode text in base64, perhaps a data: URI, to bytes; return anything else unchanged."""
    is_uri_of_data = isinstance(image, str) and image[: len(_DATA)].lower() == _DATA
    if not isinstance(image, str) or (not is_uri_of_data and len(image) < _SHORTEST):
        checked: ImageSource = image
        return checked
    header, comma, text = image.partition(",") if is_uri_of_data else ("", "", image)
    if header and not (comma and header.lower().endswith(_BASE64)):
        raise InputError(f"{header[:60]}: not an image: write {_DATA}image/jpeg{_BASE64},...")
    try:
        content = base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        if not header:
            return image  # a path
        raise InputError(f"{header},{text[:20]}...: not an image in base64 ({error})") from error
    return content if header or format_of(content) is not None else image


def _is_guarded() -> bool:
    """Tell whether files are read below the root alone: if it is set, or a server calls."""
    frame = None if ROOT in os.environ else sys._getframe()
    while frame is not None:
        if str(frame.f_globals.get("__name__")).startswith(_SERVERS):
            return True
        frame = frame.f_back
    return ROOT in os.environ


def _allowed(image: Any, place: str) -> ImageSource:
    """Return the content of an image, that of a file only below the root."""
    if isinstance(image, bytes):
        if len(image) > LARGEST:
            raise InputError(f"{place}: {len(image):,} bytes; send an image of at most {LARGEST:,}")
        return image
    if not isinstance(image, str | os.PathLike):
        raise InputError(f"{place}: {type(image).__name__} is {_REFUSED}")
    content = _file_below_root(os.fsdecode(image))
    if content is None or decode(content, longest_side=1).pixels is None:
        raise InputError(f"{place}: {_REFUSED}")
    return content


def _file_below_root(name: str) -> bytes | None:
    """Read a file below the root; None where it cannot or must not be read."""
    root = os.environ.get(ROOT)
    if not root:
        return None
    try:
        place = _remote_below(root, name) if is_remote(root) else _local_below(root, name)
        return None if place is None else read_bytes(place, limit=LARGEST)
    except UNREADABLE:
        return None


def _local_below(root: str, name: str) -> str | None:
    folder, path = local_path(absolute(root)), local_path(name)
    if folder is None or path is None:
        return None
    # Links are followed first: one that leads elsewhere is not below the root. Not by
    # Path.resolve, which fails for a link to itself.
    folder = Path(os.path.realpath(folder))
    found = Path(os.path.realpath(folder / path))
    return str(found) if found.is_relative_to(folder) else None


def _remote_below(root: str, name: str) -> str | None:
    if refusal(name, of_list=root) is not None or "?" in name:
        return None
    folder = absolute(root).partition("?")[0].rstrip("/") + "/"
    uri = inherited(name, of_list=root) if is_uri(name) else resolve(joined(root, "_"), name)
    path = unquote(uri.partition("?")[0])
    inside = path.startswith(unquote(folder)) and ".." not in path.split("/")
    return uri if inside else None


def _refusal(message: str) -> InputError:
    """Make the error that a server of MLflow answers with status 400 and the message alone."""
    exceptions: Any = sys.modules.get("mlflow.exceptions")  # loaded where MLflow calls
    if exceptions is None:
        return InputError(message)

    class RefusedError(InputError, exceptions.MlflowException):  # type: ignore[misc] # of Any
        # MLflow's server would put the whole request before the message.
        message = property(lambda self: str(self), lambda self, value: None)

        def __init__(self) -> None:
            exceptions.MlflowException.__init__(self, message, _CODE)

        def __str__(self) -> str:
            return message

    return RefusedError()
