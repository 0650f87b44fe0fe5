"""MAC, R-MAC and GeM against their formulas."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.descriptors.pooling import (
    EPS,
    POOLINGS,
    RegionWhitening,
    gem,
    mac,
    region_vectors,
    rmac,
    rmac_regions,
)
from mmray.descriptors.regions import Rmac
from mmray.descriptors.whitening import Whitening, pca_whitening
from tests import oracles

SHAPES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 5), (6, 8), (8, 6), (4, 17), (23, 16)]


def random_maps(height: int, width: int, *, images: int = 2, seed: int = 0) -> torch.Tensor:
    """Positive and negative activations, with channels of very different strength."""
    rng = np.random.default_rng([height, width, seed])
    scales = np.array([0.1, 1, 5, 20, 0.01]).reshape(1, 5, 1, 1)
    return torch.from_numpy(rng.normal(size=(images, 5, height, width)) * scales)


def test_descriptors_of_a_small_map_by_hand():
    maps = torch.tensor([[[[3.0, 0.0], [0.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]]])
    root_half = 0.5**0.5
    # The whole map and the one region of level 1 are (3, 4); of the four of level 2 one is (3, 0),
    # one (0, 4), and two are empty. Each at length 1, that is (1.2 + 1, 1.6 + 1).
    long = (2.2**2 + 2.6**2) ** 0.5
    for found, wanted in (
        (mac(maps), (0.6, 0.8)),
        (rmac(maps, 1), (0.6, 0.8)),
        (rmac(maps, 2), (2.2 / long, 2.6 / long)),
        (gem(maps, 1.0), (0.6, 0.8)),
        (gem(torch.tensor([[[[2.0, 0.0]], [[1.0, 1.0]]]]), 1.0), (root_half, root_half)),
        (gem(torch.tensor([[[[2.0, 0.0]], [[1.0, 1.0]]]]), 2.0), ((2 / 3) ** 0.5, (1 / 3) ** 0.5)),
    ):
        np.testing.assert_allclose(found[0], wanted, atol=1e-5)


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


def test_gem_with_a_floor_raises_smaller_activations_to_it():
    maps = random_maps(6, 8)
    maps[:, 0] = 0  # a channel that is never active has the mean of the floor
    pooled = gem(maps, 2.5, floor=1e-6, normalized=False)
    expected = np.maximum(maps.numpy(), 1e-6) ** 2.5
    np.testing.assert_allclose(pooled, expected.mean((2, 3)) ** (1 / 2.5), rtol=1e-10)
    assert (pooled[:, 0] > 0.9e-6).all()
    norms = pooled.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(gem(maps, 2.5, floor=1e-6), pooled / norms, rtol=1e-10)


@pytest.mark.parametrize("p", [1.2, 3.0, 8.0])
@pytest.mark.parametrize("shape", [(1, 1), (2, 2), (6, 8)])
def test_the_gradient_of_gem_s_exponent_is_the_slope_of_the_formula(shape, p):
    maps = random_maps(*shape)
    maps[:, 0] = 0  # a channel that is never active
    exponent = torch.tensor(p, dtype=torch.float64, requires_grad=True)
    pooled = gem(maps, exponent)
    assert torch.equal(pooled.detach(), gem(maps, exponent.detach()))
    torch.testing.assert_close(pooled.detach(), gem(maps, p), rtol=1e-12, atol=1e-14)
    towards = torch.from_numpy(np.random.default_rng(1).normal(size=pooled.shape))
    (pooled * towards).sum().backward()
    above, below = (oracles.gem(maps.numpy(), p + step) for step in (1e-5, -1e-5))
    slope = ((above - below) / 2e-5 * towards.numpy()).sum()
    assert exponent.grad.item() == pytest.approx(slope, rel=1e-6, abs=1e-9)
    assert (abs(slope) > 1e-5) == (shape != (1, 1))  # of one cell every mean is the same


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
@settings(max_examples=200)
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


# Variants of R-MAC


def learned(channels: int = 5, seed: int = 1) -> Whitening:
    """A whitening that rotates, stretches and moves."""
    rng = np.random.default_rng(seed)
    mean = rng.normal(size=channels) * 0.3
    projection = rng.normal(size=(channels, channels)) * 3.0 ** np.arange(channels)[:, None]
    return Whitening(mean.astype(np.float32), projection.astype(np.float32))


@pytest.mark.parametrize("whitened", [False, True])
@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("levels", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
def test_variants_of_rmac_match_the_formula(shape, levels, whole, whitened):
    maps, whitening = random_maps(*shape), learned()
    arrays = (whitening.mean, whitening.projection) if whitened else ()
    options = Rmac(
        levels=levels, whole=whole, whitening=RegionWhitening.of(whitening) if whitened else None
    )
    expected = oracles.rmac_variant(maps.numpy(), levels, whole, *arrays)
    np.testing.assert_allclose(options(maps), expected, rtol=1e-10, atol=1e-13)
    single = options(maps.float())
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single, expected, atol=1e-5)


def test_whitening_of_regions_also_whitens_the_whole_map_alone():
    maps, whitening = random_maps(6, 8).float(), learned()
    result = rmac(maps, 0, whitening=RegionWhitening.of(whitening))
    np.testing.assert_allclose(result, whitening.apply(mac(maps).numpy()), atol=1e-6)


def test_the_default_variant_is_rmac_bit_for_bit():
    maps = random_maps(6, 8).float()
    assert torch.equal(Rmac()(maps), rmac(maps))
    summed = mac(maps)
    for top, left, side in rmac_regions(6, 8, 3):
        summed = summed + mac(maps[:, :, top : top + side, left : left + side])
    assert torch.equal(rmac(maps), torch.nn.functional.normalize(summed, eps=EPS))


@pytest.mark.parametrize("whole", [False, True])
def test_region_vectors_are_the_normalised_maxima_of_the_regions_in_order(whole):
    maps = random_maps(6, 8)
    vectors = region_vectors(maps, 2, whole=whole)
    squares = rmac_regions(6, 8, 2)
    parts = [maps[:, :, t : t + side, le : le + side] for t, le, side in squares]
    expected = [oracles.mac(part.numpy()) for part in ([maps, *parts] if whole else parts)]
    np.testing.assert_allclose(vectors, np.stack(expected, axis=1), rtol=1e-12)


def test_whitening_learned_from_regions_spreads_their_vectors_over_all_directions():
    maps = random_maps(8, 8, images=200).abs().float()
    vectors = region_vectors(maps).flatten(0, 1)
    whitening = RegionWhitening.of(pca_whitening(vectors.numpy()))
    spreads = [torch.linalg.eigvalsh(torch.cov(v.T)) for v in (vectors, whitening.apply(vectors))]
    assert spreads[0][0] < 1e-3 * spreads[0][-1]
    assert spreads[1][0] > 0.3 * spreads[1][-1]


def test_a_map_of_zeros_gives_a_finite_whitened_descriptor():
    options = Rmac(whitening=RegionWhitening(torch.zeros(5), torch.eye(5)))
    assert torch.equal(options(torch.zeros(2, 5, 4, 6)), torch.zeros(2, 5))


def test_rmac_without_regions_and_without_the_whole_map_is_refused():
    with pytest.raises(ValueError, match="0 levels without the whole map"):
        region_vectors(random_maps(2, 2), 0, whole=False)
    with pytest.raises(ValueError, match="0 levels without the whole map"):
        Rmac(levels=0, whole=False)(random_maps(2, 2))


def test_a_whitening_of_other_channels_is_refused():
    options = Rmac(whitening=RegionWhitening.of(learned(4)))
    with pytest.raises(ValueError, match="is for 4 channels, the maps have 5"):
        options(random_maps(3, 3))


def test_options_survive_pickling_and_read_only_arrays_without_a_warning():
    whitening = learned()
    for array in (whitening.mean, whitening.projection):
        array.flags.writeable = False  # as in shared memory
    options = Rmac(levels=2, whole=False, whitening=RegionWhitening.of(whitening))
    maps = random_maps(4, 6).float()
    copied = pickle.loads(pickle.dumps(options)).to("cpu")
    assert torch.equal(copied(maps), options(maps))
    assert (copied.levels, copied.whole) == (2, False)


def test_options_move_to_a_device_with_their_whitening():
    options = Rmac(levels=2, whole=False, whitening=RegionWhitening.of(learned())).to("meta")
    assert (options.levels, options.whole) == (2, False)
    assert options.whitening is not None
    assert options.whitening.mean.device.type == "meta"
    assert options.whitening.projection.device.type == "meta"
    assert Rmac(levels=1).to("meta") == Rmac(levels=1)
    # A whitening that was left behind is moved to the maps.
    maps = torch.empty(2, 5, 4, 4, device="meta")
    assert Rmac(whitening=RegionWhitening.of(learned()))(maps).device.type == "meta"


def test_a_channel_whose_generalised_mean_is_below_eps_counts_as_0():
    """Where others are larger by many powers of ten, too: its power is still above 0."""
    maps = torch.zeros(1, 3, 2, 2, dtype=torch.float64)
    maps[0, 0], maps[0, 1], maps[0, 2, 0, 0] = 1.0, EPS / 10, 100 * EPS
    pooled = gem(maps)[0]
    assert pooled[1] == 0
    assert pooled[0] == pytest.approx(1)
    assert pooled[2] == pytest.approx(100 * EPS * 4 ** (-1 / 3))
