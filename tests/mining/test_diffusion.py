"""Diffusion: against the dense inverse and textbook CG, independence of blocks, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mmray.mining.diffusion import cpu, reordering, solver
from mmray.mining.diffusion.cuda import TorchVectors
from mmray.mining.diffusion.reordering import ordered, reorder
from mmray.mining.diffusion.solver import Diffuser, Solver, diffuse
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from tests import oracles
from tests.made.synthetic import curves, graph_of, permuted, random_graph


def curve_graph(seed=0, dtype=np.float32, **shape):
    features = curves(seed, **shape)
    found = nearest_neighbors(features, features, 8)
    return normalize_graph(reciprocal_knn_graph(found.ids, found.similarities).astype(dtype))


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-6), (np.float32, 3e-5)])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.99])
def test_columns_match_the_dense_inverse(alpha, dtype, tolerance):
    graph = curve_graph(dtype=dtype)
    anchors = np.arange(0, 120, 7)
    solved = diffuse(graph, anchors, alpha=alpha, max_iter=1000)
    for row, anchor in enumerate(anchors):
        expected = oracles.diffusion(graph.toarray(), anchor, alpha)
        np.testing.assert_allclose(solved.similarity[row], expected, atol=tolerance)
    assert solved.similarity.dtype == np.float32
    assert solved.residual.max() < tolerance
    if dtype is np.float64:
        assert solved.residual.max() < 2e-10


@settings(max_examples=40)
@given(
    seed=st.integers(0, 10_000),
    n=st.integers(1, 40),
    max_iter=st.integers(1, 30),
    rtol=st.sampled_from([1e-10, 1e-3]),
)
def test_every_column_is_the_best_iterate_of_textbook_conjugate_gradient(seed, n, max_iter, rtol):
    graph = normalize_graph(random_graph(seed, n, min(1.0, 4 / n), np.float64))
    solved = diffuse(graph, np.arange(n), rtol=rtol, max_iter=max_iter)
    for anchor in range(n):
        expected, steps = oracles.conjugate_gradient(graph.toarray(), anchor, 0.99, rtol, max_iter)
        np.testing.assert_allclose(solved.similarity[anchor], expected, rtol=1e-5, atol=1e-7)
        assert solved.iterations[anchor] == steps


def comb():
    """A path with teeth of weak edges: its residuals rise and fall on the way."""
    path = [(i, i + 1, 1.0) for i in range(0, 60)]
    teeth = [(i, 61 + i, 1e-3 * (1 + i % 5)) for i in range(0, 60)]
    return normalize_graph(graph_of(path + teeth, 121, np.float64))


def test_the_iterate_of_smallest_residual_is_returned_not_the_last():
    graph, anchors = comb(), np.arange(121)
    residuals = np.stack([diffuse(graph, anchors, max_iter=m).residual for m in range(1, 26)])
    assert np.all(np.diff(residuals, axis=0) <= 1e-12)
    last_steps = [textbook_last_residual(graph.toarray(), a, 25) for a in anchors]
    assert np.any(residuals[-1] < np.array(last_steps) * 0.99), "the data must tell them apart"


def textbook_last_residual(A_hat, anchor, steps):
    L, r = np.eye(len(A_hat)) - 0.99 * A_hat, np.eye(len(A_hat))[anchor]
    p = r
    for _ in range(steps):
        squared = r @ r
        r = r - squared / (p @ L @ p) * (L @ p)
        p = r + (r @ r) / squared * p
    return np.sqrt(r @ r)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_residual_is_that_of_the_returned_similarity(dtype):
    graph = curve_graph(dtype=dtype)
    for max_iter in (1, 3, 6):
        solved = diffuse(graph, np.arange(30), max_iter=max_iter)
        L = np.eye(120) - 0.99 * graph.toarray().astype(np.float64)
        residual = np.linalg.norm(np.eye(120)[:30] - solved.similarity @ L, axis=1)
        np.testing.assert_allclose(solved.residual, residual, rtol=1e-3)


def test_single_precision_does_not_claim_a_residual_it_cannot_reach():
    """The recurrence carries r below 1e-10; that of the float32 solution stays where it is."""
    solved = diffuse(curve_graph(dtype=np.float32), np.arange(30), max_iter=1000)
    assert solved.iterations.max() < 1000
    assert solved.residual.min() > 1e-8


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_column_does_not_depend_on_the_others(dtype):
    """Some converge early (small parts, isolated items), some not at all; bit for bit."""
    graph = normalize_graph(random_graph(11, 200, 0.008, dtype))
    anchors = np.random.default_rng(0).permutation(200)
    whole = diffuse(graph, anchors, max_iter=12)
    assert len(np.unique(whole.iterations)) > 3
    for rows in (np.arange(5), np.arange(3, 30), np.array([7]), np.arange(200)[::-1]):
        part = diffuse(graph, anchors[rows], max_iter=12)
        for field in ("similarity", "residual", "iterations"):
            assert getattr(part, field).tobytes() == getattr(whole, field)[rows].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_bands_of_rows_change_nothing_but_rounding(monkeypatch, dtype):
    graph = curve_graph(dtype=dtype)
    whole = diffuse(graph, np.arange(20))
    monkeypatch.setattr(cpu, "_BAND_ROWS", 17)
    banded = diffuse(graph, np.arange(20))
    tolerance = 1e-5 if dtype is np.float32 else 1e-7
    np.testing.assert_allclose(banded.similarity, whole.similarity, rtol=1e-4, atol=tolerance)


def long_path(dtype):
    """Steps reach one edge far: most bands are never reached, some by one column alone."""
    chain = [(i, i + 1, 0.2 + (i * 37 % 11) / 11) for i in range(2999)]
    return normalize_graph(graph_of(chain, 3000, dtype))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_parts_that_are_not_reached_are_passed_over_exactly(monkeypatch, dtype):
    graph, anchors = long_path(dtype), np.array([0, 511, 512, 1500, 2990, 5, 512])
    banded = diffuse(graph, anchors)
    monkeypatch.setattr(cpu, "_FEW", 3000)
    assert diffuse(graph, anchors).similarity.tobytes() == banded.similarity.tobytes()
    monkeypatch.setattr(cpu, "_BAND_ROWS", 3000)
    whole = diffuse(graph, anchors)
    np.testing.assert_allclose(banded.similarity, whole.similarity, rtol=1e-5, atol=1e-12)
    for row, anchor in enumerate(anchors):
        reached = np.flatnonzero(banded.similarity[row])
        assert np.abs(reached - anchor).max() in (18, 19, 20)


def test_a_step_works_on_the_rows_that_it_can_reach_and_no_others():
    """Else every block after the first would pay for all that was reached before."""
    vectors = cpu.CpuVectors(ordered(long_path(np.float32)), 0.99, 1)
    for anchor in (0, 511, 2999):
        vectors.start(np.array([anchor]))
        for steps in range(4):
            reached = np.arange(max(0, anchor - steps), min(3000, anchor + steps + 1))
            np.testing.assert_array_equal(np.flatnonzero(vectors.reached), reached)
            np.testing.assert_array_equal(vectors.bands, np.unique(reached // 512))
            vectors.multiply()
            vectors.step_solution(np.ones(32), np.ones(32))


def test_steps_that_reach_many_rows_end_the_search_for_rows_to_skip():
    vectors = cpu.CpuVectors(ordered(graph_of([(0, i, 0.5) for i in range(1, 40)], 45)), 0.99, 1)
    vectors.start(np.array([0]))
    vectors.multiply()
    assert vectors.reached.all()
    assert len(vectors.newest) == 0


def test_the_best_iterate_holds_nothing_of_an_earlier_block():
    """Rows that are reached after it was saved were 0 then."""
    vectors, chosen = cpu.CpuVectors(ordered(long_path(np.float64)), 0.99, 1), []
    for steps in (9, 2):
        vectors.start(np.array([700]))
        take_steps(vectors, steps)
        vectors.save(np.ones(32, bool))
        chosen.append(vectors.solution.copy())
        take_steps(vectors, 20)
        vectors.restore(np.ones(32, bool))
        np.testing.assert_array_equal(vectors.solution, chosen[-1])
    assert np.count_nonzero(chosen[0]) > np.count_nonzero(chosen[1])


def take_steps(vectors, steps):
    half = np.full(32, 0.5)
    for _ in range(steps):
        vectors.multiply()
        vectors.step_remainder(half)
        vectors.step_solution(half, half)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_threads_change_no_bit(monkeypatch, dtype):
    monkeypatch.setattr(cpu, "_BAND_ROWS", 7)
    graph, anchors = reorder(curve_graph(dtype=dtype)), np.arange(40)
    alone = diffuse(graph, anchors)
    for threads in (2, 3, 50):
        shared = diffuse(graph, anchors, threads=threads)
        assert shared.similarity.tobytes() == alone.similarity.tobytes()
        assert shared.residual.tobytes() == alone.residual.tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_reordered_graph_gives_the_same_by_item(dtype):
    graph = curve_graph(dtype=dtype)
    anchors = np.random.default_rng(2).permutation(120)[:50]
    plain, moved = diffuse(graph, anchors), diffuse(reorder(graph), anchors)
    tolerance = 1e-5 if dtype is np.float32 else 1e-7
    np.testing.assert_allclose(moved.similarity, plain.similarity, rtol=1e-4, atol=tolerance)
    np.testing.assert_array_equal(moved.iterations, plain.iterations)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_iter", [3, 20, 400])
def test_the_vectors_of_pytorch_give_the_same(monkeypatch, dtype, max_iter):
    """The code that runs on a GPU, run on a CPU, converging columns and early stops included."""
    graph = reorder(normalize_graph(random_graph(11, 200, 0.012, dtype)))
    anchors = np.random.default_rng(0).permutation(200)[:90]
    compiled = diffuse(graph, anchors, max_iter=max_iter)
    monkeypatch.setattr(solver, "CpuVectors", on_torch)
    other = diffuse(graph, anchors, max_iter=max_iter)
    np.testing.assert_allclose(other.similarity, compiled.similarity, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(other.residual, compiled.residual, rtol=1e-2, atol=1e-5)
    if dtype is np.float64:
        np.testing.assert_array_equal(other.iterations, compiled.iterations)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_pytorch_takes_as_many_columns_as_there_are_anchors(monkeypatch, dtype):
    """The rounding is the same, on its CPU device; and one object serves all widths."""
    monkeypatch.setattr(solver, "CpuVectors", on_torch)
    graph = reorder(normalize_graph(random_graph(11, 200, 0.012, dtype)))
    diffuser, anchors = Diffuser(graph), np.arange(40)
    wide = diffuse(graph, anchors)
    for few, columns in ((anchors[:5], 32), (anchors, 64), (anchors[:32], 32)):
        for rows, block in diffuser.blocks(few):
            assert block.similarity.tobytes() == wide.similarity[few[rows]].tobytes()
            assert block.residual.tobytes() == wide.residual[few[rows]].tobytes()
        assert diffuser._vectors.columns == columns


def on_torch(graph, alpha, threads):
    return TorchVectors(graph, alpha, "cpu")


def test_single_precision_agrees_with_double_as_released():
    """20 steps at α = 0.99: relative to the largest similarity but the anchor's own."""
    double, single = curve_graph(dtype=np.float64), curve_graph(dtype=np.float32)
    anchors = np.arange(120)
    exact, rounded = diffuse(double, anchors), diffuse(single, anchors)
    np.testing.assert_allclose(rounded.similarity, exact.similarity, rtol=2e-4, atol=1e-6)


