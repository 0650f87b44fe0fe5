"""Images in pages: embedded thumbnails that link to their files, with frames that judge them."""

import base64
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from numpy.typing import NDArray

from mmray.images.collection import ImageFile
from mmray.images.decoding import MAX_PIXELS, load_image
from mmray.images.reduced_jpeg import reduced_jpeg
from mmray.system.arrays import Pixels
from mmray.system.locations import local_path

Kind: TypeAlias = Literal["anchor", "right", "wrong", "unlabelled", "added", "dropped", "plain"]

# Colours of the frames, RGB; plain is thin.
FRAMES: dict[Kind, tuple[int, int, int]] = {
    "anchor": (68, 119, 170),
    "right": (28, 118, 44),
    "wrong": (196, 43, 12),
    "unlabelled": (118, 118, 118),
    "added": (68, 94, 178),
    "dropped": (118, 118, 118),
    "plain": (153, 153, 153),
}
# Not by colour alone, as red and green look alike to many: kind -> (sign in the corner, in words).
MARKS: dict[Kind, tuple[str, str]] = {
    "right": ("✓", "right"),
    "wrong": ("✕", "wrong"),
    "unlabelled": ("?", "no label"),
    "added": ("+", "found only after training"),
    "dropped": ("\N{MINUS SIGN}", "found only before training"),
}
LINKED = ("file", "http", "https")  # schemes of links; others could run a script


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An image in a page.

    Attributes
    ----------
    name : any text
    uri : the image as a data: URI, from `thumbnail`; None where it can no longer be read, and a
        neutral box is shown
    kind : of the frame: green and red for what is right and wrong by the labels, grey for an image
        without a label or that does not count, and thin where there are no labels at all
    href : file:, http: or https: URI of the image; URIs of other schemes are not linked

    Raises
    ------
    ValueError
        The URI is not a data: URI of an image, or the kind is unknown.
    """

    name: str
    uri: str | None
    kind: Kind = "plain"
    href: str | None = None

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

    @property
    def link(self) -> str | None:
        """Return the href if its scheme is one of `LINKED`."""
        if self.href is None or self.href.partition(":")[0].lower() not in LINKED:
            return None
        return self.href


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
    return Picture(name=image.name, uri=uri, kind=kind, href=_link(image))


class Thumbnails:
    """Pictures of images, each of which is loaded once: many pools and searches find the same."""

    def __init__(self, side: int, *, max_pixels: int = MAX_PIXELS) -> None:
        self._side, self._max_pixels = side, max_pixels
        self._made: dict[ImageFile, Picture] = {}

    def __call__(self, image: ImageFile, kind: Kind = "plain") -> Picture:
        """Return the picture of an image with a frame, see `picture_of`."""
        if image not in self._made:
            self._made[image] = picture_of(image, self._side, max_pixels=self._max_pixels)
        return replace(self._made[image], kind=kind)


def _link(image: ImageFile) -> str | None:
    """Return the file: URI of a local image; None for remote images and images in archives."""
    path = None if image.offset is not None else local_path(image.uri)
    return None if path is None else path.absolute().as_uri()


def frame_kind(labels: NDArray[Any] | None, anchor: int, item: int, *, same: bool = True) -> Kind:
    """Choose the frame of an item beside an anchor by their labels (n,), if there are any.

    Parameters
    ----------
    labels : of all items; None: there are none
    anchor, item : ids
    same : whether the item is to have the anchor's label, as a positive, or another one
    """
    if labels is None:
        return "plain"
    ours, its = labels[anchor], labels[item]
    if _is_absent(ours) or _is_absent(its):
        return "unlabelled"
    return "right" if (ours == its) == same else "wrong"


def _is_absent(label: Any) -> bool:
    """Tell whether a label marks an unlabelled item, as for `evaluation.purity.pool_purity`."""
    return label in (None, -1, "", "-1", b"", b"-1") or bool(label != label)  # NaN equals nothing


def _data_uri(media_type: str, content: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"
