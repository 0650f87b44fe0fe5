"""The galleries show each image where it belongs, framed by what its label is."""

import io

import numpy as np
import pytest
from PIL import Image

from mmray.galleries import (
    ANCHOR,
    BACKGROUND,
    FRAME,
    GAP,
    GROUP_GAP,
    HEADING,
    LINE,
    MARGIN,
    MISSING,
    OTHER,
    SAME,
    TEXT,
    UNLABELLED,
    Group,
    Strip,
    anchor_gallery,
    pool_gallery,
)

SIDE = 40
TOP = MARGIN + round(LINE * HEADING)
LEFT = MARGIN + SIDE + GROUP_GAP  # of the first group


def color_of(item):
    return (10 + item, 200 - item, 100)


def load(item):
    return np.full((30, 30, 3), color_of(item), np.uint8)


def strip(anchor, *groups):
    titles = ("P+", "P-")
    return Strip(
        anchor=anchor,
        groups=tuple(
            Group(title=title, ids=np.array(ids, np.int64))
            for title, ids in zip(titles, groups, strict=False)
        ),
    )


def picture(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def cell(pixels, row, left, column=0):
    """The frame and the middle of a cell."""
    y, x = TOP + row * (SIDE + GAP), left + column * (SIDE + GAP)
    return tuple(pixels[y + 1, x + 1]), tuple(pixels[y + SIDE // 2, x + SIDE // 2])


def test_each_image_is_in_its_cell_and_framed_by_its_label():
    strips = [strip(0, [1, 2], [3]), strip(4, [5], [6, 7])]
    labels = np.array(["a", "a", "b", "a", "c", "", "d", "c"])
    pixels = picture(pool_gallery(strips, load, labels=labels, columns=2, side=SIDE))
    second = LEFT + 2 * (SIDE + GAP) - GAP + GROUP_GAP
    assert cell(pixels, 0, MARGIN) == (ANCHOR, color_of(0))
    assert cell(pixels, 0, LEFT) == (SAME, color_of(1))
    assert cell(pixels, 0, LEFT, 1) == (OTHER, color_of(2))
    assert cell(pixels, 0, second) == (SAME, color_of(3))  # green in every group, as in the paper
    assert cell(pixels, 0, second, 1) == (BACKGROUND, BACKGROUND)
    assert cell(pixels, 1, MARGIN) == (ANCHOR, color_of(4))
    assert cell(pixels, 1, LEFT) == (UNLABELLED, color_of(5))
    assert cell(pixels, 1, second) == (OTHER, color_of(6))
    assert cell(pixels, 1, second, 1) == (SAME, color_of(7))
    for item in range(8):
        assert (pixels == color_of(item)).all(2).sum() == (SIDE - 2 * FRAME) ** 2


def test_without_labels_nothing_is_judged():
    pixels = picture(pool_gallery([strip(0, [1])], load, columns=1, side=SIDE))
    assert cell(pixels, 0, LEFT) == (UNLABELLED, color_of(1))
    numbers = np.array([7, 7])
    pixels = picture(pool_gallery([strip(0, [1])], load, labels=numbers, columns=1, side=SIDE))
    assert cell(pixels, 0, LEFT)[0] == SAME


def test_an_image_keeps_its_aspect_and_is_not_cut():
    def wide(item):
        return np.full((10, 40, 3), color_of(item), np.uint8)

    pixels = picture(anchor_gallery(np.array([0]), wide, side=SIDE))
    rows, columns = np.nonzero((pixels == color_of(0)).all(2))
    assert np.ptp(columns) + 1 == SIDE - 2 * FRAME
    assert np.ptp(rows) + 1 == (SIDE - 2 * FRAME) // 4
    assert (rows.min() + rows.max()) // 2 == MARGIN + SIDE // 2 - 1


def test_a_group_shows_its_first_images_and_each_is_loaded_once():
    loaded = []

    def noting(item):
        loaded.append(item)
        return load(item)

    pool_gallery([strip(0, [1, 2, 3], [1]), strip(1, [0], [2])], noting, columns=2, side=SIDE)
    assert sorted(loaded) == [0, 1, 2]


def test_an_image_that_cannot_be_read_is_crossed_out():
    pixels = picture(pool_gallery([strip(0, [1])], lambda item: None, columns=1, side=SIDE))
    y = TOP + SIDE // 2
    assert tuple(pixels[TOP + 1, LEFT + 1]) == MISSING
    assert TEXT in {tuple(pixel) for pixel in pixels[y, LEFT : LEFT + SIDE]}


@pytest.mark.parametrize("title", ["P+", "a heading that is far wider than the room that it has"])
def test_text_stays_within_its_room(title):
    group = Group(title=title, ids=np.array([1]))
    pixels = picture(
        pool_gallery([Strip(anchor=0, groups=(group,))], load, columns=1, side=SIDE, title=title)
    )
    drawn = (pixels[:TOP] != BACKGROUND).any(2)
    assert drawn.any()
    assert not drawn[:, -MARGIN:].any()


def test_anchors_fill_rows_and_have_their_captions():
    png = anchor_gallery(np.arange(5), load, captions=list("abcde"), columns=3, side=SIDE)
    pixels = picture(png)
    for item in range(5):
        assert (pixels == color_of(item)).all(2).any()
    assert pixels.shape[1] == 2 * MARGIN + 3 * (SIDE + GAP) - GAP
    bare = picture(anchor_gallery(np.arange(5), load, columns=3, side=SIDE))
    assert bare.shape[0] < pixels.shape[0]
    assert png == anchor_gallery(np.arange(5), load, captions=list("abcde"), columns=3, side=SIDE)


def test_nothing_is_a_picture_too():
    for png in (pool_gallery([], load), anchor_gallery(np.empty(0, np.int64), load, title="x")):
        assert (picture(png) != BACKGROUND).any()


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="strips have different groups"):
        pool_gallery([strip(0, [1]), strip(0, [1], [2])], load)
    with pytest.raises(ValueError, match="1 captions of 2 images"):
        anchor_gallery(np.arange(2), load, captions=["a"])
    for wrong in ({"columns": 0}, {"side": 15}):
        with pytest.raises(ValueError, match="at least 1 and 16 pixels"):
            anchor_gallery(np.arange(2), load, **wrong)
