"""Compiled loops of the search for near-duplicates.

n items, d dims, c classes of equal hash, p pieces: items of one class that are joined in it.

A piece is a chain of items that starts with its leader, and has a radius: no angle of an item to
the leader is larger. By the triangle inequality, most pieces need one comparison with the leader.
"""

import math

import numpy as np

from mmray.mining.compiling import compiled
from mmray.mining.knn.kernels import count_bits, similarity

_SLACK = 2e-3  # radians that angles of float32 rows may err by, all in all
_BAND_BITS = np.uint64(16)


@compiled
def _angle(cosine):
    return math.acos(min(1.0, max(-1.0, np.float64(cosine))))


@compiled
def join_equal(features, order, starts, cosine, left, leaders, following, radii, classes):
    """Divide each class of items of equal hash into pieces.

    Parameters
    ----------
    features : (n, d) float32, rows l2-normalised or zero
    order, starts : (n,), (c + 1,) int64
        Class i holds the items order[starts[i]:starts[i + 1]].
    cosine : float32, the least of two items that are joined
    left : (1,) int64
        Inner products that may be taken; the rest is not compared. Changed: those that are left.
    leaders, following, radii, classes : (n,) int64, int64, float64, int64
        Written, up to the number of pieces: the first item of each, its radius and its class;
        of each item the next one of its piece, -1 after the last.

    Returns
    -------
    The number of pieces, p; the pieces of a class follow one another.
    """
    limit, pieces = _angle(cosine), 0
    lasts = np.empty(len(order), np.int64)  # of each piece
    for each in range(len(starts) - 1):
        first = pieces  # of this class
        for place in range(starts[each], starts[each + 1]):
            item, own, piece = order[place], -1, first
            following[item] = -1
            while piece < pieces and left[0] > 0:
                left[0] -= 1
                found = similarity(features, item, features, leaders[piece])
                angle, alike = _angle(found), found >= cosine
                if not alike and angle <= limit + radii[piece] + _SLACK:
                    other = following[leaders[piece]]
                    while other >= 0 and not alike and left[0] > 0:
                        left[0] -= 1
                        alike = similarity(features, item, features, other) >= cosine
                        other = following[other]
                if not alike:
                    piece += 1
                elif own < 0:
                    following[lasts[piece]], lasts[piece] = item, item
                    radii[piece] = max(radii[piece], angle)
                    own, piece = piece, piece + 1
                else:  # the item joins two pieces; the last one takes the place of the second
                    between = similarity(features, leaders[own], features, leaders[piece])
                    radii[own] = max(radii[own], _angle(between) + radii[piece])
                    following[lasts[own]], lasts[own] = leaders[piece], lasts[piece]
                    pieces -= 1
                    leaders[piece], lasts[piece] = leaders[pieces], lasts[pieces]
                    radii[piece] = radii[pieces]
            if own < 0:
                leaders[pieces], lasts[pieces], radii[pieces] = item, item, 0.0
                classes[pieces] = each
                pieces += 1
    return pieces


@compiled
def _root(parents, piece):
    while parents[piece] != piece:
        parents[piece] = parents[parents[piece]]
        piece = parents[piece]
    return piece


@compiled
def _alike(features, cosine, limit, left, leaders, following, radii, one, two):
    """Tell whether any item of a piece is alike to any item of another."""
    left[0] -= 1
    found = similarity(features, leaders[one], features, leaders[two])
    if found >= cosine:
        return True
    if _angle(found) > limit + radii[one] + radii[two] + _SLACK:
        return False
    item = leaders[one]
    while item >= 0:
        other = leaders[two]
        while other >= 0 and left[0] > 0:
            left[0] -= 1
            if similarity(features, item, features, other) >= cosine:
                return True
            other = following[other]
        item = following[item]
    return False


@compiled
def join_near(
    features, cosine, hamming, band, masks, hashes, order, starts, first_pieces, left, leaders,
    following, radii, parents,
):  # fmt: skip
    """Join the pieces of classes whose hashes are near and nearly equal in one band of 16 bits.

    Parameters
    ----------
    features, cosine, left, leaders, following, radii
        See `join_equal`.
    hamming : int, the largest distance of hashes
    band : int, number of the band; pairs that an earlier band finds are left to it
    masks : (m,) int64, the differences in a band that are looked for, the first of them 0
    hashes : (c,) uint64, sorted by their values in the band
    order : (c,) int64, the classes in this order
    starts : (65537,) int64, place in it of the first class of each value
    first_pieces : (c + 1,) int64, the first piece of each class
    parents : (p,) int64
        A forest of the pieces. Changed.
    """
    limit, least = _angle(cosine), count_bits(np.uint64(masks[-1]))
    low = (np.uint64(1) << _BAND_BITS) - np.uint64(1)
    for value in range(len(starts) - 1):
        if starts[value] == starts[value + 1]:
            continue
        for mask in masks:
            other = value ^ mask
            if other < value:
                continue
            for one in range(starts[value], starts[value + 1]):
                for two in range(one + 1 if mask == 0 else starts[other], starts[other + 1]):
                    differing = hashes[one] ^ hashes[two]
                    if count_bits(differing) > hamming:
                        continue
                    met = False
                    for earlier in range(band):
                        part = (differing >> (_BAND_BITS * np.uint64(earlier))) & low
                        met |= count_bits(part) <= least
                    if met:
                        continue
                    for piece in range(first_pieces[order[one]], first_pieces[order[one] + 1]):
                        a = _root(parents, piece)
                        for near in range(first_pieces[order[two]], first_pieces[order[two] + 1]):
                            b = _root(parents, near)
                            if (
                                a != b
                                and left[0] > 0
                                and _alike(
                                    features, cosine, limit, left, leaders, following, radii, piece,
                                    near,
                                )
                            ):  # fmt: skip
                                parents[max(a, b)] = a = min(a, b)


@compiled
def label(leaders, following, parents, labels):
    """Write the first item of its group as the label of each item.

    Parameters
    ----------
    leaders, following, parents : see `join_near`
    labels : (n,) int64, written for all items of pieces
    """
    least = np.full(len(parents), len(labels), np.int64)
    for piece in range(len(parents)):
        root, item = _root(parents, piece), leaders[piece]
        while item >= 0:
            least[root] = min(least[root], item)
            item = following[item]
    for piece in range(len(parents)):
        root, item = _root(parents, piece), leaders[piece]
        while item >= 0:
            labels[item] = least[root]
            item = following[item]
