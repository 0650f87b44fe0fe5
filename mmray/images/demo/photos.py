"""Photos of artworks: in perspective, in a cluttered scene, partly hidden, under some light."""

from dataclasses import dataclass
from math import cos, pi, radians, sin

import numpy as np
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from mmray.images.demo.artworks import ARTISTS
from mmray.images.demo.drawing import Colour, draw_shape, hsv, make_palette, make_pattern
from mmray.system.arrays import Floats

SHAPES = ((4, 3), (4, 3), (3, 4), (3, 2), (2, 3), (1, 1))  # width : height of photos
CAMERA = 3.2  # distance of the camera from the centre of a model, whose longest side is 2


@dataclass(frozen=True)
class Model:
    """An object to photograph: pictures on flat faces; the longest side of its front is 2."""

    faces: tuple[tuple[Image.Image, Floats], ...]  # corners (4, 3): from top left, clockwise


@dataclass(frozen=True)
class View:
    """Pose of an object before the camera, and the time of day."""

    yaw: float  # radians, as are pitch and roll
    pitch: float
    roll: float
    scale: float  # longest side of the front seen head on, in shorter sides of the photo
    at: tuple[float, float]  # centre of the model, in widths and heights of the photo
    dusk: float  # 0 full daylight .. 1 late evening


@dataclass(frozen=True)
class Photo:
    """A photo, with the visible fraction of its subject's area and the subject's pixel box.

    The area is that of the faces towards the camera, including parts outside the photo.
    """

    image: Image.Image
    visible: float = 0.0
    box: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 0.0)  # x1, y1, x2, y2


