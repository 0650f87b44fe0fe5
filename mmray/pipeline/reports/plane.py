"""The method on points of the plane, where one can see what it does: Figure 1 of the paper.

n points, d dims, k neighbours. Only the points and their features are made here; what is found
among them is found by the functions that mine collections of images.
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

WIDTH = 0.4  # of the Gaussian that similarity is: the points lie in a disc of radius 1
_INNER = 0.2  # radius at which the spirals start; they end at 1
_TURNS = 3.0  # of all spirals together, so that any number of them is as far apart
_NODES = 36  # of the quadrature, in each direction: it errs by 1e-6 at the reach
_REACH = 7.0  # widths


@dataclass(frozen=True, eq=False, kw_only=True)
class PlaneExample:
    """Points on curves, and what is mined for one of them.

    Attributes
    ----------
    places : (n, 2) float64
    curve : (n,) int64
        The curve that each point lies on: mining does not know it.
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
        """NN^e of k places, nearest first, without the anchor."""
        others: Ids = self.nearest[:k][self.nearest[:k] != self.anchor]
        return others

    def on_curve(self, ids: Ids) -> int:
        """How many of these points (m,) lie on the anchor's curve."""
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
    """Make points on spirals and mine for one of them, of all points in the graph.

    Parameters
    ----------
    points : int
        n, of all curves together.
    curves, noise
        See `spirals`.
    seed : int
        From 0.
    graph_k : int
        Neighbours of a point in the graph, itself among them, as `MiningConfig.count_self`.
    alpha, positive_k, negative_k
        See `pools_of`; K is not capped but refused where it exceeds ⌈n/2⌉.
    anchor : int or None
        By default the first that `select_anchors` finds: the most important in the random walk.

    Raises
    ------
    InputError
        A number is outside its range, no point is an anchor, or the one asked for has no edge.
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
        # In the order of nodes that mine_pools takes, for the same rounding.
        similarity=diffuse(reorder(normalize_graph(graph)), chosen, alpha=alpha).similarity[0],
        nearest=nearest_neighbors(features, features[chosen], max(positive_k, negative_k)).ids[0],
        manifold=pools.manifold_neighbors[0],
        positives=pools.positives[0],
        negatives=pools.negatives[0],
    )


def spirals(
    points: int, *, curves: int, noise: float, rng: np.random.Generator
) -> tuple[Floats, Ids]:
    """Points spread along interleaved spirals, which all end at radius 1.

    Parameters
    ----------
    points : int
        n, of all curves together.
    noise : float
        Standard deviation of each coordinate about the curve; curves are about 0.27 apart.

    Returns
    -------
    (n, 2) float64 and (n,) int64 : the points, and the curve of each; they take turns.
    """
    ids = np.arange(points)
    curve = ids % curves
    # One point in each of as many pieces: drawn freely, they would leave gaps in the graph.
    along = (ids // curves + rng.random(points)) / np.bincount(curve)[curve]
    # A piece of a spiral is nearly as long as its radius is large.
    radius = np.sqrt(_INNER**2 + along * (1 - _INNER**2))
    angle = 2 * np.pi * (_TURNS * (radius - _INNER) / (1 - _INNER) + curve) / curves
    places = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return places + noise * rng.standard_normal((points, 2)), curve.astype(np.int64)


def gaussian_features(places: Floats, *, width: float = WIDTH) -> Features:
    """Unit vectors whose cosines are exp(-‖x−y‖² / 2 width²): the nearer the points, the larger.

    So the order of neighbours is that of the plane, exactly but for rounding. These are random
    Fourier features, but at the nodes of a Gauss-Hermite quadrature instead of random frequencies:
    those (`benchmark.manifold_features`) err by d^-½, so that of 600 points 13% have the right 80
    neighbours at d = 1024. Lifted to a sphere, (x, y, sqrt(1−r²)), the plane keeps its order only
    where it is a small cap (95% at a radius of 0.1); there all cosines are nearly 1, so [xᵀy]₊³
    weights an edge that leaves its curve as much as one along it.

    Parameters
    ----------
    places : (n, 2) float64
        In a square of 7 widths. Where points are more than 5 widths apart, their cosines are so
        small that their order is lost.
    width : float
        The default weights an edge of 0.1 along a curve by 0.91, and one of 0.27 to the next curve
        by 0.51; and float32 tells the cosines of points in a disc of radius 1 apart.

    Returns
    -------
    (n, d) float32, l2-normalised.

    Raises
    ------
    ValueError
        The points spread farther.
    """
    spread = float(np.ptp(places, axis=0).max())
    if not spread <= _REACH * width:
        raise ValueError(
            f"points spread over {spread:.3g}, but {_REACH:g} widths of {width} are all"
        )
    nodes, weights = np.polynomial.hermite.hermgauss(_NODES)
    # An even number of nodes, in pairs ±f: half of the plane of frequencies says all.
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
