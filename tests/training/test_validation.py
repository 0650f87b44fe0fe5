"""The label-free check of a network: literal figures, and what must not change or matter."""

import math

import numpy as np
import pytest

from mmray.config.sections import TrainingConfig
from mmray.mining.manifold import ManifoldNeighbors
from mmray.mining.pool_lists import Pools
from mmray.training.validation import (
    ManifoldValidation,
    best_epoch,
    checked_images,
    collapsed,
    departed,
)
from tests import oracles
from tests.made.synthetic import clouds

IMAGES = 60
NONE = np.empty(0, np.int64)


def pools_of(anchors, positives, negatives):
    def ragged(rows):
        return tuple(np.array(row, np.int64) for row in rows)

    empty = ragged([[]] * len(anchors))
    return Pools(
        anchors=np.array(anchors, np.int64),
        positives=ragged(positives),
        positive_similarity=tuple(np.ones(len(row), np.float32) for row in positives),
        positive_rank_e=empty,
        negatives=ragged(negatives),
        negative_similarity=empty,
        negative_rank_m=empty,
        manifold_neighbors=empty,
        zero_positives=np.zeros(len(anchors), np.int64),
        residual=np.zeros(len(anchors)),
        iterations=np.zeros(len(anchors), np.int64),
    )


NO_POOLS = pools_of([], [], [])
HELD_OUT = pools_of([41, 7, 3], [[2, 50], [9], [40, 41, 8]], [[5, 6, 1], [0, 59], [22]])


def neighbors_of(rows):
    """From {item: [(neighbour, s_m), ...]}."""
    return ManifoldNeighbors(
        items=np.array(list(rows), np.int64),
        neighbors=tuple(np.array([i for i, _ in row], np.int64) for row in rows.values()),
        similarity=tuple(np.array([s for _, s in row], np.float32) for row in rows.values()),
    )


def random_neighbors(seed, items=8):
    """Lists of 3 to 20 neighbours, half of them above a quarter of the first one's s_m."""
    rng = np.random.default_rng(seed)
    rows = {}
    for item in rng.permutation(IMAGES)[:items].tolist():
        others = rng.permutation(np.setdiff1d(np.arange(IMAGES), [item]))[: rng.integers(3, 21)]
        falling = np.sort(rng.uniform(0.01, 0.5, len(others)))[::-1]
        rows[item] = list(zip(others.tolist(), falling.tolist(), strict=True))
    return rows


def check_of(rows, held_out=NO_POOLS, images=IMAGES, seed=0, most=10_000):
    rng = np.random.default_rng(seed)
    return ManifoldValidation.of(neighbors_of(rows), held_out, images, rng, most=most)


def measured(check, embeddings, loss="contrastive", margin=None):
    return check.measure(embeddings[check.needed], TrainingConfig(loss=loss, margin=margin))


def literal_manifold_map(rows, embeddings, needed):
    """The weighted mean of average precisions, everything in double precision."""
    total, weights = 0.0, 0.0
    for item, near in rows.items():
        if not near:
            continue
        relevant = {i for i, s in near if np.float32(s) >= 0.25 * np.float32(near[0][1])}
        ranking = sorted(needed, key=lambda i: (-float(embeddings[item] @ embeddings[i]), i))
        weight = math.fsum(s for _, s in near[:10]) / 10
        total += weight * oracles.average_precision(ranking, relevant, junk={item})
        weights += weight
    return total / weights


@pytest.mark.parametrize("seed", range(5))
def test_manifold_map_is_the_weighted_mean_of_average_precisions(seed):
    rows, embeddings = random_neighbors(seed), clouds(seed, IMAGES)
    check = check_of(rows)
    assert check.needed.tolist() == list(range(IMAGES))
    wanted = literal_manifold_map(rows, embeddings.astype(np.float64), range(IMAGES))
    assert 0.05 < wanted < 0.95
    assert measured(check, embeddings)["manifold_map"] == pytest.approx(wanted, rel=1e-6)


