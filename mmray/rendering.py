"""The collection of the demo preset: rendered photos of invented objects, in place of a landmark collection.

Every object is seen along a smooth path of viewpoint, distance and light, so that its far views are
linked through intermediate ones: the manifold that the method mines. Objects come in families of
up to three that share palette and layout and differ in detail, so that the Euclidean neighbours
of a photo are often of another object.

Three steps: artworks (a flat picture of something), photos (one or more of them in perspective, in
a scene, under some light), and the collection (files and ground truth in the form of Oxford5k).
Pictures are PIL images; `layout` generators draw what a family shares, `detail` generators the rest.
"""

import colorsys
import io
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from math import cos, pi, radians, sin
from typing import TypeAlias

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from mmray.arrays import Floats

Colour: TypeAlias = tuple[int, int, int]
Artist: TypeAlias = Callable[[Generator, Generator], Image.Image]

# ---------------------------------------------------------------------------- artworks


def _hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def _blend(first: Colour, second: Colour, part: float) -> Colour:
    red, green, blue = ((1 - part) * a + part * b for a, b in zip(first, second, strict=True))
    return round(red), round(green), round(blue)


def _palette(rng: Generator) -> tuple[Colour, Colour, Colour, Colour, Colour]:
    """Ground, dark, bright, accent and light colours that go together."""
    hue, other = rng.random(), rng.choice([0.12, 0.33, 0.5, 0.62])
    return (
        _hsv(hue, rng.uniform(0.15, 0.9), rng.uniform(0.4, 0.95)),
        _hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.3, 0.8), rng.uniform(0.12, 0.35)),
        _hsv(hue + other, rng.uniform(0.6, 1.0), rng.uniform(0.7, 1.0)),
        _hsv(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.4, 0.85)),
        _hsv(hue, rng.uniform(0.0, 0.2), rng.uniform(0.88, 1.0)),
    )


SPOKES = (
    (3, 0.5),
    (4, 0.71),
    (5, 0.4),
    (6, 0.55),
    (8, 0.8),
    (4, 0.3),
    (12, 0.6),
)  # (points, inner radius)


def _shape(
    draw: ImageDraw.ImageDraw,
    kind: int,
    at: tuple[float, float],
    radius: float,
    colour: Colour,
    turn: float = -pi / 2,
) -> None:
    """One of 10 charges: disc, ring, half disc, then the stars and polygons of SPOKES."""
    x, y = at
    box = (x - radius, y - radius, x + radius, y + radius)
    if kind == 0:
        draw.ellipse(box, fill=colour)
    elif kind == 1:
        draw.ellipse(box, outline=colour, width=max(1, round(radius / 3)))
    elif kind == 2:
        draw.pieslice(box, np.degrees(turn), np.degrees(turn) + 180, fill=colour)
    else:
        points, inner = SPOKES[kind - 3]
        angles = turn + pi * np.arange(2 * points) / points
        radii = np.where(np.arange(2 * points) % 2, inner, 1.0) * radius
        corners = zip(x + radii * np.cos(angles), y + radii * np.sin(angles), strict=True)
        draw.polygon([(float(u), float(v)) for u, v in corners], fill=colour)


def _pattern(rng: Generator, size: tuple[int, int]) -> Image.Image:
    """A mask (L) of stripes, checks, dots, waves, bricks or rings, at some angle and pitch."""
    angle, step = rng.choice([0.0, pi / 4, pi / 2, rng.uniform(0, pi)]), rng.uniform(2, 8)
    across, down = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    x = (across * cos(angle) + down * sin(angle)) / step
    y = (down * cos(angle) - across * sin(angle)) / step
    row = np.floor(y / pi)
    value = (
        np.sin(x) - rng.uniform(-0.6, 0.6),
        np.sin(x) * np.sin(y),
        np.sin(x) * np.sin(y) - 0.4,
        np.sin(y + 1.5 * np.sin(x / 2)),
        0.85 - np.maximum(np.cos(x + pi * (row % 2)), np.cos(2 * y)),
        np.sin(np.hypot(x % 12 - 6, y % 12 - 6)),
    )[rng.integers(6)]
    return Image.fromarray((value > 0).astype(np.uint8) * 255)