def test_permuting_the_items_permutes_the_result():
    graph = curve_graph(dtype=np.float64)
    order = np.random.default_rng(3).permutation(120)
    plain = diffuse(graph, order[:10]).similarity
    moved = diffuse(permuted(graph, order), np.arange(10)).similarity
    np.testing.assert_allclose(moved, plain[:, order], rtol=1e-5, atol=1e-9)


def test_an_isolated_item_is_similar_to_itself_alone():
    graph = normalize_graph(graph_of([(0, 1, 0.5), (1, 2, 0.5)], 5))
    solved = diffuse(graph, np.array([3, 0, 4]))
    np.testing.assert_array_equal(solved.similarity[[0, 2]], np.eye(5)[[3, 4]])
    np.testing.assert_array_equal(solved.residual[[0, 2]], [0, 0])
    np.testing.assert_array_equal(solved.iterations[[0, 2]], [1, 1])
    np.testing.assert_array_equal(solved.similarity[1, 3:], [0, 0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_diffuser_answers_again_as_a_new_one_does(dtype):
    graph, rng = reorder(curve_graph(dtype=dtype)), np.random.default_rng(4)
    diffuser = Diffuser(graph, Solver(max_iter=6), threads=2)
    for size in (3, 70, 1, 33):
        anchors = rng.choice(120, size, replace=False)
        fresh = diffuse(graph, anchors, max_iter=6)
        seen = []
        for rows, block in diffuser.blocks(anchors):
            seen += rows.tolist()
            for field in ("similarity", "residual", "iterations"):
                assert getattr(block, field).tobytes() == getattr(fresh, field)[rows].tobytes()
        assert sorted(seen) == list(range(size))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_graph_of_many_items_is_reordered_whatever_the_anchors_are(monkeypatch, dtype):
    graph, anchors = curve_graph(dtype=dtype), np.array([5, 80, 44])
    plain = diffuse(graph, anchors).similarity
    monkeypatch.setattr(reordering, "_PAYS_FROM", 120)
    moved = diffuse(graph, anchors).similarity
    assert moved.tobytes() == diffuse(reorder(graph), anchors).similarity.tobytes()
    if dtype is np.float32:
        assert moved.tobytes() != plain.tobytes()
    for row, anchor in enumerate(anchors):
        alone = diffuse(graph, np.array([anchor])).similarity
        assert alone.tobytes() == moved[row].tobytes()


def test_nothing_is_left_over_from_other_anchors_of_the_call():
    graph = curve_graph()
    twice = diffuse(graph, np.tile(np.arange(40), 2))
    assert twice.similarity[:40].tobytes() == twice.similarity[40:].tobytes()


def test_no_anchors_give_an_empty_result():
    assert diffuse(curve_graph(), np.empty(0, np.int64)).similarity.shape == (0, 120)


def test_the_graph_may_be_read_only():
    graph = curve_graph()
    for array in (graph.data, graph.indices, graph.indptr):
        array.flags.writeable = False
    diffuse(graph, np.array([1, 2]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.0}, r"alpha must be in \[0, 1\), got 1.0"),
        ({"alpha": -0.1}, r"alpha must be in \[0, 1\), got -0.1"),
        ({"alpha": np.nan}, r"alpha must be in \[0, 1\), got nan"),
        ({"rtol": -1e-3}, "rtol must not be negative, got -0.001"),
        ({"max_iter": 0}, "max_iter must be at least 1, got 0"),
        ({"threads": 0}, "threads must be at least 1, got 0"),
        ({"anchors": np.array([0, 120])}, r"anchor 120 is outside 0\.\.119"),
        ({"anchors": np.array([-1])}, r"anchor -1 is outside 0\.\.119"),
    ],
)
def test_unusable_arguments_are_refused(arguments, message):
    arguments = {"anchors": np.array([0])} | arguments
    with pytest.raises(ValueError, match=message):
        diffuse(curve_graph(), arguments.pop("anchors"), **arguments)