def test_neighbors_from_a_quarter_of_the_first_on_are_relevant():
    rows = {4: [(1, 0.5), (7, 0.125), (3, 0.1249)]}
    (query,) = check_of(rows).queries
    assert query.positives.tolist() == [1, 7]
    assert query.junk.tolist() == [4]


def test_the_first_ten_tell_how_much_an_item_counts_and_fewer_tell_less():
    long = [(i, 0.5) for i in range(1, 11)] + [(i, 0.3) for i in range(11, 30)]
    check = check_of({0: long, 40: [(41, 0.5), (42, 0.25), (43, 0.03)]})
    assert check.weights.tolist() == pytest.approx([0.5, 0.078])


def test_an_embedding_that_ranks_as_the_manifold_does_has_a_manifold_map_of_one():
    """Groups of images on one place each: every item finds all of its group first."""
    rng = np.random.default_rng(0)
    group = rng.permutation(np.repeat(np.arange(6), 10))
    embeddings = np.eye(6, 8, dtype=np.float32)[group]
    rows = {}
    for item in (3, 17, 44):
        same = [i for i in np.flatnonzero(group == group[item]).tolist() if i != item]
        rows[item] = [(i, 0.4) for i in same] + [(i, 0.05) for i in range(60) if group[i] == 5]
    check = check_of(rows)
    assert measured(check, embeddings)["manifold_map"] == 1.0
    assert measured(check, np.roll(embeddings, 7, axis=0))["manifold_map"] < 0.9


def test_names_of_the_images_do_not_matter():
    rows, embeddings = random_neighbors(3), clouds(3, IMAGES)
    plain, names = neighbors_of(rows), np.random.default_rng(1).permutation(IMAGES)
    moved = np.empty_like(embeddings)
    moved[names] = embeddings
    figures = []
    for near, held_out, table in [
        (plain, HELD_OUT, embeddings),
        (plain.renamed(names), HELD_OUT.renamed(names), moved),
    ]:
        rng = np.random.default_rng(0)
        check = ManifoldValidation.of(near, held_out, IMAGES, rng, most=IMAGES)
        figures.append(measured(check, table))
    held_out_s = {"held_out_loss", "triplet_accuracy"}
    assert figures[0].keys() == {"manifold_map", "manifold_map_error", "spread"} | held_out_s
    assert figures[0] == pytest.approx(figures[1], rel=1e-6)


def test_all_images_are_searched_where_they_are_few():
    assert check_of({3: [(5, 0.5)]}, most=IMAGES).needed.tolist() == list(range(IMAGES))


def test_where_images_are_many_a_number_is_searched_the_named_ones_first():
    rows = {900: [(3, 0.5), (70, 0.01)], 12: []}
    held_out = pools_of([500], [[501, 502]], [[503]])
    check = check_of(rows, held_out, images=1000, most=20)
    named = {900, 3, 70, 12, 500, 501, 502, 503}
    assert named < set(check.needed.tolist())
    assert len(check.needed) == 20
    assert (np.diff(check.needed) > 0).all()
    assert check.needed.max() < 1000
    again = check_of(rows, held_out, images=1000, most=20)
    assert check.needed.tolist() == again.needed.tolist()
    another = check_of(rows, held_out, images=1000, seed=1, most=20)
    assert check.needed.tolist() != another.needed.tolist()


def test_queries_and_held_out_anchors_are_left_out_where_they_do_not_fit():
    rows = {100 * i: [(100 * i + j, 0.5) for j in range(1, 10)] for i in range(1, 9)}
    held_out = pools_of(range(5), [[10 + 9 * i] for i in range(5)], [[i + 60] for i in range(5)])
    check = check_of(rows, held_out, images=1000, most=40)
    assert len(check.needed) == 40
    assert check.needed[check.items].tolist() == [100, 200]  # half of 40, 10 images each
    assert check.held_out.anchors.tolist() == [0, 1, 2]  # a quarter, 3 images each
    assert len(check_of(rows, held_out, images=1000, most=4).queries) == 1  # one at least
    assert len(check_of(rows, held_out, images=1000, most=1000).queries) == 8


