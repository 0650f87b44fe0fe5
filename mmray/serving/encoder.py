"""Image encoding with a trained network and its whitening: images in, descriptors out.

n images, b of them of one shape, h x w pixels, d dimensions.

All it needs is a model's folder, as `descriptors.weights.save` writes it; a run leaves one as
`model/`.
"""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from mmray.descriptors import weights
from mmray.descriptors.embedding import CPU_PIXELS, as_batch
from mmray.descriptors.inference import fused
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import CONFIG, Preprocessing, is_size
from mmray.descriptors.whitening import WHITENING, Whitening, read_whitening, write_whitening
from mmray.images.collection import ImageFile
from mmray.images.decoding import decode, load_image, same_shape_batches
from mmray.system.arrays import Box, Features, Pixels
from mmray.system.errors import InputError
from mmray.system.folder import Folder, as_folder

# Images decoded at a time: enough that many share a shape; 64 photos of 1024 pixels take 150 MB.
_CHUNK = 64
_BATCH_SIZE = 32

ImageSource: TypeAlias = str | os.PathLike[str] | bytes  # a path, a URI, or a file's content


@dataclass(frozen=True, eq=False)
class TrainedModel:
    """A model as stored in its folder: network, whitening of the embeddings, preprocessing.

    Attributes
    ----------
    whitening : None where the folder has none
    """

    network: EmbeddingNet
    whitening: Whitening | None
    preprocessing: Preprocessing

    @classmethod
    def read(cls, folder: Folder) -> "TrainedModel":
        """Read a model's folder.

        Raises
        ------
        InputError
            The folder is not that of a model, or a file in it is unreadable.
        """
        if not folder.has(CONFIG):
            raise InputError(
                f"{folder.uri}: not a model's folder (there is no {CONFIG}); name one that "
                "a run left as model/"
            )
        network, whitening = weights.load(folder), None
        if folder.has(WHITENING):
            whitening = read_whitening(folder, WHITENING, network.dim)
        return cls(network, whitening, Preprocessing.read(folder))

    def save(self, folder: str | os.PathLike[str] | Folder) -> None:
        """Write the model's folder, which `read` and `ImageEncoder.load` take."""
        place = as_folder(folder)
        weights.save(self.network, place, preprocessing=self.preprocessing)
        if self.whitening is not None:
            write_whitening(place, WHITENING, self.whitening)

    def encoder(self, *, dims: int | None = None) -> "ImageEncoder":
        """Return the encoder of images by this model; `dims` and errors as of `WhitenedNet`."""
        scales = self.preprocessing.scales
        net = WhitenedNet(self.network, self.whitening, dims=dims, scales=scales)
        return ImageEncoder(net, self.preprocessing)

    def whiten(self, rows: Features) -> Features:
        """Whiten embeddings (n, d) float32, if the model has a whitening."""
        return rows if self.whitening is None else self.whitening.apply(rows)

    def digest(self) -> str:
        """Return a hash of all weights, those of the whitening included."""
        whitening = "" if self.whitening is None else self.whitening.digest()
        text = weights.state_digest(self.network) + whitening
        return hashlib.sha256(text.encode()).hexdigest()[:12]


class WhitenedNet(nn.Module):
    """A network for inference, followed by its whitening.

    The BatchNorms are fused into the convolutions, see `descriptors.inference.fused`: it cannot be
    trained.

    Parameters
    ----------
    model : left unchanged
    whitening : of the model's embeddings; None: no whitening
    dims : number of leading dimensions to keep, which are l2-normalised again; None: all
    scales : of the images, see `EmbeddingNet.descriptors`

    Attributes
    ----------
    net : EmbeddingNet
    mean, projection : (c,) and (d, c) float32 of the whitening, or None
    dim : d, the dimensions of a descriptor

    Raises
    ------
    InputError
        The whitening and the embeddings differ in their dimensions, or `dims` exceeds those of the
        embeddings or is below 1.
    """

    mean: Tensor | None
    projection: Tensor | None

    def __init__(
        self,
        model: EmbeddingNet,
        whitening: Whitening | None = None,
        *,
        dims: int | None = None,
        scales: Sequence[float] = (1.0,),
    ) -> None:
        super().__init__()
        if whitening is not None and len(whitening.mean) != model.dim:
            raise InputError(
                f"the whitening is for {len(whitening.mean)} dimensions, the network's embeddings "
                f"have {model.dim}: take the whitening that was learned from this network"
            )
        self.dim = model.dim if dims is None else dims
        if not 1 <= self.dim <= model.dim:
            raise InputError(f"dims is {dims}: choose from 1 to the network's {model.dim}")
        self.net, self.scales = fused(model), tuple(scales)
        mean = projection = None
        if whitening is not None:
            mean = torch.tensor(whitening.mean)
            projection = torch.tensor(whitening.projection[: self.dim])
        self.register_buffer("mean", mean)
        self.register_buffer("projection", projection)
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        """Compute descriptors; they equal `Whitening.apply` to the embeddings up to rounding.

        Parameters
        ----------
        images : (b, 3, h, w) uint8 RGB

        Returns
        -------
        (b, d) float32, l2-normalised; a row of zeros stays zero.

        Raises
        ------
        ValueError
            The images have another shape or type.
        """
        rows = self.net.descriptors(images, ("embedding",), scales=self.scales)[:, 0]
        if self.mean is not None and self.projection is not None:
            rows = (rows - self.mean) @ self.projection.T
        elif self.dim == rows.shape[1]:
            return rows  # already normalised
        else:
            rows = rows[:, : self.dim]
        norms = rows.norm(dim=1, keepdim=True)
        normalised: Tensor = rows / norms.where(norms > 0, 1)
        return normalised


