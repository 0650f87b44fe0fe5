"""MAC, R-MAC and GeM against their formulas."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.pooling import EPS, POOLINGS, gem, mac, rmac, rmac_regions
from tests import oracles

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 5), (6, 8), (8, 6), (4, 17), (23, 16)]


def random_maps(height: int, width: int, *, images: int = 2, seed: int = 0) -> torch.Tensor:
    """Positive and negative activations, with channels of very different strength."""
    rng = np.random.default_rng([height, width, seed])
    scales = np.array([0.1, 1, 5, 20, 0.01]).reshape(1, 5, 1, 1)
    return torch.from_numpy(rng.normal(size=(images, 5, height, width)) * scales)


@pytest.mark.parametrize("shape", SHAPES)
def test_mac_is_the_maximum_of_each_channel(shape):
    maps = random_maps(*shape)
    np.testing.assert_allclose(mac(maps), oracles.mac(maps.numpy()), rtol=1e-12)


@pytest.mark.parametrize("levels", [0, 1, 3, 5])
@pytest.mark.parametrize("shape", SHAPES)
def test_rmac_matches_the_formula(shape, levels):
    maps = random_maps(*shape)
    expected = oracles.rmac(maps.numpy(), levels)
    np.testing.assert_allclose(rmac(maps, levels), expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("p", [1.0, 2.5, 3.0, 20.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_gem_matches_the_formula(shape, p):
    maps = random_maps(*shape)
    expected = oracles.gem(maps.numpy(), p)
    np.testing.assert_allclose(gem(maps, p), expected, rtol=1e-10, atol=1e-14)


def test_gem_of_a_large_power_is_mac():
    maps = random_maps(6, 8).abs()
    np.testing.assert_allclose(gem(maps, 2000.0), mac(maps), atol=3e-3)


def test_gem_neither_overflows_nor_vanishes_in_float32():
    maps = random_maps(6, 8).abs()
    for strength in (1e-3, 1e12):
        np.testing.assert_allclose(gem((maps * strength).float()), gem(maps), rtol=1e-3)


def test_regions_are_those_of_the_published_code_on_every_map_up_to_40():
    for height in range(1, 41):
        for width in range(1, 41):
            found = rmac_regions(height, width, 4)
            assert found == oracles.rmac_regions(height, width, 4), (height, width)


def test_regions_of_a_vgg_map_of_a_landscape_photo():
    # 362 x 272 pixels: 22 x 17 cells, two squares of level 1 that overlap by (17 - 5) / 17.
    regions = rmac_regions(17, 22, 3)
    assert regions[:2] == [(0, 0, 17), (0, 5, 17)]
    assert [side for _, _, side in regions] == [17] * 2 + [11] * 2 * 3 + [8] * 3 * 4


@given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 5))
@settings(max_examples=200, deadline=None)
def test_regions_lie_inside_and_the_transposed_map_has_the_transposed_ones(height, width, levels):
    regions = rmac_regions(height, width, levels)
    assert all(
        top >= 0 and left >= 0 and side >= 1 and top + side <= height and left + side <= width
        for top, left, side in regions
    )
    transposed = {(left, top, side) for top, left, side in rmac_regions(width, height, levels)}
    assert set(regions) == transposed
    if levels and max(height, width) <= 7 * min(height, width):  # six steps reach so far
        assert any(top + side == height for top, _, side in regions)
        assert any(left + side == width for _, left, side in regions)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("shape", SHAPES)
def test_descriptors_have_norm_one_and_do_not_depend_on_the_strength(name, shape):
    maps = random_maps(*shape).float().abs()
    result = POOLINGS[name](maps)
    assert result.shape == (2, 5)
    assert result.dtype == torch.float32
    np.testing.assert_allclose(result.norm(dim=1), 1, rtol=1e-5)
    np.testing.assert_allclose(POOLINGS[name](maps * 7), result, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", POOLINGS)
def test_poolings_tell_images_apart_and_keep_their_order(name):
    maps = random_maps(6, 8, images=4).abs()
    result = POOLINGS[name](maps)
    assert torch.unique(result, dim=0).shape == (4, 5)
    order = [2, 0, 3, 1]
    torch.testing.assert_close(POOLINGS[name](maps[order]), result[order], rtol=0, atol=0)


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("strength", [0.0, EPS / 100])
def test_a_map_of_zeros_gives_zeros_and_finite_gradients(name, strength):
    maps = torch.full((2, 5, 4, 6), strength, requires_grad=True)
    result = POOLINGS[name](maps)
    result.sum().backward()
    assert result.isfinite().all()
    assert (result == 0).all() or strength > 0
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("name", POOLINGS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5)])
def test_gradients_are_the_derivatives(name, shape):
    maps = (random_maps(*shape).abs() + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(POOLINGS[name], maps)


@pytest.mark.parametrize("name", POOLINGS)
def test_the_memory_layout_does_not_change_the_result(name):
    maps = random_maps(6, 8).float()
    other = maps.to(memory_format=torch.channels_last)
    torch.testing.assert_close(POOLINGS[name](other), POOLINGS[name](maps), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("p", [0.5, float("nan")])
def test_gem_refuses_a_power_below_one(p):
    with pytest.raises(ValueError, match="it must be at least 1"):
        gem(random_maps(2, 2), p)


@pytest.mark.parametrize("arguments", [(0, 4, 3), (4, 0, 3), (4, 4, -1)])
def test_regions_refuse_empty_maps_and_negative_levels(arguments):
    with pytest.raises(ValueError, match="no R-MAC regions of a"):
        rmac_regions(*arguments)
