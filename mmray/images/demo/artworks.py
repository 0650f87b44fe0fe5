"""Flat pictures of invented objects, one function for each kind.

`layout` generators determine what the objects of a family share (palette, composition), `detail`
generators the rest. Pictures are RGBA, transparent outside the object's outline.
"""

from collections.abc import Callable
from math import pi
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from mmray.images.demo.drawing import (
    blend,
    draw_opening,
    draw_roof,
    draw_shape,
    draw_writing,
    make_palette,
    make_pattern,
)

Artist: TypeAlias = Callable[[Generator, Generator], Image.Image]


def _facade(layout: Generator, detail: Generator) -> Image.Image:
    """Draw the front of a building: roof, floors of windows, door, cornices, ornament."""
    wall, dark, bright, accent, light = make_palette(layout)
    width, height = ((260, 340), (340, 280), (320, 320))[layout.integers(3)]
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    top, form = int(height * layout.uniform(0.22, 0.34)), int(layout.integers(4))
    draw_roof(draw, form, width, top, wall, (dark, bright)[layout.integers(2)])
    draw.rectangle((0, top, width, height), fill=wall)
    joints = make_pattern(detail, (width, height - top))
    image.paste(blend(wall, dark, 0.3), (0, top), joints)
    draw_shape(draw, int(detail.integers(10)), (width / 2, top * 0.72), top * 0.2, accent)
    floors, columns = int(layout.integers(2, 5)), int(layout.integers(3, 7))
    storey, bay = (height - top) / floors, width / columns
    for floor in range(floors):
        y = top + floor * storey
        window, tall, wide = (
            detail.integers(4),
            detail.uniform(0.4, 0.68),
            detail.uniform(0.3, 0.62),
        )
        pane = (dark, dark, bright, accent)[detail.integers(4)]
        if detail.random() < 0.6:
            draw.rectangle(
                (0, y, width, y + detail.uniform(3, 9)), fill=(light, dark)[detail.integers(2)]
            )
        for column in range(columns):
            x = (column + 0.5) * bay
            box = (
                x - wide * bay / 2,
                y + (0.9 - tall) * storey,
                x + wide * bay / 2,
                y + 0.9 * storey,
            )
            draw_opening(draw, int(window), box, pane, light)
    if detail.random() < 0.7:
        door, x = detail.uniform(0.09, 0.16) * width, detail.choice([0.25, 0.5, 0.5, 0.75]) * width
        box = (x - door, height - detail.uniform(0.7, 0.95) * storey, x + door, height)
        draw_opening(draw, int(detail.integers(3)), box, (dark, accent)[detail.integers(2)], light)
    return image


def _poster(layout: Generator, detail: Generator) -> Image.Image:
    """Draw a poster or book cover: ground, rays, large shapes, a title and small print."""
    ground, dark, bright, accent, light = make_palette(layout)
    width, height = ((250, 340), (280, 320), (340, 250))[layout.integers(3)]
    image = Image.new("RGBA", (width, height), ground)
    image.paste(blend(ground, light, 0.5), (0, 0), make_pattern(detail, image.size))
    draw = ImageDraw.Draw(image)
    rays, x, y = (
        layout.integers(0, 9),
        layout.uniform(0.2, 0.8) * width,
        layout.uniform(0.3, 0.7) * height,
    )
    for ray in range(rays):
        start = 360 * ray / rays
        draw.pieslice((x - 400, y - 400, x + 400, y + 400), start, start + 180 / rays, fill=light)
    for colour in (bright, accent, dark, bright, light)[: detail.integers(3, 6)]:
        at = (detail.uniform(0.15, 0.85) * width, detail.uniform(0.25, 0.8) * height)
        radius, turn = detail.uniform(0.1, 0.3) * width, detail.uniform(0, 2 * pi)
        draw_shape(draw, int(detail.integers(10)), at, radius, colour, turn)
    title = layout.choice([0.05, 0.76]) * height
    draw.rectangle((0, title, width, title + 0.19 * height), fill=dark)
    draw_writing(draw, detail, (16, title + 9, width - 16, title + 0.19 * height - 9), light)
    for line in range(layout.integers(1, 4)):
        y = (0.3 if title > height / 2 else 0.8) * height - 14 * line
        draw_writing(draw, detail, (20, y, detail.uniform(0.4, 0.95) * width, y + 8), dark)
    draw.rectangle((0, 0, width - 1, height - 1), outline=light, width=6)
    return image