def _writing(
    draw: ImageDraw.ImageDraw,
    rng: Generator,
    box: tuple[float, float, float, float],
    colour: Colour,
) -> None:
    """A line of invented letters that fills the box."""
    left, top, right, bottom = box
    height = bottom - top
    step, width = 0.8 * height, max(1, round(height / 6))
    for i in range(int((right - left) / step)):
        x, u = left + i * step, 0.55 * height
        strokes = [
            ((x, top), (x, bottom)),
            ((x + u, top), (x + u, bottom)),
            ((x, top), (x + u, top)),
            ((x, bottom), (x + u, bottom)),
            ((x, top), (x + u, bottom)),
            ((x + u, top), (x, bottom)),
            ((x, top + height / 2), (x + u, top + height / 2)),
        ]
        for stroke in rng.choice(len(strokes), size=rng.integers(2, 5), replace=False):
            draw.line(strokes[stroke], fill=colour, width=width)


def _opening(
    draw: ImageDraw.ImageDraw,
    form: int,
    box: tuple[float, float, float, float],
    colour: Colour,
    frame: Colour,
) -> None:
    """A window or door with its frame: square, arched, pointed or round."""
    for grow, fill in ((3, frame), (0, colour)):
        x0, y0, x1, y1 = box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow
        middle, half = (x0 + x1) / 2, (x1 - x0) / 2
        if form == 3:
            radius = min(half, (y1 - y0) / 2)
            _shape(draw, 0, (middle, (y0 + y1) / 2), radius, fill)
        elif form == 0:
            draw.rectangle((x0, y0, x1, y1), fill=fill)
        else:
            draw.rectangle((x0, min(y0 + half, y1), x1, y1), fill=fill)
            if form == 1:
                draw.pieslice((x0, y0, x1, y0 + 2 * half), 180, 360, fill=fill)
            else:
                draw.polygon([(x0, y0 + half), (middle, y0 - half / 2), (x1, y0 + half)], fill=fill)
    x0, y0, x1, y1 = box
    if form != 3:
        draw.line(((x0 + x1) / 2, y0, (x0 + x1) / 2, y1), fill=frame, width=2)
        draw.line((x0, (y0 + y1) / 2, x1, (y0 + y1) / 2), fill=frame, width=2)


def _roof(
    draw: ImageDraw.ImageDraw, form: int, width: int, top: int, wall: Colour, roof: Colour
) -> None:
    """What stands above the wall: pediment, battlements with towers, dome or stepped gable."""
    if form == 0:
        draw.polygon([(0, top), (width / 2, top * 0.15), (width, top)], fill=roof)
        draw.polygon(
            [(width * 0.14, top - 6), (width / 2, top * 0.36), (width * 0.86, top - 6)], fill=wall
        )
    elif form == 1:
        for x in (0, width * 0.78):
            draw.rectangle((x, top * 0.35, x + width * 0.22, top), fill=wall)
            draw.polygon(
                [(x, top * 0.35), (x + width * 0.11, 0), (x + width * 0.22, top * 0.35)], fill=roof
            )
        for x in range(0, width, 24):
            draw.rectangle((x, top * 0.8, x + 12, top), fill=wall)
    elif form == 2:
        draw.pieslice((width * 0.2, top * 0.25, width * 0.8, top * 1.75), 180, 360, fill=roof)
        draw.rectangle((width * 0.47, 0, width * 0.53, top * 0.4), fill=roof)
    else:
        for step in range(5):
            inset = width * 0.1 * step
            draw.rectangle((inset, top * (1 - step / 5) - top / 5, width - inset, top), fill=wall)


def _facade(layout: Generator, detail: Generator) -> Image.Image:
    """The front of a building: roof, floors of windows, door, cornices, ornament."""
    wall, dark, bright, accent, light = _palette(layout)
    width, height = ((260, 340), (340, 280), (320, 320))[layout.integers(3)]
    image = Image.new("RGBA", (width, height))
    draw = ImageDraw.Draw(image)
    top, form = int(height * layout.uniform(0.22, 0.34)), int(layout.integers(4))
    _roof(draw, form, width, top, wall, (dark, bright)[layout.integers(2)])
    draw.rectangle((0, top, width, height), fill=wall)
    joints = _pattern(layout, (width, height - top))
    image.paste(_blend(wall, dark, 0.3), (0, top), joints)
    _shape(draw, int(detail.integers(10)), (width / 2, top * 0.72), top * 0.2, accent)
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
            _opening(draw, int(window), box, pane, light)
    if detail.random() < 0.7:
        door, x = detail.uniform(0.09, 0.16) * width, detail.choice([0.25, 0.5, 0.5, 0.75]) * width
        box = (x - door, height - detail.uniform(0.7, 0.95) * storey, x + door, height)
        _opening(draw, int(detail.integers(3)), box, (dark, accent)[detail.integers(2)], light)
    return image