def make_model(kind: str, layout: Generator, detail: Generator) -> Model:
    """Create a model of an object of this kind: a printed carton, or a single flat face."""
    front = ARTISTS[kind](layout, detail)
    w, h = np.array(front.size) / max(front.size)
    if kind != "package":
        return Model(((front, np.array([[-w, h, 0], [w, h, 0], [w, -h, 0], [-w, -h, 0]])),))
    d = w * layout.uniform(0.3, 0.7)
    faces = [(front, np.array([[-w, h, d], [w, h, d], [w, -h, d], [-w, -h, d]]))]
    flank = front.crop((0, 0, int(front.width * d / w), front.height))
    sign = Image.new("RGBA", (flank.width, flank.height // 2), make_palette(layout)[1])
    draw_shape(
        ImageDraw.Draw(sign), int(detail.integers(10)), (sign.width / 2, 80), 34, (240, 240, 230)
    )
    flank.paste(sign, (0, 60))
    for s in (-1.0, 1.0):
        corners = [[s * w, h, s * d], [s * w, h, -s * d], [s * w, -h, -s * d], [s * w, -h, s * d]]
        faces.append((flank, np.array(corners)))
    return Model(tuple(faces))


def path_view(path: Generator, jitter: Generator, t: float) -> View:
    """Return the view at t in 0..1 along the smooth path that `path` draws, with some jitter."""
    side = path.choice([-1.0, 1.0])
    waves = [sin(2 * pi * (path.uniform(0.6, 1.4) * t + path.random())) for _ in range(4)]
    pitch, roll, scale, light = waves
    tilt = jitter.uniform(-35, 35) if jitter.random() < 0.1 else jitter.normal(0, 3)
    return View(
        yaw=radians(side * 46 * (2 * t - 1) + jitter.normal(0, 4)),
        pitch=radians(14 * pitch + jitter.normal(0, 4)),
        roll=radians(9 * roll + tilt),
        scale=0.92 * np.exp(0.22 * scale + jitter.normal(0, 0.06)),
        at=(jitter.uniform(0.34, 0.66), jitter.uniform(0.4, 0.6)),
        dusk=float(np.clip(0.5 + 0.5 * light + jitter.normal(0, 0.1), 0, 1)),
    )


def _random_view(rng: Generator, scale: float) -> View:
    yaw, pitch, roll = np.radians(rng.normal(0, [28, 10, 8]))
    at = (rng.uniform(0.05, 0.95), rng.uniform(0.2, 0.8))
    return View(float(yaw), float(pitch), float(roll), scale, at, float(rng.random()))


def _project(corners: Floats, view: View, size: tuple[int, int]) -> Floats:
    """Project points (p, 3) of a model to pixel positions (p, 2) in a photo of this size."""
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
    """Compute the area of a polygon (p, 2), pixels; positive if clockwise on the photo."""
    x, y = quad.T
    return float(np.sum(x * np.roll(y, -1) - y * np.roll(x, -1)) / 2)


def _homography(source: Floats, target: Floats) -> list[float]:
    """Return PIL's 8 coefficients that map points (4, 2) of `target` back to those of `source`."""
    rows, values = [], []
    for (x, y), (u, v) in zip(target, source, strict=True):
        rows += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return [float(c) for c in np.linalg.solve(rows, values)]


def _place(photo: Image.Image, model: Model, view: View) -> tuple[Image.Image, float]:
    """Paste a model with its shadow into the photo; return its mask (L) and its area in pixels.

    The area includes parts outside the photo.
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
        area += seen * float(np.mean(np.asarray(small.getchannel("A")))) / 255
    shadow = mask.filter(ImageFilter.BoxBlur(5)).point(lambda v: round(0.55 * v))
    photo.paste((15, 15, 20), (round(6 * sin(6 * view.dusk)), 5), mask=shadow)
    for layer in layers:
        photo.paste(layer, mask=layer)
    return mask, area


def _clouds(rng: Generator, size: tuple[int, int], dark: Colour, light: Colour) -> Image.Image:
    """Create smooth noise of two scales between two colours."""
    coarse, fine = (
        Image.fromarray(rng.integers(0, 256, (n, n), dtype=np.uint8)).resize(size, how)
        for n, how in ((5, Image.Resampling.BICUBIC), (48, Image.Resampling.BILINEAR))
    )
    return ImageOps.colorize(Image.blend(coarse, fine, rng.uniform(0.15, 0.6)), dark, light)


def _tint(rng: Generator, low: float, high: float) -> Colour:
    return hsv(rng.random(), rng.uniform(0.0, 0.3), rng.uniform(low, high))


def _backdrop(rng: Generator, size: tuple[int, int]) -> Image.Image:
    """Draw a place: sky or wall above, ground below, houses or trees far off, some clutter."""
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
    """Paste a piece of clutter: a turned rectangle with a pattern."""
    w, h = int(rng.integers(12, 50)), int(rng.integers(12, 50))
    image = ImageOps.colorize(
        make_pattern(rng, (w, h)), _tint(rng, 0.1, 0.9), _tint(rng, 0.3, 1.0)
    ).convert("RGBA")
    turned = image.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR, expand=True)
    at = int(rng.uniform(-0.1, 0.95) * photo.width), int(rng.uniform(0, 0.95) * photo.height)
    photo.paste(turned, at, mask=turned)


def _passers_by(photo: Image.Image, hidden: Image.Image, rng: Generator, count: int) -> None:
    """Draw people, poles and signs in front; pixels that they cover become 0 in `hidden`."""
    brush, cut = ImageDraw.Draw(photo), ImageDraw.Draw(hidden)
    for _ in range(count):
        x, tall = rng.uniform(0, photo.width), rng.uniform(0.3, 0.65) * photo.height
        foot, w = photo.height * rng.uniform(0.85, 1.1), tall * 0.13
        coat, skin = (
            _tint(rng, 0.15, 0.8),
            hsv(0.07, rng.uniform(0.2, 0.6), rng.uniform(0.35, 0.95)),
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
    """Cover this fraction of the visible part of `hidden` by foliage or a hoarding from a side."""
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
    """Apply the effects of light and camera: colour cast, gradient, cast shadow, blur, noise."""
    pixels = np.asarray(photo, dtype=np.float32)
    height, width, _ = pixels.shape
    x, y = np.linspace(-1, 1, width, dtype=np.float32), np.linspace(-1, 1, height, dtype=np.float32)
    angle = rng.uniform(0, 2 * pi)
    across = x[None, :] * np.float32(cos(angle)) + y[:, None] * np.float32(sin(angle))
    field = 1 + np.float32(rng.uniform(0, 0.35)) * across
    if rng.random() < 0.4:
        edge = np.float32(rng.uniform(-0.5, 0.5))
        field *= 1 - np.float32(rng.uniform(0.25, 0.45)) * (across > edge)
    day, evening = np.array([1.1, 1.08, 1.02]), np.array([0.9, 0.8, 0.72])
    cast = ((1 - dusk) * day + dusk * evening) * rng.lognormal(0, 0.05, 3)
    noise = rng.standard_normal(pixels.shape, dtype=np.float32) * np.float32(2 + 3 * dusk)
    lit = pixels * field[..., None] * cast.astype(np.float32) + noise
    exposed = Image.fromarray(np.clip(lit, 0, 255).astype(np.uint8))
    blur = rng.uniform(0, 1.0)
    return exposed.filter(ImageFilter.GaussianBlur(blur)) if blur > 0.6 else exposed


def _one_off(rng: Generator, largest: float) -> tuple[Model, View]:
    """Create an object that no other photo shows, and a random view of it."""
    model = make_model(str(rng.choice(list(ARTISTS))), rng, rng)
    return model, _random_view(rng, rng.uniform(0.3, largest))


def take_photo(
    rng: Generator, longest_side: int, subject: tuple[Model, View] | None, bystanders: int
) -> Photo:
    """Render a photo of a subject, or of none, before `bystanders` objects of no other photo."""
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
    visible = min(1.0, float(np.sum(np.asarray(seen) > 127)) / area)
    return Photo(image, visible, (x1, y1, x2, y2))
