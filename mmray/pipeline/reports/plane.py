"""A mining example on points of the plane, for Figure 1 of the paper.

n points, d dims, k neighbours. Only the points and their features are made here; neighbours, graph
and pools are found by the functions that mine collections of images.
"""

from dataclasses import dataclass

import numpy as np

from mmray.mining.anchors import select_anchors
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import diffuse
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.pools import mine_pools
from mmray.system.arrays import Features, Floats, Graph, Ids
from mmray.system.errors import InputError

WIDTH = 0.4  # of the Gaussian similarity; the points lie in a disc of radius 1
_INNER = 0.2  # radius at which the spirals start; they end at 1
_TURNS = 3.0  # total of all spirals, so that their distance does not depend on their number
_NODES = 36  # nodes of the quadrature in each direction: the error is 1e-6 at the reach
_REACH = 7.0  # largest spread of the points, in widths


@dataclass(frozen=True, eq=False, kw_only=True)
class PlaneExample:
    """Points on curves, with the neighbours and pools of one of them.

    Attributes
    ----------
    places : (n, 2) float64
    curve : (n,) int64
        The curve that each point lies on, which mining does not use.
    features : (n, d) float32, l2-normalised
    graph : (n, n) float32 CSR
        A of eq. (1).
    anchors : (a,) int64
        The local maxima of the random walk, most important first.
    anchor : int
    positive_k, negative_k : int
        k of eq. (5) and K of eq. (6).
    similarity : (n,) float32
        Manifold similarity s_m of each point to the anchor.
    nearest : (max(positive_k, negative_k),) int64
        NN^e, nearest first; the anchor is one of them.
    manifold : int64
        NN^m of positive_k places, most similar first, without the anchor and without points of
        s_m <= 0.
    positives : int64
        P⁺ of eq. (5).
    negatives : int64
        P⁻ of eq. (6), all of them.
    """

    places: Floats
    curve: Ids
    features: Features
    graph: Graph
    anchors: Ids
    anchor: int
    positive_k: int
    negative_k: int
    similarity: Features
    nearest: Ids
    manifold: Ids
    positives: Ids
    negatives: Ids

    def euclidean(self, k: int) -> Ids:
        """Return NN^e of k places, the anchor's own included, without the anchor."""
        others: Ids = self.nearest[:k][self.nearest[:k] != self.anchor]
        return others

    def on_curve(self, ids: Ids) -> int:
        """Count the points (m,) that lie on the anchor's curve."""
        return int(np.count_nonzero(self.curve[ids] == self.curve[self.anchor]))


