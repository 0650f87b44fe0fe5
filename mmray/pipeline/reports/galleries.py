"""Pictures of what was mined: anchors and their pools, as in Figs. 2 to 4.

n images, a anchors. Text is drawn in the default font of PIL, which has ASCII and little else: a
title is "P+", not P with a raised plus.
"""

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from mmray.system.arrays import Ids, Pixels

Load = Callable[[int], Pixels | None]
Color = tuple[int, int, int]

# Of the frames: an image of the anchor's label, one of another, one without, and the anchor.
SAME, OTHER, UNLABELLED, ANCHOR = (34, 136, 51), (204, 51, 17), (153, 153, 153), (68, 119, 170)
PLAIN = (204, 204, 204)  # where there are no labels at all
BACKGROUND, TEXT, MISSING = (255, 255, 255), (34, 34, 34), (221, 221, 221)
FRAME, THIN = 4, 1  # pixels, as all below; thin is a plain frame
GAP, GROUP_GAP, MARGIN = 6, 22, 14
HEADING, TITLE, CAPTION = 16, 20, 12  # heights of letters
LINE = 1.5  # heights of letters in a line


@dataclass(frozen=True, eq=False, kw_only=True)
class Group:
    """Images that were chosen for an anchor, and by what."""

    title: str
    ids: Ids


@dataclass(frozen=True, eq=False, kw_only=True)
class Strip:
    """An anchor, and groups of images chosen for it."""

    anchor: int
    groups: tuple[Group, ...]


def pool_gallery(
    strips: Sequence[Strip],
    load: Load,
    *,
    labels: NDArray[Any] | None = None,
    columns: int = 5,
    side: int = 96,
    title: str = "",
) -> bytes:
    """A PNG with a row for each anchor, and beside it its groups.

    Parameters
    ----------
    strips : of the same groups, by title
        Without any, the picture says "no anchors".
    load : an image (h, w, 3) uint8 by its id; None where it cannot be read, shown as a cross
        Called once for each image.
    labels : (n,) of integers, floats, strings or objects, or None
        An image of the anchor's label is framed green, one of another label red, in every group, as
        in the paper: also a negative of the anchor's label is green. -1, "-1", "", NaN or None
        stands for no label: the image, or all of an anchor that has none, is framed grey.
        Labels serve this picture only; without them all frames are thin.
    columns : images of a group at most
    side : pixels of a side of a cell; images are scaled to fit, not cut
    title : a line above all; text is put on one line, and shortened where there is no room

    Raises
    ------
    ValueError
        The strips have different groups, or a number is too small.
    """
    _check(columns, side)
    titles = [[group.title for group in strip.groups] for strip in strips]
    for place, found in enumerate(titles):
        if found != titles[0]:
            raise ValueError(
                f"strips have different groups: strip {place} has {found}, the first {titles[0]}; "
                "give all the same, an empty one where nothing was chosen"
            )
    if not strips:
        return _message(title)
    load = cache(load)
    block = columns * (side + GAP) - GAP
    lefts = [MARGIN + side + GROUP_GAP + i * (block + GROUP_GAP) for i in range(len(titles[0]))]
    top = MARGIN + (round(LINE * TITLE) if title else 0)
    first = top + round(LINE * HEADING)
    width = lefts[-1] + block + MARGIN if lefts else side + 2 * MARGIN
    height = first + len(strips) * (side + GAP) - GAP + MARGIN
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    _write(canvas, (MARGIN, MARGIN), title, TITLE, width - 2 * MARGIN)
    _write(canvas, (MARGIN, top), "anchor", HEADING, side)
    for left, heading in zip(lefts, titles[0], strict=True):
        _write(canvas, (left, top), heading, HEADING, block)
    for row, strip in enumerate(strips):
        y = first + row * (side + GAP)
        _paste(canvas, (MARGIN, y), load(strip.anchor), side, ANCHOR)
        for left, group in zip(lefts, strip.groups, strict=True):
            for column, item in enumerate(group.ids[:columns].tolist()):
                color = frame_color(labels, strip.anchor, item)
                _paste(canvas, (left + column * (side + GAP), y), load(item), side, color)
    return _png(canvas)