def test_an_epoch_s_check_is_small_beside_its_steps():
    assert checked_images(TrainingConfig(anchors_per_epoch=1000)) == 2000
    assert checked_images(TrainingConfig(anchors_per_epoch=10)) == 400


def test_manifold_map_is_measured_among_the_images_drawn():
    rows, embeddings = random_neighbors(1, items=2), clouds(1, 500)
    check = check_of(rows, images=500, most=90)
    assert len(check.needed) == 90
    wanted = literal_manifold_map(rows, embeddings.astype(np.float64), check.needed.tolist())
    assert measured(check, embeddings)["manifold_map"] == pytest.approx(wanted, rel=1e-6)


def test_items_without_neighbors_are_left_out():
    rows, embeddings = random_neighbors(2), clouds(2, IMAGES)
    lonely = {i: [] for i in range(IMAGES) if i not in rows}
    some = dict(list(lonely.items())[:3])
    figures = measured(check_of(some | rows), embeddings)
    assert figures == measured(check_of(rows), embeddings)
    assert set(measured(check_of(some), embeddings)) == {"spread"}


def test_where_there_is_nothing_to_measure_on_figures_are_left_out():
    embeddings, rows = clouds(0, IMAGES), random_neighbors(0)
    assert measured(check_of({}), embeddings).keys() == {"spread"}
    assert measured(check_of(rows), embeddings).keys() == {
        *("spread", "manifold_map", "manifold_map_error")
    }
    held_out = measured(check_of({}, HELD_OUT), embeddings)
    assert held_out.keys() == {"spread", "held_out_loss", "triplet_accuracy"}


def literal_held_out(pools, embeddings, loss, margin):
    """Means over the anchors, of the means over all pairs of a positive and a negative."""
    losses, ordered = [], []
    for anchor, positives, negatives in zip(
        pools.anchors, pools.positives, pools.negatives, strict=True
    ):
        z = embeddings.astype(np.float64)
        value = oracles.tuple_loss(
            z[[anchor]], z[positives][None], z[negatives][None], loss, margin
        )
        losses.append(float(value[0]))
        nearer = [
            0.5
            * (1 + np.sign(oracles.distance(z[anchor], z[n]) - oracles.distance(z[anchor], z[p])))
            for p in positives
            for n in negatives
        ]
        ordered.append(sum(nearer) / len(nearer))
    return {
        "held_out_loss": sum(losses) / len(losses),
        "triplet_accuracy": sum(ordered) / len(ordered),
    }


@pytest.mark.parametrize(
    ("loss", "margin", "used"),
    [("contrastive", None, 0.7), ("contrastive", 1.5, 1.5), ("triplet", None, 0.5)],
)
def test_held_out_anchors_are_measured_as_plain_loops_would(loss, margin, used):
    embeddings = clouds(4, IMAGES)
    embeddings[[50, 9]] = embeddings[[5, 59]]  # a positive and a negative of 41, and of 7, tie
    figures = measured(check_of({}, HELD_OUT), embeddings, loss, margin)
    wanted = literal_held_out(HELD_OUT, embeddings, loss, used)
    assert wanted["held_out_loss"] > 0.1
    for name, value in wanted.items():
        assert figures[name] == pytest.approx(value, rel=1e-5), name


