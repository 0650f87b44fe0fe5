"""Global pooling of a convolutional map to one l2-normalised descriptor.

b images, c channels, h x w positions of the map, r regions. MAC and R-MAC: Tolias, Sicre, Jegou,
"Particular object retrieval with integral max-pooling of CNN activations", ICLR 2016. GeM:
Radenovic, Tolias, Chum, PAMI 2018.

Every descriptor has norm 1, except where a vector's norm is below `EPS`: that one is divided by
`EPS` instead, so an all-zero map gives the zero vector, never NaN, and gradients stay finite.
"""

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import reduce

import torch
import torch.nn.functional as F  # noqa: N812 (the name that every torch program uses)
from torch import Tensor

from mmray.config.choices import Pooling
from mmray.descriptors.whitening import Whitening

EPS = 1e-6


def mac(maps: Tensor) -> Tensor:
    """Pool by MAC: the maximum activation of each channel over the whole map, l2-normalised.

    Parameters
    ----------
    maps : (b, c, h, w) float, h and w at least 1

    Returns
    -------
    (b, c), the same dtype.

    Examples
    --------
    >>> maps = torch.tensor([[[[1.0, 3.0]], [[4.0, 2.0]]]])  # one image, two channels of 1 x 2
    >>> mac(maps)
    tensor([[0.6000, 0.8000]])
    """
    return F.normalize(maps.amax((2, 3)), eps=EPS)


def average(maps: Tensor) -> Tensor:
    """Pool by the mean activation of each channel, l2-normalised, as GoogLeNet does.

    Parameters
    ----------
    maps : (b, c, h, w) float, h and w at least 1

    Returns
    -------
    (b, c), the same dtype.
    """
    return F.normalize(maps.mean((2, 3)), eps=EPS)


@dataclass(frozen=True, eq=False)
class RegionWhitening:
    """PCA whitening of the MAC of each region, for `rmac`.

    Attributes
    ----------
    mean : (c,) float
    projection : (c, c) float
    """

    mean: Tensor
    projection: Tensor

    @classmethod
    def of(cls, whitening: Whitening) -> "RegionWhitening":
        """Convert a whitening learned from rows of `region_vectors` to tensors on the CPU."""
        return cls(torch.tensor(whitening.mean), torch.tensor(whitening.projection))

    def to(self, device: torch.device | str) -> "RegionWhitening":
        return RegionWhitening(self.mean.to(device), self.projection.to(device))

    def apply(self, vectors: Tensor) -> Tensor:
        """Centre, project and l2-normalise vectors (..., c).

        The whitening is moved to their device first, if it is on another.

        Raises
        ------
        ValueError
            The vectors have another number of channels than the whitening.
        """
        if vectors.shape[-1] != len(self.mean):
            raise ValueError(
                f"the whitening of regions is for {len(self.mean)} channels, the maps have "
                f"{vectors.shape[-1]}: learn it from this network"
            )
        projected = (vectors - self.mean.to(vectors)) @ self.projection.to(vectors).T
        return F.normalize(projected, dim=-1, eps=EPS)


def region_vectors(maps: Tensor, levels: int = 3, *, whole: bool = True) -> Tensor:
    """Compute the l2-normalised MACs of regions, which R-MAC sums up.

    The whitening of regions is learned from them.

    Parameters
    ----------
    maps : (b, c, h, w) float, h and w at least 1
    levels : L, see `rmac_regions`
    whole : begin with the MAC of the whole map

    Returns
    -------
    (b, r, c), the same dtype; r depends on the shape of the maps.

    Raises
    ------
    ValueError
        There is no region: `levels` is 0, without the whole map.
    """
    regions = [maps] if whole else []
    for top, left, side in rmac_regions(maps.shape[2], maps.shape[3], levels):
        regions.append(maps[:, :, top : top + side, left : left + side])
    if not regions:
        raise ValueError("R-MAC of 0 levels without the whole map: there is nothing to add up")
    # Normalised together: on a GPU, each of many small operations takes longer to start than to do.
    return F.normalize(torch.stack([each.amax((2, 3)) for each in regions], 1), dim=2, eps=EPS)