def anchor_gallery(
    ids: Ids,
    load: Load,
    *,
    captions: Sequence[str] | None = None,
    columns: int = 8,
    side: int = 96,
    title: str = "",
) -> bytes:
    """A PNG with a grid of images (Fig. 3), row by row, perhaps with a line below each.

    Parameters
    ----------
    ids : (a,) int64
        Without any, the picture says "no anchors".
    captions : one an image
    load, side, title : as for `pool_gallery`
    columns : images of a row

    Raises
    ------
    ValueError
        There are not as many captions as images, or a number is too small.
    """
    _check(columns, side)
    if captions is not None and len(captions) != len(ids):
        raise ValueError(f"{len(captions)} captions of {len(ids)} images: give one for each")
    if not len(ids):
        return _message(title)
    load = cache(load)
    top = MARGIN + (round(LINE * TITLE) if title else 0)
    line = round(LINE * CAPTION) if captions is not None else 0
    rows = -(-len(ids) // columns)
    width = 2 * MARGIN + min(columns, len(ids)) * (side + GAP) - GAP
    height = top + rows * (side + line + GAP) - GAP + MARGIN
    canvas = Image.new("RGB", (width, height), BACKGROUND)
    _write(canvas, (MARGIN, MARGIN), title, TITLE, width - 2 * MARGIN)
    for place, item in enumerate(ids.tolist()):
        row, column = divmod(place, columns)
        corner = MARGIN + column * (side + GAP), top + row * (side + line + GAP)
        _paste(canvas, corner, load(item), side, ANCHOR)
        if captions is not None:
            _write(canvas, (corner[0], corner[1] + side + 1), captions[place], CAPTION, side)
    return _png(canvas)


def frame_color(labels: NDArray[Any] | None, anchor: int, item: int) -> Color:
    """The frame of an item beside an anchor, by their labels (n,) if there are any."""
    if labels is None:
        return PLAIN
    ours, its = labels[anchor], labels[item]
    if _is_absent(ours) or _is_absent(its):
        return UNLABELLED
    return SAME if ours == its else OTHER


def _is_absent(label: Any) -> bool:
    """Whether it stands for no label, as for `mmray.evaluation.purity.pool_purity`."""
    return label in (None, -1, "", "-1", b"", b"-1") or bool(label != label)  # NaN equals nothing


def _paste(
    canvas: Image.Image, corner: tuple[int, int], pixels: Pixels | None, side: int, color: Color
) -> None:
    """An image in the middle of its cell, a frame close around it; a cross where there is none."""
    x, y = corner
    inside = side - 2 * FRAME
    if pixels is None:
        draw = ImageDraw.Draw(canvas)
        draw.rectangle((x, y, x + side - 1, y + side - 1), fill=MISSING)
        near, far = side // 3, side - 1 - side // 3
        draw.line((x + near, y + near, x + far, y + far), fill=TEXT, width=2)
        draw.line((x + near, y + far, x + far, y + near), fill=TEXT, width=2)
        return
    image = Image.fromarray(pixels)
    scale = inside / max(image.size)
    size = tuple(max(1, round(length * scale)) for length in image.size)
    image = image.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    left, top = x + (side - size[0]) // 2, y + (side - size[1]) // 2
    wide = THIN if color == PLAIN else FRAME
    canvas.paste(color, (left - wide, top - wide, left + size[0] + wide, top + size[1] + wide))
    canvas.paste(image, (left, top))


def _write(
    canvas: Image.Image, corner: tuple[int, int], text: str, height: int, width: int
) -> None:
    """A line of text, shortened where it is wider than there is room."""
    font = ImageFont.load_default(size=height)
    shown = text = " ".join(text.split())
    while text and font.getlength(shown) > width:  # an ellipsis alone fits into any cell
        text = text[:-1]
        shown = text.rstrip() + "…"
    ImageDraw.Draw(canvas).text(corner, shown, fill=TEXT, font=font)


def _message(title: str) -> bytes:
    canvas = Image.new("RGB", (480, 3 * MARGIN + round(2 * LINE * TITLE)), BACKGROUND)
    _write(canvas, (MARGIN, MARGIN), title, TITLE, 480 - 2 * MARGIN)
    corner = (MARGIN, 2 * MARGIN + round(LINE * TITLE))
    _write(canvas, corner, "no anchors", HEADING, 480 - 2 * MARGIN)
    return _png(canvas)


def _png(canvas: Image.Image) -> bytes:
    png = io.BytesIO()
    canvas.save(png, "PNG")
    return png.getvalue()


def _check(columns: int, side: int) -> None:
    if columns < 1 or side < 16:
        raise ValueError(f"columns = {columns}, side = {side}: give at least 1 and 16 pixels")