@pytest.mark.parametrize("d", [16, 512, 1280])
def test_a_collapse_has_no_spread_and_every_tuple_a_tie(d):
    """Of equal rows the places in a matrix product must not tell which is nearer."""
    held_out = pools_of([0], [list(range(1, 8))], [list(range(8, 30))])
    for seed in range(5):
        collapsed = np.repeat(clouds(seed, 1, d), IMAGES, axis=0)
        figures = measured(check_of({}, held_out), collapsed)
        assert figures["spread"] == pytest.approx(0, abs=1e-6)
        assert figures["triplet_accuracy"] == 0.5


def test_spread_is_one_less_the_mean_cosine_of_two_images():
    embeddings = np.abs(clouds(5, IMAGES))
    z = embeddings.astype(np.float64)
    cosines = [z[i] @ z[j] for i in range(IMAGES) for j in range(IMAGES) if i != j]
    wanted = 1 - math.fsum(cosines) / len(cosines)
    assert 0.1 < wanted < 0.9
    assert measured(check_of({}), embeddings)["spread"] == pytest.approx(wanted, rel=1e-6)


def test_a_single_image_has_a_figure_too():
    assert measured(check_of({}, images=1), clouds(0, 1))["spread"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "epoch"),
    [
        ([0.5], 0),
        ([0.5, 0.4, 0.6, 0.3], 2),
        ([0.5, 0.5, 0.5], 0),
        ([0.5, 0.7, 0.4, 0.7], 1),
        ([None, None, None], 0),
    ],
)
def test_the_best_epoch_is_the_first_of_the_highest(values, epoch):
    history = [{"loss": 1.0} if h is None else {"manifold_map": h} for h in values]
    assert best_epoch(history) == epoch


def test_epochs_are_chosen_by_the_agreement_of_views():
    def epochs(*pairs):
        return [{"view_agreement": v, "manifold_map": m} for v, m in pairs]

    assert best_epoch(epochs((0.8, 0.6), (0.85, 0.55), (0.9, 0.3), (0.88, 0.7))) == 2
    assert best_epoch(epochs((0.8, 0.6), (0.79, 0.7))) == 0
    # A checkpoint of an earlier version has epochs without views.
    assert best_epoch([{"manifold_map": 0.5}, *epochs((0.9, 0.6), (0.8, 0.7))]) == 2


def test_the_error_of_the_manifold_map_is_that_of_a_weighted_mean():
    rows, embeddings = random_neighbors(4), clouds(4, IMAGES)
    alone = [check_of({item: near}) for item, near in rows.items()]
    values = np.array([measured(check, embeddings)["manifold_map"] for check in alone])
    weights = np.array([check.weights.item() for check in alone])
    figures = measured(check_of(rows), embeddings)
    mean = (weights * values).sum() / weights.sum()
    assert figures["manifold_map"] == pytest.approx(mean, rel=1e-6)
    error = math.sqrt((weights**2 * (values - mean) ** 2).sum()) / weights.sum()
    assert figures["manifold_map_error"] == pytest.approx(error, rel=1e-5)


def test_a_rise_within_its_own_error_is_none():
    def epochs(*pairs):
        return [{"view_agreement": v, "view_agreement_error": e} for v, e in pairs]

    assert best_epoch(epochs((0.8, 0.01), (0.815, 0.01), (0.79, 0.01))) == 0
    assert best_epoch(epochs((0.8, 0.01), (0.83, 0.02), (0.82, 0.005))) == 2
    assert best_epoch(epochs((0.8, 0.01), (0.825, 0.01), (0.82, 0.005))) == 1


def test_a_network_that_lost_a_tenth_of_the_manifold_has_departed():
    assert not departed([{"manifold_map": value} for value in (0.5, 0.46, 0.7)])
    assert departed([{"manifold_map": value} for value in (0.5, 0.44, 0.7)])
    assert not departed([{}, {}])  # there is no manifold


def test_an_embedding_has_collapsed_at_a_third_of_its_first_spread():
    history = [{"spread": 0.6}, {"spread": 0.3}]
    assert not collapsed(history)
    assert collapsed([*history, {"spread": 0.19}])
