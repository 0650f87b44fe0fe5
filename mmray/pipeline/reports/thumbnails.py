"""Images in pages: embedded thumbnails, with frames that show their relation to an anchor."""

import base64
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from mmray.images.collection import ImageFile
from mmray.images.decoding import MAX_PIXELS, load_image
from mmray.images.reduced_jpeg import reduced_jpeg
from mmray.system.arrays import Pixels

Kind: TypeAlias = Literal["anchor", "same", "other", "unlabelled", "plain"]

# Colours of the frames, RGB; plain is thin.
FRAMES: dict[Kind, tuple[int, int, int]] = {
    "anchor": (68, 119, 170),
    "same": (34, 136, 51),
    "other": (204, 51, 17),
    "unlabelled": (153, 153, 153),
    "plain": (204, 204, 204),
}

_PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image in a page.

    Attributes
    ----------
    name : any text
    uri : the image as a data: URI, from `thumbnail`; None where it can no longer be read, and a
        neutral box is shown
    kind : of the frame: blue for the query or anchor, green for an image of its label, red for one
        of another label, grey for one without a label or that does not count, and thin where there
        are no labels at all

    Raises
    ------
    ValueError
        The URI is not a data: URI of an image, or the kind is unknown.
    """

    name: str
    uri: str | None
    kind: Kind = "plain"

    def __post_init__(self) -> None:
        if self.uri is not None and not self.uri.startswith("data:image/"):
            raise ValueError(
                f"picture {self.name!r}: uri {self.uri[:40]!r} is not a data: URI of an image; "
                "pages open without a network, so make one with `thumbnail`"
            )
        if self.kind not in FRAMES:
            raise ValueError(
                f"picture {self.name!r}: kind {self.kind!r} is none of {', '.join(FRAMES)}"
            )


def thumbnail(pixels: Pixels, side: int) -> str:
    """Make a small JPEG of an image as a data: URI; parameters and errors as of `reduced_jpeg`."""
    return _data_uri("image/jpeg", reduced_jpeg(pixels, side))


def picture_of(
    image: ImageFile, side: int, kind: Kind = "plain", *, max_pixels: int = MAX_PIXELS
) -> Picture:
    """Load an image of a collection as a picture for a page, empty where it cannot be read.

    Parameters
    ----------
    image : the image file
    side : as for `thumbnail`
    kind : of the frame
    max_pixels : an image with more counts as unreadable
    """
    # Twice the size: JPEG's own reduction is coarse, and the second one smooth.
    pixels = load_image(image, longest_side=2 * side, max_pixels=max_pixels).pixels
    uri = None if pixels is None else thumbnail(pixels, side)
    return Picture(name=image.name, uri=uri, kind=kind)


def frame_kind(labels: NDArray[Any] | None, anchor: int, item: int) -> Kind:
    """Choose the frame of an item beside an anchor by their labels (n,), if there are any."""
    if labels is None:
        return "plain"
    ours, its = labels[anchor], labels[item]
    if _is_absent(ours) or _is_absent(its):
        return "unlabelled"
    return "same" if ours == its else "other"


def _is_absent(label: Any) -> bool:
    """Tell whether a label marks an unlabelled item, as for `evaluation.purity.pool_purity`."""
    return label in (None, -1, "", "-1", b"", b"-1") or bool(label != label)  # NaN equals nothing


def png_uri(png: bytes) -> str:
    """Encode a PNG as a data: URI.

    Raises
    ------
    ValueError
        The bytes are not a PNG.
    """
    if not png.startswith(_PNG):
        raise ValueError(f"not a PNG: {len(png)} bytes that begin with {png[:8]!r}")
    return _data_uri("image/png", png)


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