def _mural(layout: Generator, detail: Generator) -> Image.Image:
    """Draw a painted landscape: sky, sun, ranges of hills, houses, trees and birds."""
    ground, dark, bright, accent, light = make_palette(layout)
    width, height = ((340, 230), (340, 270), (300, 300))[layout.integers(3)]
    image = Image.new("RGBA", (width, height), light)
    image.paste(blend(light, bright, 0.4), (0, 0), make_pattern(detail, image.size))
    draw = ImageDraw.Draw(image)
    at = (detail.uniform(0.15, 0.85) * width, detail.uniform(0.15, 0.35) * height)
    draw_shape(
        draw, int(detail.choice([0, 1, 6, 7, 9])), at, detail.uniform(0.08, 0.2) * width, bright
    )
    x = np.arange(0, width + 10, 10)
    for layer, colour in enumerate((ground, accent, dark)):
        waves = detail.uniform(1.0, 4.0, 2), detail.uniform(0, 2 * pi, 2)
        rise = sum(np.sin(2 * pi * f * x / width + phase) for f, phase in zip(*waves, strict=True))
        y = height * (0.42 + 0.19 * layer) - height * 0.08 * rise
        hill = [(float(u), float(v)) for u, v in zip(x, y, strict=True)]
        draw.polygon([*hill, (width, height), (0, height)], fill=colour)
        for _ in range(detail.integers(1, 6)):
            u, v = hill[detail.integers(len(hill))]
            r = detail.uniform(9, 24)
            if detail.random() < 0.5:
                draw.rectangle((u - r, v - r, u + r, v + r), fill=light)
                draw.polygon(
                    [(u - r * 1.3, v - r), (u, v - 2.2 * r), (u + r * 1.3, v - r)], fill=bright
                )
                draw.rectangle((u - r / 3, v, u + r / 3, v + r), fill=dark)
            else:
                draw.rectangle((u - r / 5, v - r, u + r / 5, v + r), fill=dark)
                draw_shape(
                    draw, int(detail.choice([0, 3, 6, 7])), (u, v - r), r, (bright, dark)[layer < 2]
                )
    for _ in range(detail.integers(0, 6)):
        u, v = detail.uniform(0, width), detail.uniform(0, 0.4 * height)
        for side in (-10, 0):
            draw.arc((u + side, v, u + side + 10, v + 8), 180, 360, fill=dark, width=3)
    draw.rectangle((0, 0, width - 1, height - 1), outline=dark, width=7)
    return image


def _emblem(layout: Generator, detail: Generator) -> Image.Image:
    """Draw a coat of arms on a shield, disc or lozenge: a divided field with charges."""
    ground, dark, bright, accent, light = make_palette(layout)
    size = 320
    field = Image.new("RGB", (size, size), (ground, light)[layout.integers(2)])
    field.paste(blend(ground, accent, 0.4), (0, 0), make_pattern(detail, field.size))
    draw = ImageDraw.Draw(field)
    division = int(layout.integers(6))
    if division == 0:
        draw.rectangle((0, 0, size / 2, size), fill=bright)
    elif division == 1:
        draw.polygon([(0, 0), (size, 0), (0, size)], fill=bright)
    elif division == 2:
        draw.line((0, 0, size, size), fill=bright, width=70)
    elif division == 3:
        for x in range(0, size, 80):
            draw.rectangle((x, 0, x + 40, size), fill=bright)
    elif division == 4:
        draw.rectangle((0, 0, size, size * 0.36), fill=bright)
    else:
        draw.rectangle((0, 0, size / 2, size / 2), fill=bright)
        draw.rectangle((size / 2, size / 2, size, size), fill=bright)
    places = ((0.5, 0.5),), ((0.3, 0.3), (0.7, 0.7)), ((0.3, 0.32), (0.7, 0.32), (0.5, 0.68))
    crosswise = ((0.32, 0.3), (0.68, 0.3), (0.32, 0.64), (0.68, 0.64), (0.5, 0.47))
    chosen = (*places, crosswise)[layout.integers(4)]
    kinds = detail.integers(10, size=2)
    for i, (u, v) in enumerate(chosen):
        radius = (0.28 if len(chosen) == 1 else 0.15) * size * detail.uniform(0.8, 1.1)
        draw_shape(draw, int(kinds[i % 2]), (u * size, v * size), radius, (dark, accent)[i % 2])
        draw_shape(draw, int(detail.integers(10)), (u * size, v * size), radius * 0.4, light)
    band = 0.83 * size
    draw.rectangle((0, band, size, band + 34), fill=dark)
    draw_writing(draw, detail, (70, band + 8, size - 60, band + 26), light)
    mask = Image.new("L", (size, size))
    cut, outline = ImageDraw.Draw(mask), int(layout.integers(3))
    if outline == 0:
        cut.rectangle((8, 8, size - 8, size * 0.5), fill=255)
        cut.pieslice((8, -8, size - 8, size - 4), 0, 180, fill=255)
    elif outline == 1:
        cut.ellipse((4, 4, size - 4, size - 4), fill=255)
    else:
        cut.polygon(
            [
                (60, 4),
                (size - 60, 4),
                (size - 4, 160),
                (size - 60, size - 4),
                (60, size - 4),
                (4, 160),
            ],
            fill=255,
        )
    rim = mask.filter(ImageFilter.BoxBlur(7)).point(lambda v: 255 * (v == 255))
    framed = Image.composite(field, Image.new("RGB", field.size, dark), rim)
    framed.putalpha(mask)
    return framed