def rmac(
    maps: Tensor,
    levels: int = 3,
    *,
    whole: bool = True,
    whitening: RegionWhitening | None = None,
) -> Tensor:
    """Pool by regional MAC: sum the MACs of the whole map and of its regions, and l2-normalise.

    With the whole map, `levels = 0` is MAC.

    Parameters
    ----------
    maps : (b, c, h, w) float, h and w at least 1
    levels : L, see `rmac_regions`
    whole : add the MAC of the whole map; Tolias et al. do not
    whitening : applied to each MAC, that of the whole map included, before they are summed

    Returns
    -------
    (b, c), the same dtype.

    Raises
    ------
    ValueError
        As for `region_vectors`, or the whitening has another number of channels.

    Examples
    --------
    >>> maps = torch.tensor([[[[1.0, 3.0]], [[4.0, 2.0]]]])  # one image, two channels of 1 x 2
    >>> rmac(maps)
    tensor([[0.5029, 0.8643]])
    >>> rmac(maps, levels=0).equal(mac(maps))
    True
    """
    vectors = region_vectors(maps, levels, whole=whole)
    if whitening is not None:
        vectors = whitening.apply(vectors)
    # One after the other: `sum` adds in an order that depends on the memory layout.
    return F.normalize(reduce(torch.add, vectors.unbind(1)), eps=EPS)


def gem(
    maps: Tensor, p: float | Tensor = 3.0, *, floor: float = 0.0, normalized: bool = True
) -> Tensor:
    """Pool by the generalised mean (mean of x^p)^(1/p) of each channel, l2-normalised.

    p = 1 is average pooling, p -> infinity is MAC. Negative activations count as 0, and so does a
    channel whose generalised mean is below `EPS`: the derivative of the root is infinite at 0.

    Parameters
    ----------
    maps : (b, c, h, w) float, h and w at least 1
    p : at least 1; a tensor of one number gets its gradient too, and is not checked: to look at it
        would wait for its device
    floor : activations below count as this one; above 0 no channel counts as 0
    normalized : False: leave out the l2-normalisation

    Returns
    -------
    (b, c), the same dtype.

    Raises
    ------
    ValueError
        p is below 1.

    Examples
    --------
    >>> maps = torch.tensor([[[[1.0, 3.0]], [[4.0, 2.0]]]])  # one image, two channels of 1 x 2
    >>> gem(maps, p=1)  # means 2 and 3, l2-normalised
    tensor([[0.5547, 0.8321]])
    """
    if not isinstance(p, Tensor) and not p >= 1:
        raise ValueError(f"gem: p = {p}, it must be at least 1")
    activations = maps.clamp(min=floor)
    # Divided by the largest activation, no power overflows or vanishes. The gradient may take the
    # scale for a constant: s gem(x / s) is the same for every s > 0.
    scale = activations.detach().amax((2, 3), keepdim=True).clamp(min=EPS)
    mean = (activations / scale).pow(p).mean((2, 3))
    scale = scale[:, :, 0, 0]
    if floor > 0:
        root = mean.pow(1 / p) * scale
    else:
        present = mean > (EPS / scale).pow(p)
        root = (mean.where(present, 1).pow(1 / p) * scale).where(present, 0)
    return F.normalize(root, eps=EPS) if normalized else root


def rmac_regions(height: int, width: int, levels: int) -> list[tuple[int, int, int]]:
    """List the squares (top, left, side) of R-MAC on a map, by level, then row by row.

    Level l has squares of side floor(2 short / (l + 1)): l along the shorter side of the map, and
    l + m along the longer side, evenly spread from border to border. m in 1..6 is the number for
    which neighbouring squares of level 1 overlap by a share nearest to 40%; it is 0 on square maps.
    A level whose side would be 0 is left out; on very small maps squares may repeat, as in the
    published implementations. Positions are computed in integers: the float32 of those
    implementations may fall just below one.

    Parameters
    ----------
    height, width : cells of the map, at least 1
    levels : L, not negative

    Raises
    ------
    ValueError
        A side of the map is below 1, or `levels` is negative.
    """
    if min(height, width) < 1 or levels < 0:
        raise ValueError(f"no R-MAC regions of a {height} x {width} map at {levels} levels")
    short, long = min(height, width), max(height, width)
    extra = min(range(1, 7), key=lambda m: abs(_overlap(short, long, m) - Fraction(2, 5)))
    extra_rows = extra if height > width else 0
    extra_columns = extra if width > height else 0
    return [
        (top, left, side)
        for level in range(1, levels + 1)
        if (side := 2 * short // (level + 1)) > 0
        for top in _spread(height - side, level + extra_rows)
        for left in _spread(width - side, level + extra_columns)
    ]


def _overlap(short: int, long: int, steps: int) -> Fraction:
    """Return the overlap of neighbouring squares of side `short`, when steps + 1 span `long`."""
    return 1 - Fraction(long - short, short * steps)


def _spread(last: int, count: int) -> list[int]:
    """Return `count` positions from 0 to `last`, evenly spread and rounded down."""
    return [0] if count == 1 else [i * last // (count - 1) for i in range(count)]


POOLINGS: dict[Pooling, Callable[[Tensor], Tensor]] = {
    "mac": mac,
    "rmac": rmac,
    "gem": gem,
    "avg": average,
}
