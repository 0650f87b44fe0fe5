"""Random and central crops: against a literal reading of torchvision's rule, and torchvision."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torchvision.transforms import CenterCrop, RandomResizedCrop, Resize

from mmray.images.cropping import RandomCrop, center_crop, random_part

SHAPES = [(1, 1), (1, 500), (500, 1), (2, 3), (7, 3000), (3000, 7), (40, 60), (300, 200)]


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def scene(height, width):
    """Smooth, and different in all four directions."""
    y, x = np.mgrid[:height, :width] + 0.5
    waves = [x / width, y / height, np.sin(3 * x / width) * np.cos(2 * y / height) / 2 + 0.5]
    return np.round(255 * np.stack(waves, 2)).astype(np.uint8)


def resized(pixels, size):
    return np.array(Image.fromarray(pixels).resize((size, size), Image.Resampling.BILINEAR))


def corners(region):
    """Top, left, height and width, as torchvision gives them."""
    rows, columns = region
    return rows.start, columns.start, rows.stop - rows.start, columns.stop - columns.start


def literal_region(height, width, scale, ratio, rng):
    """RandomResizedCrop.get_params line by line, with numpy's generator for torch's."""
    area = height * width
    log_ratio = [math.log(ratio[0]), math.log(ratio[1])]
    for _ in range(10):
        target_area = area * rng.uniform(scale[0], scale[1])
        aspect_ratio = math.exp(rng.uniform(log_ratio[0], log_ratio[1]))
        w = round(math.sqrt(target_area * aspect_ratio))
        h = round(math.sqrt(target_area / aspect_ratio))
        if 0 < w <= width and 0 < h <= height:
            i = rng.integers(0, height - h + 1)
            j = rng.integers(0, width - w + 1)
            return i, j, h, w
    in_ratio = width / height
    if in_ratio < min(ratio):
        w = width
        h = max(round(w / min(ratio)), 1)
    elif in_ratio > max(ratio):
        h = height
        w = max(round(h * max(ratio)), 1)
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


# Where the crop lies


@given(
    height=st.integers(1, 300),
    width=st.integers(1, 300),
    scale=st.tuples(st.floats(0.01, 1), st.floats(0.01, 1)).map(sorted).map(tuple),
    ratio=st.tuples(st.floats(0.1, 9), st.floats(0.1, 9)).map(sorted).map(tuple),
    seed=st.integers(0, 1000),
)
@settings(max_examples=300)
def test_regions_are_those_of_the_literal_rule_with_the_same_generator(
    height, width, scale, ratio, seed
):
    crop = RandomCrop(size=8, scale=scale, ratio=ratio)
    ours, literal = np.random.default_rng(seed), np.random.default_rng(seed)
    region = corners(crop.region(height, width, ours))
    assert region == literal_region(height, width, scale, ratio, literal)
    assert ours.random() == literal.random()
    top, left, rows, columns = region
    assert 0 <= top < top + rows <= height
    assert 0 <= left < left + columns <= width


@pytest.mark.parametrize("shape", [(240, 240), (180, 320), (300, 110), (90, 400)])
@pytest.mark.parametrize(
    ("scale", "ratio"), [((0.2, 1.0), (3 / 4, 4 / 3)), ((0.08, 0.5), (0.4, 1.5))]
)
def test_regions_are_distributed_as_those_of_torchvision(shape, scale, ratio):
    draws = 4000
    height, width = shape
    rng = np.random.default_rng(1)
    crop = RandomCrop(size=8, scale=scale, ratio=ratio)
    ours = np.array([corners(crop.region(height, width, rng)) for _ in range(draws)])
    image = Image.new("L", (width, height))
    with torch.random.fork_rng():
        torch.manual_seed(1)
        get = RandomResizedCrop.get_params
        theirs = np.array([get(image, list(scale), list(ratio)) for _ in range(draws)])

    def described(regions):
        """Share of the area, log ratio, centre and the place within its room, in columns."""
        top, left, rows, columns = regions.T.astype(float)
        room = np.maximum(1, height - rows), np.maximum(1, width - columns)
        return np.stack(
            [
                rows * columns / (height * width),
                np.log(columns / rows),
                (top + rows / 2) / height,
                (left + columns / 2) / width,
                top / room[0],
                left / room[1],
            ],
            axis=1,
        )

    ours, theirs = described(ours), described(theirs)
    # Five standard errors of a difference of means. Quantiles, the outermost here 1 in 100, and
    # extremes follow within a share of the range.
    error = np.sqrt((ours.var(0) + theirs.var(0)) / draws)
    np.testing.assert_array_less(np.abs(ours.mean(0) - theirs.mean(0)), 5 * error + 1e-9)
    spread = np.ptp(theirs, axis=0) + 1e-9
    for share, tolerance in [(0, 0.1), (0.01, 0.07), (0.3, 0.07), (0.7, 0.07), (1, 0.1)]:
        difference = np.abs(np.quantile(ours, share, 0) - np.quantile(theirs, share, 0))
        np.testing.assert_array_less(difference / spread, tolerance, err_msg=str(share))


def test_area_ratio_and_place_fill_their_ranges():
    crop = RandomCrop(size=8, scale=(0.1, 0.4), ratio=(0.5, 2.0))
    rng = np.random.default_rng(2)
    regions = [corners(crop.region(1000, 1000, rng)) for _ in range(4000)]
    top, left, rows, columns = np.array(regions).T
    area, log_ratio = rows * columns / 1e6, np.log2(columns / rows)
    for values, low, high in [
        (area, 0.1, 0.4),
        (log_ratio, -1, 1),
        (top / (1000 - rows), 0, 1),
        (left / (1000 - columns), 0, 1),
    ]:
        width = high - low
        assert values.min() == pytest.approx(low, abs=0.01 * width)
        assert values.max() == pytest.approx(high, abs=0.01 * width)
        assert values.mean() == pytest.approx((low + high) / 2, abs=0.03 * width)
        assert values.std() == pytest.approx(width / math.sqrt(12), abs=0.02 * width)


@pytest.mark.parametrize(
    ("shape", "ratio", "expected"),
    [
        ((30, 600), (3 / 4, 4 / 3), (0, 280, 30, 40)),
        ((600, 30), (3 / 4, 4 / 3), (280, 0, 40, 30)),
        ((40, 39), (1 / 4, 4), (0, 0, 40, 39)),  # allowed as it is
        ((1, 9), (0.1, 0.2), (0, 4, 1, 1)),  # torchvision: 0 columns
        ((9, 1), (5, 10), (4, 0, 1, 1)),  # torchvision: 0 rows
    ],
)
def test_where_no_attempt_fits_the_largest_allowed_centre_is_kept(shape, ratio, expected):
    crop = RandomCrop(size=8, scale=(1, 1), ratio=ratio)
    for seed in range(5):
        assert corners(crop.region(*shape, np.random.default_rng(seed))) == expected


# What becomes of it


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 5, 227])
def test_any_shape_becomes_a_square_of_its_own_and_the_input_stays(shape, size):
    pixels = noise(*shape)
    before = pixels.copy()
    pixels.flags.writeable = False
    for seed in range(3):
        rng = np.random.default_rng(seed)
        for square in (RandomCrop(size=size)(pixels, rng), center_crop(pixels, size)):
            assert (square.shape, square.dtype) == ((size, size, 3), np.uint8)
            assert square.flags.c_contiguous
            assert square.flags.writeable
            assert not np.shares_memory(square, pixels)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize("seed", range(5))
def test_the_region_is_resized_and_then_mirrored(seed):
    pixels = noise(60, 90)
    crop = RandomCrop(size=32)
    ours, expected = np.random.default_rng(seed), np.random.default_rng(seed)
    square = crop(pixels, ours)
    region = crop.region(60, 90, expected)
    mirrored = expected.random() < 0.5
    kept = resized(np.ascontiguousarray(pixels[region]), 32)
    np.testing.assert_array_equal(square, kept[:, ::-1] if mirrored else kept)
    assert ours.random() == expected.random()


def test_all_of_a_square_image_is_purely_resized():
    crop = RandomCrop(size=24, scale=(1, 1), ratio=(1, 1), flip=0)
    for side in (1, 10, 24, 37, 400):
        pixels = noise(side, side)
        square = crop(pixels, np.random.default_rng(side))
        np.testing.assert_array_equal(square, resized(pixels, 24))
    pixels = noise(24, 24)
    np.testing.assert_array_equal(crop(pixels, np.random.default_rng(0)), pixels)


def test_flip_1_mirrors_left_and_right_and_flip_0_never_does():
    pixels = noise(50, 70)
    for seed in range(20):
        upright, mirrored = (
            RandomCrop(size=32, flip=flip)(pixels, np.random.default_rng(seed)) for flip in (0, 1)
        )
        np.testing.assert_array_equal(mirrored, upright[:, ::-1])
        assert (mirrored != upright).any()


@pytest.mark.parametrize("flip", [0.25, 0.5])
def test_flip_is_the_probability_of_mirroring(flip):
    crop = RandomCrop(size=2, scale=(1, 1), ratio=(1, 1), flip=flip)
    pixels, rng = scene(2, 2), np.random.default_rng(3)
    mirrored = [bool((crop(pixels, rng) != pixels).any()) for _ in range(3000)]
    assert np.mean(mirrored) == pytest.approx(flip, abs=0.04)


def test_a_crop_depends_on_its_generator_and_on_nothing_else():
    pixels, crop = noise(50, 70), RandomCrop(size=32)
    first = crop(pixels, np.random.default_rng([5, 1, 2]))
    torch.rand(3)
    crop(pixels, np.random.default_rng(0))
    np.testing.assert_array_equal(crop(pixels, np.random.default_rng([5, 1, 2])), first)
    assert (crop(pixels, np.random.default_rng([5, 1, 3])) != first).any()
    state = torch.random.get_rng_state()
    crop(pixels, np.random.default_rng(0))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_constant_image_stays_constant(shape):
    color = np.array([3, 128, 252], np.uint8)
    pixels = np.broadcast_to(color, (*shape, 3))
    for square in (RandomCrop(size=19)(pixels, np.random.default_rng(0)), center_crop(pixels, 19)):
        np.testing.assert_array_equal(square, np.broadcast_to(color, (19, 19, 3)))


def test_a_fine_checkerboard_goes_to_gray():
    board = np.repeat(255 * (np.indices((256, 256)).sum(0) % 2)[:, :, None], 3, 2).astype(np.uint8)
    whole = RandomCrop(size=32, scale=(1, 1), ratio=(1, 1))
    for square in (whole(board, np.random.default_rng(0)), center_crop(board, 32)):
        assert np.abs(square.astype(float) - 127.5).max() < 4


# The central crop


@pytest.mark.parametrize("shape", [(50, 70), (341, 256), (227, 500), (97, 113), (113, 96), (9, 9)])
@pytest.mark.parametrize(("size", "resize_size"), [(50, None), (227, 256), (64, 64), (20, 101)])
def test_the_central_crop_is_that_of_torchvision(shape, size, resize_size):
    pixels = noise(*shape)
    image = CenterCrop(size)(Resize(resize_size or size)(Image.fromarray(pixels)))
    found = center_crop(pixels, size, resize_size)
    assert np.abs(found.astype(int) - np.array(image)).max() <= 1  # of rounding


def test_a_crop_larger_than_the_image_it_is_cut_from_is_refused():
    with pytest.raises(ValueError, match="resize_size is 47, it must be at least the size, 48"):
        center_crop(noise(60, 60), 48, 47)


@pytest.mark.parametrize("shape", [(50, 70), (70, 50), (64, 97)])
def test_the_central_crop_of_a_turned_image_is_the_crop_turned(shape):
    pixels = scene(*shape)
    for turn in (np.fliplr, np.flipud, lambda image: image.transpose(1, 0, 2)):
        expected = turn(center_crop(pixels, 32)).astype(int)
        found = center_crop(np.ascontiguousarray(turn(pixels)), 32)
        assert np.abs(found - expected).max() <= 1  # of rounding between the two directions


def test_the_central_crop_of_a_very_long_image_takes_little_memory():
    pixels = np.zeros((1, 1_000_000, 3), np.uint8)  # at 227 pixels high, 155 GB
    pixels[:, 499_990:500_010] = 200
    assert (center_crop(pixels, 227) == 200).all()


# Settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 0}, r"size is 0, it must be at least 1"),
        ({"scale": (0, 1)}, r"scale is \(0, 1\), it must be 0 < low <= high <= 1"),
        ({"scale": (0.5, 0.4)}, r"scale is \(0.5, 0.4\), it must be"),
        ({"scale": (0.5, 1.1)}, r"scale is \(0.5, 1.1\), it must be"),
        ({"scale": (0.5, math.nan)}, r"scale is \(0.5, nan\), it must be"),
        ({"ratio": (0, 1)}, r"ratio is \(0, 1\), it must be 0 < low <= high, both finite"),
        ({"ratio": (2, 1)}, r"ratio is \(2, 1\), it must be"),
        ({"ratio": (1, math.inf)}, r"ratio is \(1, inf\), it must be"),
        ({"flip": -0.1}, r"flip is -0.1, it must be a probability in 0\.\.1"),
        ({"flip": 1.5}, r"flip is 1.5, it must be a probability"),
        ({"flip": math.nan}, r"flip is nan, it must be a probability"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        RandomCrop(**{"size": 8, **settings})


def test_a_central_crop_below_one_pixel_is_refused():
    with pytest.raises(ValueError, match="size is -1, it must be at least 1"):
        center_crop(noise(4, 4), -1)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("share", [0.1, 0.5, 1])
def test_a_part_has_its_share_of_both_sides_and_is_of_the_image(shape, share):
    pixels, rng = noise(*shape), np.random.default_rng(1)
    part = random_part(pixels, rng, share)
    assert part.shape == (*(max(1, round(side * share**0.5)) for side in shape), 3)
    assert np.shares_memory(part, pixels)


def test_every_place_of_a_part_is_drawn_about_equally_often():
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    corners = [random_part(pixels, np.random.default_rng(seed))[0, 0, 0] for seed in range(900)]
    found, counts = np.unique(corners, return_counts=True)
    assert found.tolist() == [3 * (6 * y + x) for y in range(2) for x in range(3)]  # 3 x 4 of it
    assert (abs(counts - 150) < 5 * np.sqrt(150)).all()
