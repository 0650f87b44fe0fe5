"""The galleries show each image where it belongs, framed by what its label is."""

import io
import re

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mmray.pipeline.reports.galleries import (
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
    PLAIN,
    SAME,
    TEXT,
    THIN,
    TITLE,
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
    """The frame, the same from the first corner to the last, and the middle of a cell."""
    y, x = TOP + row * (SIDE + GAP), left + column * (SIDE + GAP)
    inside = pixels[y : y + SIDE, x : x + SIDE]
    assert (inside[0, 0] == inside[-1, -1]).all()
    return tuple(inside[0, 0]), tuple(inside[SIDE // 2, SIDE // 2])


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


def test_without_labels_nothing_is_judged_and_frames_are_thin():
    pixels = picture(pool_gallery([strip(0, [1])], load, columns=1, side=SIDE))
    line = pixels[TOP + SIDE // 2, LEFT : LEFT + SIDE]
    edge = [BACKGROUND] * (FRAME - THIN) + [PLAIN] * THIN
    assert [tuple(pixel) for pixel in line[: FRAME + 1]] == [*edge, color_of(1)]
    assert [tuple(pixel) for pixel in line[: -FRAME - 2 : -1]] == [*edge, color_of(1)]
    assert cell(pixels, 0, MARGIN)[0] == ANCHOR


@pytest.mark.parametrize(
    ("anchor", "item", "color"),
    [
        (7, 7, SAME),
        (0, 0, SAME),
        (7, 0, OTHER),
        (0.5, 0.5, SAME),
        ("01", "01", SAME),
        ("01", "1", OTHER),
        ("owl", "", UNLABELLED),
        ("", "owl", UNLABELLED),
        ("-1", "-1", UNLABELLED),
        (-1, -1, UNLABELLED),
        (7, -1, UNLABELLED),
        (-1, 7, UNLABELLED),
        (np.nan, np.nan, UNLABELLED),
        (0.5, np.nan, UNLABELLED),
        (None, None, UNLABELLED),
        ("owl", None, UNLABELLED),
    ],
)
@pytest.mark.parametrize("dtype", [None, object])
def test_labels_of_every_kind_are_compared_and_those_of_none_are_grey(anchor, item, color, dtype):
    labels = np.array([anchor, item], dtype)
    pixels = picture(pool_gallery([strip(0, [1])], load, labels=labels, columns=1, side=SIDE))
    assert cell(pixels, 0, LEFT) == (color, color_of(1))


def test_an_image_keeps_its_aspect_and_is_not_cut():
    def wide(item):
        return np.full((10, 40, 3), color_of(item), np.uint8)

    pixels = picture(anchor_gallery(np.array([0]), wide, side=SIDE))
    rows, columns = np.nonzero((pixels == color_of(0)).all(2))
    assert np.ptp(columns) + 1 == SIDE - 2 * FRAME
    assert np.ptp(rows) + 1 == (SIDE - 2 * FRAME) // 4
    assert (rows.min() + rows.max()) // 2 == MARGIN + SIDE // 2 - 1


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_a_row_adds_the_height_of_a_cell_and_nothing_is_wider(rows):
    one, all_rows = (
        picture(pool_gallery([strip(0, [1], [2])] * count, load, columns=3, side=SIDE)).shape
        for count in (1, rows)
    )
    assert all_rows == (one[0] + (rows - 1) * (SIDE + GAP), one[1], 3)
    block = 3 * (SIDE + GAP) - GAP
    assert one[1] == LEFT + block + GROUP_GAP + block + MARGIN
    assert GROUP_GAP > GAP


def test_a_group_shows_its_first_images_and_each_is_loaded_once():
    loaded = []

    def noting(item):
        loaded.append(item)
        return load(item)

    pool_gallery([strip(0, [1, 2, 3], [1]), strip(1, [0], [2])], noting, columns=2, side=SIDE)
    assert sorted(loaded) == [0, 1, 2]
    loaded.clear()
    anchor_gallery(np.array([2, 0, 2, 2]), noting, side=SIDE)
    assert sorted(loaded) == [0, 2]


@pytest.mark.parametrize("side", [16, 40, 96])
def test_an_image_that_cannot_be_read_is_crossed_out(side):
    pixels = picture(pool_gallery([strip(0, [1])], lambda item: None, columns=1, side=side))
    x = MARGIN + side + GROUP_GAP
    inside = pixels[TOP : TOP + side, x : x + side]
    for row, column in ((0, 0), (0, -1), (-1, 0), (-1, -1), (side // 2, 1), (1, side // 2)):
        assert tuple(inside[row, column]) == MISSING
    crossed = (inside == TEXT).all(2)
    assert crossed[side // 2, side // 2]
    assert np.ptp(np.nonzero(crossed)[0]) > side // 4
    assert ((inside == MISSING).all(2) | crossed).all()


LONG = "a heading that is far wider\nthan the room that it has, (gjpqy)"


@pytest.mark.parametrize("title", ["P+", "NN^e_5", "gjpqy", LONG, "W" * 40])
@pytest.mark.parametrize("side", [16, 40, 96])
def test_text_stays_within_its_room(title, side):
    groups = tuple(Group(title=each, ids=np.array([1])) for each in (title, title, title))
    strips = [Strip(anchor=0, groups=groups)]
    pixels = picture(pool_gallery(strips, load, columns=1, side=side, title=title))
    heading = MARGIN + round(LINE * TITLE)
    drawn = (pixels != BACKGROUND).any(2)
    lines = {
        "the title": drawn[MARGIN:heading],
        "the headings": drawn[heading : heading + round(LINE * HEADING)],
    }
    for name, line in lines.items():
        assert line.any(), name
        assert not line[-1].any(), f"{name} touches what is below"
        assert not line[:, -MARGIN:].any(), f"{name} leaves the picture"
    for place in range(4):
        end = MARGIN + side + place * (side + GROUP_GAP)
        gap = lines["the headings"][:, end : end + GROUP_GAP]
        assert not gap[:, 1:-1].any(), f"heading {place} runs into the next"


@pytest.mark.parametrize("side", [16, 40])
def test_a_caption_stays_below_its_image(side):
    captions = ["far too long (gjpqy)", "", "far too long (gjpqy)"]
    png = anchor_gallery(np.arange(3), load, captions=captions, columns=3, side=side)
    drawn = (picture(png) != BACKGROUND).any(2)
    line = drawn[MARGIN + side : -MARGIN]
    assert line[:, MARGIN : MARGIN + side].any()
    assert not line[:, MARGIN + side + 1 : MARGIN + 2 * (side + GAP) - 1].any()
    assert not drawn[:, -MARGIN:].any()
    assert not drawn[-MARGIN:].any()


def test_a_text_with_room_is_whole_and_one_without_ends_in_an_ellipsis(monkeypatch):
    written = []

    class Noting(ImageDraw.ImageDraw):
        def text(self, xy, text, *args, **kwargs):
            written.append(text)

    monkeypatch.setattr(ImageDraw, "Draw", Noting)
    anchor_gallery(np.arange(2), load, captions=["12.5", LONG], title="two\nanchors", side=96)
    title, short, long = written
    assert (title, short) == ("two anchors", "12.5")
    assert long.endswith("…")
    assert " ".join(LONG.split()).startswith(long[:-1])


def test_anchors_fill_rows_and_have_their_captions():
    png = anchor_gallery(np.arange(5), load, captions=list("abcde"), columns=3, side=SIDE)
    pixels = picture(png)
    line = (pixels.shape[0] - 2 * MARGIN + GAP) // 2 - SIDE - GAP  # height of captions
    for item in range(5):
        y = MARGIN + item // 3 * (SIDE + line + GAP) + SIDE // 2
        x = MARGIN + item % 3 * (SIDE + GAP)
        assert tuple(pixels[y, x + 1]) == ANCHOR
        assert tuple(pixels[y, x + SIDE // 2]) == color_of(item)
        assert (pixels == color_of(item)).all(2).sum() == (SIDE - 2 * FRAME) ** 2
    assert pixels.shape[1] == 2 * MARGIN + 3 * (SIDE + GAP) - GAP
    bare = picture(anchor_gallery(np.arange(5), load, columns=3, side=SIDE))
    assert bare.shape[0] < pixels.shape[0]


def test_the_same_is_drawn_as_the_same_bytes():
    strips = [strip(0, [1, 2], [3])]
    assert pool_gallery(strips, load, title="x") == pool_gallery(strips, load, title="x")
    assert anchor_gallery(np.arange(5), load) == anchor_gallery(np.arange(5), load)


def test_without_anchors_the_picture_says_so(monkeypatch):
    nothing = np.empty(0, np.int64)
    pictures = [pool_gallery([], load, title="x"), anchor_gallery(nothing, load, title="x")]
    assert pictures[0] == pictures[1]
    assert Image.open(io.BytesIO(pictures[0])).format == "PNG"
    written = []
    monkeypatch.setattr(
        ImageDraw.ImageDraw, "text", lambda self, xy, text, **_: written.append(text)
    )
    pool_gallery([], load, title="x")
    assert written == ["x", "no anchors"]


@pytest.mark.parametrize("titles", [("P-", "P+"), ("P+",), ()])
def test_strips_of_different_groups_are_refused_and_named(titles):
    groups = tuple(Group(title=title, ids=np.array([1])) for title in titles)
    strips = [strip(0, [1], [2]), strip(0, [1], [2]), Strip(anchor=0, groups=groups)]
    message = f"strip 2 has {list(titles)}, the first ['P+', 'P-']"
    with pytest.raises(ValueError, match=re.escape(message)):
        pool_gallery(strips, load)


def test_captions_of_another_number_than_images_are_refused():
    with pytest.raises(ValueError, match="1 captions of 2 images: give one for each"):
        anchor_gallery(np.arange(2), load, captions=["a"])


@pytest.mark.parametrize(("columns", "side"), [(0, 16), (-1, 96), (1, 15)])
def test_cells_too_few_or_too_small_are_refused(columns, side):
    message = f"columns = {columns}, side = {side}: give at least 1 and 16 pixels"
    with pytest.raises(ValueError, match=message):
        anchor_gallery(np.arange(2), load, columns=columns, side=side)
    with pytest.raises(ValueError, match=message):
        pool_gallery([strip(0, [1])], load, columns=columns, side=side)
