"""Second searches equal literal readings of their definitions; a query's own image is left out."""

import numpy as np
import pytest

from mmray.evaluation import expansion
from mmray.evaluation.expansion import augmented, expand, rank_by_diffusion, ranked
from mmray.evaluation.ranking import rank
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from tests import oracles
from tests.made.synthetic import clouds

NONE = -1


def search_problem(seed, n=80, q=6, d=6):
    """A database in clouds, and queries of which the last two are in it."""
    rows = clouds(seed, n + q, d)
    database, queries = rows[:n], rows[n:].copy()
    own = np.full(q, NONE)
    own[-2:] = [3, 40]
    queries[-2:] = database[own[-2:]]
    return database, queries, own


@pytest.mark.parametrize(("items", "power"), [(1, 0), (10, 0), (10, 3), (200, 1.5)])
def test_an_expanded_query_is_the_weighted_sum_of_what_it_finds(items, power):
    database, queries, own = search_problem(0)
    expanded = expand(database, queries, own, items=items, power=power)
    assert expanded.dtype == np.float32
    for row, query, itself in zip(expanded, queries, own, strict=True):
        wanted = oracles.expanded_query(database, query, itself, items, power)
        np.testing.assert_allclose(row, wanted, atol=1e-6)


def test_the_image_of_the_query_itself_does_not_expand_it():
    database, queries, own = search_problem(1)
    with_own = expand(database, queries, np.full(len(own), NONE), items=3, power=0)
    without = expand(database, queries, own, items=3, power=0)
    np.testing.assert_array_equal(with_own[:-2], without[:-2])
    assert (np.abs(with_own - without)[-2:].max(axis=1) > 1e-3).all()


def test_items_that_look_away_from_the_query_have_no_weight():
    database = np.array([[1, 0], [-1, 0]], np.float32)
    queries = np.array([[0.8, 0.6]], np.float32)
    expanded = expand(database, queries, np.array([NONE]), items=2, power=1)
    total = queries[0] + 0.8 * database[0]
    np.testing.assert_allclose(expanded[0], total / np.linalg.norm(total), atol=1e-6)


@pytest.mark.parametrize("n", [80, 8])
def test_diffusion_from_the_neighbours_of_a_query_is_the_solution_of_its_equation(n):
    database, queries, own = search_problem(2, n=max(n, 41))
    database, own = database[:n], np.where(own < n, own, NONE)
    ranks = rank_by_diffusion(database, queries, own)
    assert ranks.dtype == np.int64
    changed = 0
    for column, query, itself in zip(ranks.T, queries, own, strict=True):
        f = oracles.query_diffusion(database, query, itself)
        assert sorted(column) == list(range(n))
        # The solver stops at 1e-6: items nearer than that to each other may change places.
        assert (np.diff(f[column]) <= 1e-5).all()
        changed += column.tolist() != oracles.order(query, database, list(range(n)))
    assert changed


def test_what_diffusion_does_not_reach_is_ranked_by_inner_product():
    """Two groups that no edge joins: the query's own group first, then the other by similarity."""
    angles = np.array([0, 0.1, 0.2, 0.3, 1.8, 1.7, 1.9, 1.6])
    database = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    query = np.array([[np.cos(0.05), np.sin(0.05)]], np.float32)
    monkey = pytest.MonkeyPatch()
    with monkey.context() as patch:
        patch.setattr(expansion, "DIFFUSION_K", 4)
        patch.setattr(expansion, "DIFFUSION_QUERY_K", 2)
        (ranking,) = rank_by_diffusion(database, query, np.array([NONE])).T
    assert set(ranking[:4]) == {0, 1, 2, 3}
    assert ranking[4:].tolist() == [7, 5, 4, 6]


def test_each_search_is_had_by_its_name():
    database, queries, own = search_problem(3)
    plain = ranked(database, queries, "plain", own=own)
    np.testing.assert_array_equal(plain, rank(database, queries))
    found = {name: ranked(database, queries, name, own=own) for name in ("aqe", "alpha-qe")}
    for name, items, power in (("aqe", 10, 0), ("alpha-qe", 50, 3)):
        expanded = expand(database, queries, own, items=items, power=power)
        np.testing.assert_array_equal(found[name], rank(database, expanded))
    np.testing.assert_array_equal(
        ranked(database, queries, "diffusion", own=own), rank_by_diffusion(database, queries, own)
    )
    np.testing.assert_array_equal(
        ranked(database, queries, "truncated-diffusion", own=own),
        rank_by_diffusion(database, queries, own, truncated=1000),
    )
    np.testing.assert_array_equal(
        ranked(database, queries, "dba", own=own), rank(augmented(database, items=20), queries)
    )
    with pytest.raises(ValueError, match="search 'nearest': choose from plain, aqe, "):
        ranked(database, queries, "nearest")


def test_an_item_is_augmented_by_its_nearest_with_falling_weights():
    database, _, _ = search_problem(5)
    moved = augmented(database, items=4)
    assert moved.dtype == np.float32
    for place, row in enumerate(moved):
        cosines = database.astype(np.float64) @ database[place]
        nearest = [i for i in np.argsort(-cosines, kind="stable") if i != place][:3]
        total = database[place] + sum(
            weight * database[i] for weight, i in zip((0.75, 0.5, 0.25), nearest, strict=True)
        )
        np.testing.assert_allclose(row, total / np.linalg.norm(total), atol=1e-6)


def test_copies_that_fill_the_first_places_leave_an_item_its_own_weight():
    database = np.repeat(np.eye(2, dtype=np.float32), 5, axis=0)
    np.testing.assert_allclose(augmented(database, items=3), database)


def test_diffusion_that_is_truncated_beyond_the_database_is_that_on_the_whole_graph():
    database, queries, own = search_problem(6)
    whole = rank_by_diffusion(database, queries, own)
    for many in (80, 10**6):
        np.testing.assert_array_equal(
            rank_by_diffusion(database, queries, own, truncated=many), whole
        )


def test_truncated_diffusion_solves_on_the_nearest_items_of_each_item_alone():
    database, queries, own = search_problem(7)
    ranks = rank_by_diffusion(database, queries, own, truncated=20)
    near = nearest_neighbors(database, database, 50)
    graph = normalize_graph(reciprocal_knn_graph(near.ids, near.similarities, power=3.0)).toarray()
    for column, query, itself in zip(ranks.T, queries, own, strict=True):
        cosines = database.astype(np.float64) @ query
        start = [i for i in np.argsort(-cosines, kind="stable") if i != itself][:10]
        f = np.zeros(len(database))
        for source in start:
            kept = np.argsort(-(database.astype(np.float64) @ database[source]))[:20]
            system = np.eye(20) - 0.99 * graph[np.ix_(kept, kept)]
            f[kept] += max(cosines[source], 0) ** 3 * np.linalg.solve(system, kept == source)
        assert (np.diff(np.maximum(f[column], 0)) <= 1e-5).all()
    assert (ranks != rank_by_diffusion(database, queries, own)).any()


def test_threads_change_nothing():
    database, queries, own = search_problem(4)
    for search in ("alpha-qe", "dba", "diffusion"):
        one, two = (ranked(database, queries, search, own=own, threads=t) for t in (1, 2))
        np.testing.assert_array_equal(one, two)
