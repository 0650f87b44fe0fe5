"""Drawing tools for the artworks: colours, shapes, patterns, letters, windows and roofs."""

import colorsys
from math import cos, pi, sin
from typing import TypeAlias

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw

Colour: TypeAlias = tuple[int, int, int]


def hsv(hue: float, saturation: float, value: float) -> Colour:
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, saturation, value)
    return round(255 * red), round(255 * green), round(255 * blue)


def blend(first: Colour, second: Colour, part: float) -> Colour:
    red, green, blue = ((1 - part) * a + part * b for a, b in zip(first, second, strict=True))
    return round(red), round(green), round(blue)


def make_palette(rng: Generator) -> tuple[Colour, Colour, Colour, Colour, Colour]:
    """Draw five random colours that go together: ground, dark, bright, accent and light."""
    hue, other = rng.random(), rng.choice([0.12, 0.33, 0.5, 0.62])
    return (
        hsv(hue, rng.uniform(0.15, 0.9), rng.uniform(0.4, 0.95)),
        hsv(hue + rng.uniform(-0.1, 0.1), rng.uniform(0.3, 0.8), rng.uniform(0.12, 0.35)),
        hsv(hue + other, rng.uniform(0.6, 1.0), rng.uniform(0.7, 1.0)),
        hsv(rng.random(), rng.uniform(0.5, 1.0), rng.uniform(0.4, 0.85)),
        hsv(hue, rng.uniform(0.0, 0.2), rng.uniform(0.88, 1.0)),
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


def draw_shape(
    draw: ImageDraw.ImageDraw,
    kind: int,
    at: tuple[float, float],
    radius: float,
    colour: Colour,
    turn: float = -pi / 2,
) -> None:
    """Draw one of 10 shapes: disc, ring, half disc, then the stars and polygons of SPOKES.

    Parameters
    ----------
    draw : of the image to draw on
    kind : 0..9, in that order
    at : x and y of the centre, pixels
    radius : pixels
    colour : RGB, 0..255
    turn : angle of the first point or of the half disc's side, radians; -π/2 points upwards
    """
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


def make_pattern(rng: Generator, size: tuple[int, int]) -> Image.Image:
    """Create a random mask (mode L) of stripes, checks, dots, waves, bricks or rings."""
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


def draw_writing(
    draw: ImageDraw.ImageDraw,
    rng: Generator,
    box: tuple[float, float, float, float],
    colour: Colour,
) -> None:
    """Draw a line of invented letters that fills the box."""
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


def draw_opening(
    draw: ImageDraw.ImageDraw,
    form: int,
    box: tuple[float, float, float, float],
    colour: Colour,
    frame: Colour,
) -> None:
    """Draw a window or door with its frame; forms 0..3 are square, arched, pointed and round."""
    for grow, fill in ((3, frame), (0, colour)):
        x0, y0, x1, y1 = box[0] - grow, box[1] - grow, box[2] + grow, box[3] + grow
        middle, half = (x0 + x1) / 2, (x1 - x0) / 2
        if form == 3:
            radius = min(half, (y1 - y0) / 2)
            draw_shape(draw, 0, (middle, (y0 + y1) / 2), radius, fill)
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


def draw_roof(
    draw: ImageDraw.ImageDraw, form: int, width: int, top: int, wall: Colour, roof: Colour
) -> None:
    """Draw what rises above a wall: a pediment, towers with battlements, a dome or stepped gable.

    Parameters
    ----------
    draw : of the image to draw on
    form : 0..3, in that order
    width : of the wall, pixels
    top : y of the wall's upper edge, pixels; the roof takes the pixels above
    wall, roof : RGB, 0..255
    """
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