def _carpet(layout: Generator, detail: Generator) -> Image.Image:
    """Draw a carpet or stained-glass window: a quarter of shapes, mirrored twice, with a border."""
    ground, dark, bright, accent, light = make_palette(layout)
    width, height = ((125, 170), (170, 120), (150, 150))[layout.integers(3)]
    quarter = Image.new("RGB", (width, height), ground)
    quarter.paste(blend(ground, dark, 0.5), (0, 0), make_pattern(detail, quarter.size))
    draw = ImageDraw.Draw(quarter)
    if layout.random() < 0.5:
        draw.polygon([(0, height), (width, 0), (width, height)], fill=light)
    for i in range(detail.integers(5, 10)):
        at = (detail.uniform(0, width), detail.uniform(0, height))
        colour = (bright, dark, accent, light)[i % 4]
        draw_shape(
            draw, int(detail.integers(10)), at, detail.uniform(10, 46), colour, detail.uniform(0, 6)
        )
    for inset, colour in ((0, dark), (6, bright), (11, dark)):
        draw.line((inset, height, inset, inset, width, inset), fill=colour, width=6)
    upper = Image.new("RGB", (2 * width, height))
    upper.paste(quarter, (0, 0))
    upper.paste(ImageOps.mirror(quarter), (width, 0))
    image = Image.new("RGBA", (2 * width, 2 * height))
    image.paste(upper, (0, 0))
    image.paste(ImageOps.flip(upper), (0, height))
    return image


def _package(layout: Generator, detail: Generator) -> Image.Image:
    """Draw the front of a carton: a repeated pattern, a label with a sign and a name."""
    ground, dark, bright, accent, light = make_palette(layout)
    width, height = ((220, 320), (300, 260), (270, 300))[layout.integers(3)]
    image = Image.new("RGBA", (width, height), ground)
    draw = ImageDraw.Draw(image)
    pattern, step = int(layout.integers(4)), int(layout.integers(22, 44))
    motif, size = int(detail.integers(10)), detail.uniform(0.25, 0.45) * step
    for row, y in enumerate(range(0, height + step, step)):
        if pattern == 0:
            draw.rectangle((0, y, width, y + step / 2), fill=bright)
        for column, x in enumerate(range(0, width + step, step)):
            if pattern == 1 and (row + column) % 2:
                draw.rectangle((x, y, x + step, y + step), fill=bright)
            elif pattern == 2:
                draw.line((x, y, x + step / 2, y + step / 2, x + step, y), fill=bright, width=7)
            draw_shape(
                draw, motif, (x + step / 2, y + step / 2), size, (accent, light)[pattern % 2]
            )
    left, top = detail.uniform(0.06, 0.3) * width, detail.uniform(0.08, 0.4) * height
    right, bottom = left + 0.62 * width, top + 0.5 * height
    draw.rectangle((left, top, right, bottom), fill=light, outline=dark, width=5)
    centre = ((left + right) / 2, top + 0.18 * height)
    draw_shape(draw, int(detail.integers(10)), centre, 0.14 * height, accent)
    draw_shape(draw, int(detail.integers(10)), centre, 0.06 * height, dark)
    name = (left + 14, bottom - 0.15 * height, right - 10, bottom - 0.05 * height)
    draw_writing(draw, detail, name, dark)
    return image


ARTISTS: dict[str, Artist] = {
    "facade": _facade,
    "poster": _poster,
    "mural": _mural,
    "emblem": _emblem,
    "package": _package,
    "carpet": _carpet,
}