def test_a_graph_that_is_not_square_or_not_float_is_refused():
    graph = curve_graph()
    with pytest.raises(ValueError, match=r"square and float32 or float64, got shape \(5, 120\)"):
        diffuse(graph[:5], np.array([0]))
    with pytest.raises(ValueError, match=r"float32 or float64, got .* int64"):
        diffuse(graph.astype(np.int64), np.array([0]))


@pytest.mark.parametrize("hops", [1, 3, 6])
def test_hops_solve_on_what_is_near_as_if_there_were_nothing_beyond(hops):
    graph = curve_graph(seed=2, dtype=np.float64)
    dense, anchor = graph.toarray(), 40
    near = np.flatnonzero(np.linalg.matrix_power((dense > 0) + np.eye(120), hops)[anchor])
    assert 1 < len(near) < 120
    solver = Solver(max_iter=1000, hops=hops)
    (_, solved), (_, again) = Diffuser(graph, solver).blocks(np.array([anchor, anchor]))
    np.testing.assert_array_equal(solved.similarity, again.similarity)
    expected = np.zeros(120)
    place = int(np.searchsorted(near, anchor))
    expected[near] = oracles.diffusion(dense[np.ix_(near, near)], place, 0.99)
    np.testing.assert_allclose(solved.similarity[0], expected, rtol=1e-5, atol=1e-6)
    assert solved.residual[0] < 1e-8


def test_enough_hops_solve_on_the_whole_graph_whatever_was_solved_before():
    graph, anchors = reorder(curve_graph(seed=3)), np.array([5, 90, 17])
    whole = diffuse(graph, anchors)
    near = Diffuser(graph, Solver(hops=120))
    assert len(list(near.blocks(anchors[::-1]))) == 3
    for rows, solved in near.blocks(anchors):
        np.testing.assert_allclose(solved.similarity, whole.similarity[rows], rtol=1e-3, atol=1e-5)
        np.testing.assert_array_equal(solved.iterations, whole.iterations[rows])


def test_hops_below_one_are_refused():
    with pytest.raises(ValueError, match="hops must be at least 1, got 0"):
        Solver(hops=0)