def _poster(layout: Generator, detail: Generator) -> Image.Image:
    """A poster or book cover: ground, rays, large shapes, a title and small print."""
    ground, dark, bright, accent, light = _palette(layout)
    width, height = ((250, 340), (280, 320), (340, 250))[layout.integers(3)]
    image = Image.new("RGBA", (width, height), ground)
    image.paste(_blend(ground, light, 0.5), (0, 0), _pattern(layout, image.size))
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
        _shape(draw, int(detail.integers(10)), at, radius, colour, turn)
    title = layout.choice([0.05, 0.76]) * height
    draw.rectangle((0, title, width, title + 0.19 * height), fill=dark)
    _writing(draw, detail, (16, title + 9, width - 16, title + 0.19 * height - 9), light)
    for line in range(layout.integers(1, 4)):
        y = (0.3 if title > height / 2 else 0.8) * height - 14 * line
        _writing(draw, detail, (20, y, detail.uniform(0.4, 0.95) * width, y + 8), dark)
    draw.rectangle((0, 0, width - 1, height - 1), outline=light, width=6)
    return image


def _mural(layout: Generator, detail: Generator) -> Image.Image:
    """A painted landscape: sky, sun, ranges of hills, houses, trees and birds."""
    ground, dark, bright, accent, light = _palette(layout)
    width, height = ((340, 230), (340, 270), (300, 300))[layout.integers(3)]
    image = Image.new("RGBA", (width, height), light)
    image.paste(_blend(light, bright, 0.4), (0, 0), _pattern(layout, image.size))
    draw = ImageDraw.Draw(image)
    at = (detail.uniform(0.15, 0.85) * width, detail.uniform(0.15, 0.35) * height)
    _shape(draw, int(detail.choice([0, 1, 6, 7, 9])), at, detail.uniform(0.08, 0.2) * width, bright)
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
                _shape(
                    draw, int(detail.choice([0, 3, 6, 7])), (u, v - r), r, (bright, dark)[layer < 2]
                )
    for _ in range(detail.integers(0, 6)):
        u, v = detail.uniform(0, width), detail.uniform(0, 0.4 * height)
        for side in (-10, 0):
            draw.arc((u + side, v, u + side + 10, v + 8), 180, 360, fill=dark, width=3)
    draw.rectangle((0, 0, width - 1, height - 1), outline=dark, width=7)
    return image