def mine_plane_example(
    *,
    points: int,
    curves: int,
    noise: float,
    seed: int,
    graph_k: int,
    alpha: float,
    positive_k: int,
    negative_k: int,
    anchor: int | None = None,
) -> PlaneExample:
    """Make points on spirals, and mine the neighbours and pools of one of them.

    Parameters
    ----------
    points : int
        n, the total of all curves.
    curves, noise
        See `spirals`.
    seed : int
        From 0.
    graph_k : int
        Neighbours of a point in the graph, including itself, as with `MiningConfig.count_self`.
    alpha, positive_k, negative_k
        See `mining.pools.pools_of`, but K above ⌈n/2⌉ is refused instead of capped.
    anchor : int or None
        Place of the point; None: the first of `select_anchors`, the most important point.

    Raises
    ------
    InputError
        A number is outside its range, no point is an anchor, or the given one has no edge.
    """
    if not 10 <= points <= 10_000:
        raise InputError(f"--points {points}: give 10 to 10,000")
    _check("curves", curves, 2, 6, points)
    _check("noise", noise, 0, 0.1, points)
    _check("seed", seed, 0, 2**63, points)
    _check("graph-k", graph_k, 2, points, points)
    _check("alpha", alpha, 0, 0.999999, points)
    _check("positive-k", positive_k, 2, points, points)
    _check("negative-k", negative_k, 2, -(-points // 2), points)
    if anchor is not None:
        _check("anchor", anchor, 0, points - 1, points)
    places, curve = spirals(points, curves=curves, noise=noise, rng=np.random.default_rng(seed))
    features = gaussian_features(places)
    near = nearest_neighbors(features, features, graph_k)
    graph = reciprocal_knn_graph(near.ids, near.similarities)
    anchors = select_anchors(graph, points)
    if anchor is None and not len(anchors):
        raise InputError(f"--graph-k {graph_k}: no point is an anchor; give a larger one")
    chosen = anchors[:1] if anchor is None else np.array([anchor], np.int64)
    if graph.indptr[chosen] == graph.indptr[chosen + 1]:
        raise InputError(f"--anchor {anchor}: it has no edge in the graph; choose another point")
    pools = mine_pools(
        features,
        graph,
        chosen,
        positive_k=positive_k,
        negative_k=negative_k,
        max_negatives=negative_k,
        alpha=alpha,
    )
    return PlaneExample(
        places=places,
        curve=curve,
        features=features,
        graph=graph,
        anchors=anchors,
        anchor=int(chosen[0]),
        positive_k=positive_k,
        negative_k=negative_k,
        # In the order of nodes of mine_pools, for the same rounding.
        similarity=diffuse(reorder(normalize_graph(graph)), chosen, alpha=alpha).similarity[0],
        nearest=nearest_neighbors(features, features[chosen], max(positive_k, negative_k)).ids[0],
        manifold=pools.manifold_neighbors[0],
        positives=pools.positives[0],
        negatives=pools.negatives[0],
    )


def spirals(
    points: int, *, curves: int, noise: float, rng: np.random.Generator
) -> tuple[Floats, Ids]:
    """Spread points along interleaved spirals that end at radius 1.

    Parameters
    ----------
    points : int
        n, the total of all curves.
    curves : int
        Number of spirals.
    noise : float
        Standard deviation of each coordinate from the curve; curves are about 0.27 apart.
    rng : Generator
        Draws the places on the curves and the noise.

    Returns
    -------
    (n, 2) float64 and (n,) int64 : the points, and the curve of each; point i is on curve
    i mod `curves`.
    """
    ids = np.arange(points)
    curve = ids % curves
    # One point in each of equal pieces: points drawn freely would leave gaps in the graph.
    along = (ids // curves + rng.random(points)) / np.bincount(curve)[curve]
    # The length of a piece of a spiral is nearly proportional to its radius.
    radius = np.sqrt(_INNER**2 + along * (1 - _INNER**2))
    angle = 2 * np.pi * (_TURNS * (radius - _INNER) / (1 - _INNER) + curve) / curves
    places = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return places + noise * rng.standard_normal((points, 2)), curve.astype(np.int64)


def gaussian_features(places: Floats, *, width: float = WIDTH) -> Features:
    """Map points to unit vectors with cosines exp(-‖x−y‖² / 2 width²), Fourier features.

    The order of neighbours is thus that of the plane, up to rounding. The frequencies are the nodes
    of a Gauss-Hermite quadrature. Two alternatives are worse. Random frequencies (as in
    jobs/benchmarks/mining.py: manifold_features) have an error of d^-½: of 600 points only 13% have
    the right 80 neighbours at d = 1024. Lifting the plane to a sphere, (x, y, sqrt(1−r²)), keeps
    the order only on a small cap (95% at a radius of 0.1); there all cosines are nearly 1, so
    [xᵀy]₊³ weights an edge that leaves its curve as much as one along it.

    Parameters
    ----------
    places : (n, 2) float64
        In a square of 7 widths. The cosines of points more than 5 widths apart are so small that
        their order is lost.
    width : float
        The default weights an edge of length 0.1 along a curve by 0.91, and one of 0.27 to the next
        curve by 0.51, and float32 distinguishes the cosines of points in a disc of radius 1.

    Returns
    -------
    (n, d) float32, l2-normalised.

    Raises
    ------
    ValueError
        The points do not fit into the square.
    """
    spread = float(np.ptp(places, axis=0).max())
    if not spread <= _REACH * width:
        raise ValueError(
            f"points spread over {spread:.3g}, but {_REACH:g} widths of {width} are all"
        )
    nodes, weights = np.polynomial.hermite.hermgauss(_NODES)
    # Nodes come in pairs ±f, so half of the plane of frequencies suffices.
    half = nodes > 0
    first, second = np.meshgrid(nodes[half], nodes, indexing="ij")
    frequencies = np.sqrt(2) / width * np.stack([first.ravel(), second.ravel()])
    lengths = np.sqrt(2 / np.pi * np.outer(weights[half], weights).ravel())
    phases = places @ frequencies
    features = np.concatenate([lengths * np.cos(phases), lengths * np.sin(phases)], axis=1)
    return features.astype(np.float32)


def _check(flag: str, value: float, low: float, high: float, points: int) -> None:
    if not low <= value <= high:
        raise InputError(f"--{flag} {value}: with {points} points, give {low} to {high}")