@dataclass(frozen=True, eq=False)
class ImageEncoder:
    """Encoder of images as descriptors, with the preprocessing that its network was trained with.

    Attributes
    ----------
    net : the network and its whitening; `encoder.net.to("cuda")` moves them to a GPU
    preprocessing : size, crop and scales of the images

    Examples
    --------
    A run leaves its model in the folder `model/`. Inner products of descriptors are cosines::

        encoder = ImageEncoder.load("model/")
        descriptors = encoder.encode(["query.jpg", "a.jpg", "b.jpg"])  # (3, d) float32
        similarities = descriptors[1:] @ descriptors[0]
    """

    net: WhitenedNet
    preprocessing: Preprocessing

    @classmethod
    def load(
        cls, folder: str | os.PathLike[str] | Folder, *, dims: int | None = None
    ) -> "ImageEncoder":
        """Load an encoder from a model's folder, with the whitening if the folder has one.

        Parameters
        ----------
        folder : a path or URI
        dims : as for `WhitenedNet`

        Raises
        ------
        InputError
            `TrainedModel.read` or `WhitenedNet` raises it.
        """
        return TrainedModel.read(as_folder(folder)).encoder(dims=dims)

    def encode(
        self,
        images: Sequence[ImageSource],
        longest_side: int | Literal["own"] | None = "own",
        *,
        box: Box | None = None,
    ) -> Features:
        """Compute the descriptors of images of any shapes.

        A descriptor does not depend on the other images, up to rounding: images of one shape share
        a forward pass, and none is padded or stretched to the shape of another.

        Parameters
        ----------
        images : n paths, URIs or contents of image files, see `images.decoding.decode` for the
            formats
        longest_side : pixels to which images are reduced; "own": the size of the model's
            preprocessing; None: the original size
        box : the part of each image to describe, (x1, y1, x2, y2) in pixels of the original, see
            `images.decoding.decode`; None: all of it

        Returns
        -------
        (n, d) float32, rows in order, l2-normalised.

        Raises
        ------
        InputError
            An image cannot be read (the message names the first), `longest_side` is below 1, or
            `images` is a single path or content instead of a list.
        """
        if isinstance(images, str | bytes):
            raise InputError("images: one path or content was given; put it into a list")
        frame = self.preprocessing if longest_side == "own" else self.frame(longest_side)
        rows = np.zeros((len(images), self.net.dim), np.float32)
        for start in range(0, len(images), _CHUNK):
            pixels = []
            for place, image in enumerate(images[start : start + _CHUNK], start + 1):
                decoded = _decoded(image, f"image {place} of {len(images)}", frame, box)
                pixels.append(frame.cropped(decoded))
            rows[start : start + _CHUNK] = self.describe(pixels)
        return rows

    def frame(self, longest_side: int | None) -> Preprocessing:
        """Return the preprocessing with another size (None: the original); InputError below 1."""
        if longest_side is not None and not is_size(longest_side):
            raise InputError(
                f"longest_side is {longest_side!r}: choose a whole number of pixels from 1"
            )
        return replace(self.preprocessing, longest_side=longest_side)

    def describe(self, images: Sequence[Pixels]) -> Features:
        """Compute the descriptors (n, d) of decoded images, which had their preprocessing."""
        device = self.net.net.mean.device
        most_pixels = CPU_PIXELS if device.type == "cpu" else None
        shapes = [image.shape[:2] for image in images]
        rows = np.zeros((len(images), self.net.dim), np.float32)
        with torch.inference_mode():
            for batch in same_shape_batches(shapes, _BATCH_SIZE, most_pixels=most_pixels):
                found = self.net(as_batch([images[i] for i in batch], device))
                rows[batch] = found.cpu().numpy()
        return rows


def _decoded(image: Any, place: str, frame: Preprocessing, box: Box | None) -> Pixels:
    """Decode an image; InputError names it by its path, or by its place if it has none."""
    size: Any = {"longest_side": frame.longest_side, "enlarge": frame.enlarge}
    if isinstance(image, bytes):
        name, decoded = place, decode(image, **size, box=box)
    elif isinstance(image, str | os.PathLike):
        name = os.fsdecode(image)
        file = ImageFile(uri=name, name=Path(name).name, box=box)
        decoded = load_image(file, **size, stored_box=False)
    else:
        raise InputError(
            f"{place}: a path or the bytes of an image file is wanted, not {type(image).__name__}"
        )
    if decoded.pixels is None:
        raise InputError(
            f"{name}: cannot be read as an image ({decoded.error}); replace it or leave it out"
        )
    return decoded.pixels