def _emblem(layout: Generator, detail: Generator) -> Image.Image:
    """A coat of arms on a shield, disc or lozenge: a divided field with charges."""
    ground, dark, bright, accent, light = _palette(layout)
    size = 320
    field = Image.new("RGB", (size, size), (ground, light)[layout.integers(2)])
    field.paste(_blend(ground, accent, 0.4), (0, 0), _pattern(layout, field.size))
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
        _shape(draw, int(kinds[i % 2]), (u * size, v * size), radius, (dark, accent)[i % 2])
        _shape(draw, int(detail.integers(10)), (u * size, v * size), radius * 0.4, light)
    band = 0.83 * size
    draw.rectangle((0, band, size, band + 34), fill=dark)
    _writing(draw, detail, (70, band + 8, size - 60, band + 26), light)
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
    """A carpet or window of coloured glass: a quarter of shapes, mirrored twice, with a border."""
    ground, dark, bright, accent, light = _palette(layout)
    width, height = ((125, 170), (170, 120), (150, 150))[layout.integers(3)]
    quarter = Image.new("RGB", (width, height), ground)
    quarter.paste(_blend(ground, dark, 0.5), (0, 0), _pattern(layout, quarter.size))
    draw = ImageDraw.Draw(quarter)
    if layout.random() < 0.5:
        draw.polygon([(0, height), (width, 0), (width, height)], fill=light)
    for i in range(detail.integers(5, 10)):
        at = (detail.uniform(0, width), detail.uniform(0, height))
        colour = (bright, dark, accent, light)[i % 4]
        _shape(
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
    """The front of a carton: a repeated pattern, a label with a sign and a name."""
    ground, dark, bright, accent, light = _palette(layout)
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
            _shape(draw, motif, (x + step / 2, y + step / 2), size, (accent, light)[pattern % 2])
    x, y = detail.uniform(0.06, 0.3) * width, detail.uniform(0.08, 0.4) * height
    right, bottom = x + 0.62 * width, y + 0.5 * height
    draw.rectangle((x, y, right, bottom), fill=light, outline=dark, width=5)
    _shape(
        draw, int(detail.integers(10)), ((x + right) / 2, y + 0.18 * height), 0.14 * height, accent
    )
    _shape(
        draw, int(detail.integers(10)), ((x + right) / 2, y + 0.18 * height), 0.06 * height, dark
    )
    _writing(
        draw, detail, (x + 14, bottom - 0.15 * height, right - 10, bottom - 0.05 * height), dark
    )
    return image


ARTISTS: dict[str, Artist] = {
    "facade": _facade,
    "poster": _poster,
    "mural": _mural,
    "emblem": _emblem,
    "package": _package,
    "carpet": _carpet,
}

# ---------------------------------------------------------------------------- photos

SHAPES = ((4, 3), (4, 3), (3, 4), (3, 2), (2, 3), (1, 1))  # width : height of photos
CAMERA = 3.2  # distance of the camera from the centre of a model, whose longest side is 2


@dataclass(frozen=True)
class Model:
    """A thing to photograph: pictures on flat faces; the longest side of its front is 2."""

    faces: tuple[tuple[Image.Image, Floats], ...]  # corners (4, 3): from top left, clockwise


@dataclass(frozen=True)
class View:
    """Where the camera stands, and the light there is."""

    yaw: float  # radians, as are pitch and roll
    pitch: float
    roll: float
    scale: float  # longest side of the front seen head on, in shorter sides of the photo
    at: tuple[float, float]  # centre of the model, in widths and heights of the photo
    dusk: float  # 0 full daylight .. 1 late evening


@dataclass(frozen=True)
class Photo:
    """A photo and what is seen of its subject: the fraction of its front, and the pixel box."""

    image: Image.Image
    visible: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # x1, y1, x2, y2


def make_model(kind: str, layout: Generator, detail: Generator) -> Model:
    """A model of this kind: a printed carton, or a single flat face."""
    front = ARTISTS[kind](layout, detail)
    w, h = np.array(front.size) / max(front.size)
    if kind != "package":
        return Model(((front, np.array([[-w, h, 0], [w, h, 0], [w, -h, 0], [-w, -h, 0]])),))
    d = w * layout.uniform(0.3, 0.7)
    faces = [(front, np.array([[-w, h, d], [w, h, d], [w, -h, d], [-w, -h, d]]))]
    flank = front.crop((0, 0, int(front.width * d / w), front.height))
    sign = Image.new("RGBA", (flank.width, flank.height // 2), _palette(layout)[1])
    _shape(
        ImageDraw.Draw(sign), int(detail.integers(10)), (sign.width / 2, 80), 34, (240, 240, 230)
    )
    flank.paste(sign, (0, 60))
    for s in (-1.0, 1.0):
        corners = [[s * w, h, s * d], [s * w, h, -s * d], [s * w, -h, -s * d], [s * w, -h, s * d]]
        faces.append((flank, np.array(corners)))
    return Model(tuple(faces))


def path_view(path: Generator, jitter: Generator, t: float) -> View:
    """The view at t in 0..1 along the smooth path that `path` draws, give or take some jitter."""
    side = path.choice([-1.0, 1.0])
    waves = [sin(2 * pi * (path.uniform(0.6, 1.4) * t + path.random())) for _ in range(4)]
    pitch, roll, scale, light = waves
    tilt = jitter.uniform(-35, 35) if jitter.random() < 0.1 else jitter.normal(0, 3)
    return View(
        yaw=radians(side * 46 * (2 * t - 1) + jitter.normal(0, 4)),
        pitch=radians(14 * pitch + jitter.normal(0, 4)),
        roll=radians(9 * roll + tilt),
        scale=0.92 * np.exp(0.25 * scale + jitter.normal(0, 0.06)),
        at=(jitter.uniform(0.34, 0.66), jitter.uniform(0.4, 0.6)),
        dusk=float(np.clip(0.5 + 0.5 * light + jitter.normal(0, 0.1), 0, 1)),
    )


def _random_view(rng: Generator, scale: float) -> View:
    yaw, pitch, roll = np.radians(rng.normal(0, [28, 10, 8]))
    at = (rng.uniform(0.05, 0.95), rng.uniform(0.2, 0.8))
    return View(float(yaw), float(pitch), float(roll), scale, at, float(rng.random()))


def _project(corners: Floats, view: View, size: tuple[int, int]) -> Floats:
    """Pixel positions (p, 2) of points (p, 3) of a model in a photo of this size."""
    cy, sy, cp, sp = cos(view.yaw), sin(view.yaw), cos(view.pitch), sin(view.pitch)
    x, y, z = corners.T
    x, z = cy * x + sy * z, cy * z - sy * x
    y, z = cp * y - sp * z, cp * z + sp * y
    zoom = CAMERA / (CAMERA - z) * view.scale * min(size) / 2
    cr, sr = cos(view.roll), sin(view.roll)
    u = view.at[0] * size[0] + zoom * (cr * x + sr * y)
    v = view.at[1] * size[1] - zoom * (cr * y - sr * x)
    return np.stack([u, v], axis=1)


def _signed_area(quad: Floats) -> float:
    """Area of a polygon (p, 2) in pixels, positive where its corners go clockwise on the photo."""
    x, y = quad.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def _homography(source: Floats, target: Floats) -> list[float]:
    """The 8 coefficients by which PIL maps points (4, 2) of `target` back to those of `source`."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(c) for c in np.linalg.solve(rows, values)]


def _place(photo: Image.Image, model: Model, view: View) -> tuple[Image.Image, float]:
    """Paste a model with its shadow into the photo; return its mask (L) and its area in pixels.

    The area counts what lies outside the photo too.
    """
    mask, area, layers = Image.new("L", photo.size), 0.0, []
    for picture, corners in model.faces:
        quad = _project(corners, view, photo.size)
        seen = _signed_area(quad)
        if seen < 1:  # turned away
            continue
        # A face smaller than its picture is reduced first, or the warp would alias.
        shrink = min(1.0, 1.3 * (seen / (picture.width * picture.height)) ** 0.5)
        width, height = (max(4, round(shrink * length)) for length in picture.size)
        small = picture.resize((width, height), Image.Resampling.BOX)
        frame = np.array([[0, 0], [width, 0], [width, height], [0, height]], dtype=float)
        warp = _homography(frame, quad)
        layer = small.transform(
            photo.size, Image.Transform.PERSPECTIVE, warp, Image.Resampling.BILINEAR
        )
        away = 1 - abs(corners[0, 2] - corners[1, 2]) / 4  # flanks get less light than the front
        layers.append(layer.point([round(away * v) for v in range(256)] * 3 + list(range(256))))
        mask.paste(255, mask=layer.getchannel("A"))
        area += seen * float(np.mean(small.getchannel("A"))) / 255
    shadow = mask.filter(ImageFilter.BoxBlur(5)).point(lambda v: round(0.55 * v))
    photo.paste((15, 15, 20), (round(6 * sin(6 * view.dusk)), 5), mask=shadow)
    for layer in layers:
        photo.paste(layer, mask=layer)
    return mask, area


def _clouds(rng: Generator, size: tuple[int, int], dark: Colour, light: Colour) -> Image.Image:
    """Smooth noise of two scales between two colours."""
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8)).resize(size, how)
        for n, how in ((5, Image.Resampling.BICUBIC), (48, Image.Resampling.BILINEAR))
    )
    return ImageOps.colorize(Image.blend(coarse, fine, rng.uniform(0.15, 0.6)), dark, light)


def _tint(rng: Generator, low: float, high: float) -> Colour:
    return _hsv(rng.random(), rng.uniform(0.0, 0.3), rng.uniform(low, high))


def _backdrop(rng: Generator, size: tuple[int, int]) -> Image.Image:
    """A place: sky or wall above, ground below, houses or trees far off, patterned clutter."""
    width, height = size
    photo = _clouds(rng, size, _tint(rng, 0.2, 0.6), _tint(rng, 0.6, 1.0))
    draw, horizon = ImageDraw.Draw(photo), round(rng.uniform(0.45, 0.85) * height)
    for _ in range(rng.integers(0, 14)):
        x, w, h = rng.uniform(0, width), rng.uniform(8, 45), rng.uniform(10, 0.5 * height)
        colour, lit = _tint(rng, 0.2, 0.8), _tint(rng, 0.4, 1.0)
        if rng.random() < 0.6:
            draw.rectangle((x, horizon - h, x + w, horizon), fill=colour)
            for v in np.arange(horizon - h + 4, horizon - 6, 9):
                for u in np.arange(x + 3, x + w - 5, 8):
                    draw.rectangle((u, v, u + 3, v + 4), fill=lit)
        else:
            draw.rectangle((x - 2, horizon - h / 2, x + 2, horizon), fill=(70, 50, 40))
            draw.ellipse((x - w / 2, horizon - h, x + w / 2, horizon - h / 3), fill=colour)
    ground = _clouds(rng, (width, height - horizon), _tint(rng, 0.1, 0.5), _tint(rng, 0.4, 0.8))
    photo.paste(ground, (0, horizon))
    for _ in range(rng.integers(0, 4)):
        _patch(photo, rng)
    return photo


def _patch(photo: Image.Image, rng: Generator) -> None:
    """Clutter: a turned rectangle with stripes, checks or dots."""
    w, h = int(rng.integers(12, 50)), int(rng.integers(12, 50))
    image = ImageOps.colorize(_pattern(rng, (w, h)), _tint(rng, 0.1, 0.9), _tint(rng, 0.3, 1.0)).convert("RGBA")
    turned = image.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR, expand=True)
    at = int(rng.uniform(-0.1, 0.95) * photo.width), int(rng.uniform(0, 0.95) * photo.height)
    photo.paste(turned, at, mask=turned)


def _passers_by(photo: Image.Image, hidden: Image.Image, rng: Generator, count: int) -> None:
    """People, poles and signs in front; what they cover turns to 0 in the mask `hidden`."""
    brush, cut = ImageDraw.Draw(photo), ImageDraw.Draw(hidden)
    for _ in range(count):
        x, tall = rng.uniform(0, photo.width), rng.uniform(0.3, 0.65) * photo.height
        foot, w = photo.height * rng.uniform(0.85, 1.1), tall * 0.13
        coat, skin = (
            _tint(rng, 0.15, 0.8),
            _hsv(0.07, rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.95)),
        )
        form = rng.integers(3)
        for draw, first, second in ((brush, coat, skin), (cut, 0, 0)):
            if form == 0:
                draw.rounded_rectangle((x - w, foot - 0.8 * tall, x + w, foot), w, fill=first)
                draw.ellipse(
                    (x - 0.6 * w, foot - tall, x + 0.6 * w, foot - 0.8 * tall), fill=second
                )
            elif form == 1:
                draw.rectangle((x - w / 3, 0, x + w / 3, foot), fill=first)
            else:
                draw.rectangle((x - w / 5, foot - tall, x + w / 5, foot), fill=second)
                draw.rectangle((x - w, foot - tall, x + w, foot - 0.7 * tall), fill=first)


def _screen(photo: Image.Image, hidden: Image.Image, rng: Generator, fraction: float) -> None:
    """Foliage or a hoarding over this fraction of what is seen in the mask, from one side."""
    x0, y0, x1, y1 = hidden.getbbox() or (0, 0, 1, 1)
    leaves, side = Image.new("L", photo.size), rng.integers(3)
    draw, w, h = ImageDraw.Draw(leaves), (x1 - x0) * fraction, (y1 - y0) * fraction
    area = ((x0, y0, x0 + w, y1), (x1 - w, y0, x1, y1), (x0, y1 - h, x1, y1))[side]
    left, top, right, bottom = area
    if rng.random() < 0.5:
        draw.rectangle((left - 4, top - 4, right, bottom + 40), fill=255)
        texture = _clouds(rng, photo.size, _tint(rng, 0.2, 0.5), _tint(rng, 0.5, 0.9))
    else:
        for x, y in rng.uniform((left, top), (right, bottom), (220, 2)):
            radius = rng.uniform(0.05, 0.09) * max(right - left, bottom - top)
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
        texture = _clouds(rng, photo.size, (15, 40, 12), (110, 160, 60))
    photo.paste(texture, mask=leaves)
    hidden.paste(0, mask=leaves)


def _expose(photo: Image.Image, rng: Generator, dusk: float) -> Image.Image:
    """What light and camera do: gain, colour cast, gradient, cast shadow, blur, noise."""
    pixels = np.asarray(photo, dtype=np.float32)
    height, width, _ = pixels.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    angle = rng.uniform(0, 2 * pi)
    across = x[None, :] * np.float32(cos(angle)) + y[:, None] * np.float32(sin(angle))
    field = 1 + np.float32(rng.uniform(0, 0.35)) * across
    if rng.random() < 0.4:
        edge = np.float32(rng.uniform(-0.5, 0.5))
        field *= 1 - np.float32(rng.uniform(0.25, 0.45)) * (across > edge)
    day, evening = np.array([1.1, 1.08, 1.02]), np.array([0.85, 0.74, 0.66])
    cast = ((1 - dusk) * day + dusk * evening) * rng.lognormal(0, 0.05, 3)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(2 + 4 * dusk)
    lit = pixels * field[..., None] * cast.astype(np.float32) + noise
    exposed = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    blur = rng.uniform(0, 1.0)
    return exposed.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.6 else exposed


def _one_off(rng: Generator, largest: float) -> tuple[Model, View]:
    """Something that no other photo shows."""
    model = make_model(str(rng.choice(list(ARTISTS))), rng, rng)
    return model, _random_view(rng, rng.uniform(0.3, largest))


def take_photo(
    rng: Generator, longest_side: int, subject: tuple[Model, View] | None, bystanders: int
) -> Photo:
    """A photo of a subject, or of none; `bystanders` one-off things stand behind it."""
    shape = np.array(SHAPES[rng.integers(len(SHAPES))])
    width, height = (int(v) for v in np.rint(longest_side * shape / shape.max()))
    image = _backdrop(rng, (width, height))
    for _ in range(bystanders):
        _place(image, *_one_off(rng, 0.45 if subject else 0.9))
    seen, area, dusk = Image.new("L", image.size), 1.0, float(rng.random())
    if subject is not None:
        seen, area = _place(image, *subject)
        dusk = subject[1].dusk
    luck = rng.random()
    if luck < 0.17:
        heavy = luck < 0.06
        _screen(image, seen, rng, rng.uniform(0.8, 0.93) if heavy else rng.uniform(0.25, 0.6))
    _passers_by(image, seen, rng, int(rng.integers(0, 3)))
    image, box = _expose(image, rng, dusk), seen.getbbox()
    if box is None:
        return Photo(image)
    x1, y1, x2, y2 = (float(v) for v in box)
    return Photo(image, float(np.sum(np.asarray(seen) > 127)) / area, (x1, y1, x2, y2))


# ---------------------------------------------------------------------------- collection

FAMILY = 2  # objects that share palette and layout
QUERIES = 3  # of each test object
GOOD, OK = 0.65, 0.25  # visible fractions from which a photo is "good" and "ok"
QUALITY = 88  # of JPEG
# What a generator is for; part of its seed, beside the seed of the collection.
LAYOUT, DETAIL, PATH, PHOTO, NAMES, KINDS = range(6)

Write: TypeAlias = Callable[[str, bytes], None]


@dataclass(frozen=True)
class Subject:
    """An object of the collection: photos of it follow the path that `path_seed` draws."""

    name: str
    model: Model
    path_seed: tuple[int, ...]


@dataclass(frozen=True)
class Labelled:
    """A photo's file, its object ("" for none) and the ground truth about it."""

    name: str
    data: bytes
    subject: str
    visible: float
    box: tuple[float, float, float, float]


def render_collection(
    write: Write,
    *,
    objects: int,
    photos: int,
    distractors: int,
    longest_side: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> dict[str, int]:
    """Render a training part without labels and a test part with ground truth, of different objects.

    Files: `train/NAME.jpg`; `train_labels.csv` (name, object; only to measure how pure mined pools
    are); `test/jpg/NAME.jpg` and `test/gt/OBJECT_i_{query,good,ok,junk}.txt` as in Oxford5k.
    Names do not tell the object. A photo depends on the seed, its index and the sizes alone.

    Parameters
    ----------
    write : stores a file under a relative path; called in a fixed order from this thread
    objects : in each part
    photos : of each object
    distractors : photos of none of the objects, in each part
    longest_side : of every photo, pixels, at least 64
    progress : is told the number of photos that were just stored

    Returns
    -------
    Counts: train_photos, test_photos, objects, queries, good, ok, junk (labels of test photos).

    Raises
    ------
    ValueError
        A size is too small, or the seed is negative.
    """
    least = {"objects": 1, "photos": 1, "distractors": 0, "longest_side": 64, "seed": 0}
    given = (objects, photos, distractors, longest_side, seed)
    for (name, bound), value in zip(least.items(), given, strict=True):
        if value < bound:
            raise ValueError(f"render_collection: {name} = {value}, it must be at least {bound}")

    tables: list[list[Labelled]] = []
    for part, folder in enumerate(("train", "test/jpg")):
        subjects = _subjects(seed, part, objects)
        table = []
        for photo in _render_part(seed, part, subjects, photos, distractors, longest_side):
            write(f"{folder}/{photo.name}.jpg", photo.data)
            table.append(replace(photo, data=b""))
            if progress is not None:
                progress(1)
        tables.append(table)
    train, test = tables
    rows = sorted(f"{photo.name},{photo.subject}\n" for photo in train)
    write("train_labels.csv", "".join(["name,object\n", *rows]).encode())
    counts = {"train_photos": len(train), "test_photos": len(test), "objects": 2 * objects}
    return counts | _write_ground_truth(write, test)


def _subjects(seed: int, part: int, count: int) -> list[Subject]:
    """The objects of a part: families of FAMILY, the kinds in turn, the same in both parts."""
    kinds = default_rng([seed, KINDS]).permutation(list(ARTISTS))
    subjects = []
    for index in range(count):
        family = index // FAMILY
        kind = str(kinds[family % len(kinds)])
        layout = default_rng([seed, part, LAYOUT, family])
        model = make_model(kind, layout, default_rng([seed, part, DETAIL, index]))
        name = f"{kind}{part * count + index:03d}"
        subjects.append(Subject(name, model, (seed, part, PATH, index)))
    return subjects


def _render_part(
    seed: int, part: int, subjects: list[Subject], photos: int, distractors: int, longest_side: int
) -> Iterator[Labelled]:
    """The photos of a part, object by object, then the distractors; on every core."""
    total = len(subjects) * photos + distractors
    names = default_rng([seed, part, NAMES]).permutation(total) + part * total

    def render(index: int) -> Labelled:
        rng = default_rng([seed, part, PHOTO, index])
        which, step = divmod(index, photos)
        subject = subjects[which] if which < len(subjects) else None
        posed = None
        if subject is not None:
            path = default_rng(subject.path_seed)
            posed = subject.model, path_view(path, rng, (step + rng.random()) / photos)
        photo = take_photo(rng, longest_side, posed, int(rng.integers(0, 2)))
        data = io.BytesIO()
        photo.image.save(data, "JPEG", quality=QUALITY)
        name = subject.name if subject is not None else ""
        return Labelled(f"{names[index]:06d}", data.getvalue(), name, photo.visible, photo.box)

    pool = ThreadPoolExecutor(os.cpu_count())
    try:
        yield from pool.map(render, range(total))
    finally:
        pool.shutdown(cancel_futures=True)


def _write_ground_truth(write: Write, test: list[Labelled]) -> dict[str, int]:
    """The lists of each query; returns how many queries, good, ok and junk photos there are."""
    counts = {"queries": 0, "good": 0, "ok": 0, "junk": 0}
    for subject in sorted({photo.subject for photo in test} - {""}):
        of_subject = [photo for photo in test if photo.subject == subject]
        lists = {
            "good": [photo for photo in of_subject if photo.visible >= GOOD],
            "ok": [photo for photo in of_subject if OK < photo.visible < GOOD],
            "junk": [photo for photo in of_subject if photo.visible <= OK],
        }
        # Spread along the path of views, so that queries differ.
        clear = lists["good"] or lists["ok"]
        chosen = (
            {clear[(2 * i + 1) * len(clear) // (2 * QUERIES)].name: None for i in range(QUERIES)}
            if clear
            else {}
        )
        queries = [photo for photo in clear if photo.name in chosen]
        for i, query in enumerate(queries, start=1):
            box = " ".join(f"{edge:.1f}" for edge in query.box)
            write(f"test/gt/{subject}_{i}_query.txt", f"{query.name} {box}\n".encode())
            for label, photos in lists.items():
                lines = "".join(f"{photo.name}\n" for photo in photos)
                write(f"test/gt/{subject}_{i}_{label}.txt", lines.encode())
        counts["queries"] += len(queries)
        for label, photos in lists.items():
            counts[label] += len(photos)
    return counts
