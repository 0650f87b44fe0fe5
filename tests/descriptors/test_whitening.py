import io
import math
import tracemalloc

import numpy as np
import pytest

from mmray.descriptors.moments import Moments
from mmray.descriptors.whitening import Whitening, lda_whitening, pca_from, pca_whitening
from mmray.system.errors import InputError
from tests import oracles


def stretched(seed: int, n: int, d: int) -> np.ndarray:
    """l2-normalised float32 rows with a mean and distinct variances along rotated axes."""
    rng = np.random.default_rng(seed)
    axes, _ = np.linalg.qr(rng.standard_normal((d, d)))
    x = (rng.standard_normal((n, d)) * 0.8 ** np.arange(d) + 0.5) @ axes
    return (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)


def matching(
    seed: int, objects: int, photos: int, d: int, noise: float = 0.6
) -> tuple[np.ndarray, ...]:
    """Features of some photos of each object, and the ids of all ordered pairs of its photos.

    Photos of an object differ along the even axes, objects along all.
    """
    rng = np.random.default_rng(seed)
    change = rng.standard_normal((objects, photos, d)) * np.where(np.arange(d) % 2, 0.05, noise)
    x = (rng.standard_normal((objects, 1, d)) + change).reshape(-1, d)
    rows = np.arange(objects * photos)
    same = (rows[:, None] // photos == rows // photos) & (rows[:, None] != rows)
    features = (x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float32)
    return features, *np.nonzero(same)


def precision_at_1(z: np.ndarray, photos: int) -> float:
    similarities = z @ z.T
    np.fill_diagonal(similarities, -2)
    return float(np.mean(similarities.argmax(axis=1) // photos == np.arange(len(z)) // photos))


def test_pca_by_hand() -> None:
    """Deviations of 2 along x and of 1 along y, about (1, 1)."""
    steps = np.repeat([[2, 0], [-2, 0], [0, 1], [0, -1]], 2, axis=0)
    learned = pca_whitening((steps + 1).astype(np.float32))
    x = np.array([[3, 2], [3, 1], [1, 0]], np.float32)  # (2, 1), (2, 0) and (0, -1) from the mean
    root_half = math.sqrt(0.5)
    wanted = [[root_half, root_half], [1, 0], [0, -1]]
    np.testing.assert_allclose(learned.apply(x), wanted, atol=1e-6)
    np.testing.assert_allclose(learned.apply(x, 1), [[1], [1], [0]], atol=1e-6)


def test_lda_by_hand() -> None:
    """Matching pairs differ by 2 along x or by 1 along y; x is halved, whatever the rotation."""
    queries = np.array([[5, 1], [-5, -1], [1, -5], [-1, 5]] * 2, np.float32)
    steps = np.array([[2, 0], [-2, 0], [0, 1], [0, -1]] * 2, np.float32)
    features, rows = np.concatenate([queries, queries + steps]), np.arange(8)
    learned = lda_whitening(features, rows, rows + 8)
    np.testing.assert_allclose(learned.mean, 0, atol=1e-6)
    one, two, three = learned.apply(np.array([[2, 0], [2, 1], [0, 3]], np.float32))
    assert [one @ two, two @ three, one @ three] == pytest.approx(
        [math.sqrt(0.5), math.sqrt(0.5), 0], abs=1e-6
    )


def test_pca_is_the_textbook_formula_where_samples_abound() -> None:
    features = stretched(0, 300, 12)
    learned = pca_whitening(features)
    mean, projection = oracles.pca_whitening(features)
    np.testing.assert_allclose(learned.mean, mean, atol=1e-7)
    np.testing.assert_allclose(learned.projection, projection, rtol=1e-4, atol=1e-4)


def test_pca_whitened_features_have_the_identity_as_covariance() -> None:
    features = stretched(1, 64, 16)
    learned = pca_whitening(features)
    whitened = (features - learned.mean).astype(np.float64) @ learned.projection.T
    np.testing.assert_allclose(np.cov(whitened.T, bias=True), np.eye(16), atol=1e-4)


def test_lda_is_the_formula_of_the_authors_code_where_pairs_abound() -> None:
    features, queries, positives = matching(2, 30, 4, 10)
    learned = lda_whitening(features, queries[::2], positives[::2])
    mean, projection = oracles.lda_whitening(features, queries[::2], positives[::2])
    np.testing.assert_allclose(learned.mean, mean, atol=1e-7)
    np.testing.assert_allclose(learned.projection, projection, rtol=1e-4, atol=1e-4)


def test_lda_makes_matching_pairs_differ_equally_in_all_directions() -> None:
    features, queries, positives = matching(3, 30, 4, 10)
    learned = lda_whitening(features, queries, positives)
    differences = (features[queries] - features[positives]).astype(np.float64)
    whitened = differences @ learned.projection.T
    np.testing.assert_allclose(whitened.T @ whitened / len(queries), np.eye(10), atol=1e-4)


def test_lda_finds_objects_that_pca_does_not() -> None:
    features, queries, positives = matching(4, 60, 5, 10, noise=2.0)
    test, _, _ = matching(5, 60, 5, 10, noise=2.0)
    plain = precision_at_1(test, 5)
    pca = precision_at_1(pca_whitening(features).apply(test), 5)
    lda = precision_at_1(lda_whitening(features, queries, positives).apply(test), 5)
    assert lda > max(plain, pca) + 0.1


@pytest.mark.parametrize("method", ["pca", "lda"])
def test_rows_come_by_descending_variance(method: str) -> None:
    features, queries, positives = matching(6, 40, 4, 12)
    if method == "pca":
        learned = pca_whitening(features)
        # Whitened variances are equal: a longer row divides a smaller one.
        assert (np.diff(np.linalg.norm(learned.projection, axis=1)) > 0).all()
    else:
        learned = lda_whitening(features, queries, positives)
        whitened = (features - learned.mean) @ learned.projection.T
        assert (np.diff((whitened**2).sum(axis=0)) < 0).all()


@pytest.mark.parametrize("n", [2, 3, 7, 8, 11, 31, 39, 40, 41])
def test_pca_raises_the_variances_that_few_samples_do_not_support(n: int) -> None:
    features = stretched(7, n, 10)
    learned = pca_whitening(features)
    variances = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64), bias=True))[::-1]
    expected = oracles.supported(variances.tolist(), n)
    scales = np.linalg.norm(learned.projection.astype(np.float64), axis=1)
    np.testing.assert_allclose(1 / scales**2, expected, rtol=1e-3)


@pytest.mark.parametrize(("pairs", "items"), [(3, 6), (9, 18), (30, 60), (200, 12), (200, 25)])
def test_lda_raises_the_variances_that_few_pairs_or_few_items_do_not_support(
    pairs: int, items: int
) -> None:
    features = stretched(8, 60, 10)
    rng = np.random.default_rng(9)
    if pairs * 2 == items:
        queries, positives = rng.permutation(60)[:items].reshape(2, pairs)
    else:
        queries, positives = rng.integers(0, items, (2, pairs))
        queries[:items], positives[:items] = np.arange(items), (np.arange(items) + 1) % items
    learned = lda_whitening(features, queries, positives)
    differences = (features[queries] - features[positives]).astype(np.float64)
    variances = np.linalg.eigvalsh(differences.T @ differences / pairs)[::-1]
    expected = oracles.supported(variances.tolist(), min(pairs, items))
    scales = np.linalg.svd(learned.projection.astype(np.float64), compute_uv=False)[::-1]
    np.testing.assert_allclose(1 / scales**2, expected, rtol=1e-3)


def test_whitening_fewer_items_than_dimensions_does_not_make_them_all_equally_similar() -> None:
    features, queries, positives = matching(10, 8, 4, 64)
    for learned in (pca_whitening(features), lda_whitening(features, queries, positives)):
        whitened = learned.apply(features)
        assert np.isfinite(whitened).all()
        similarities = (whitened @ whitened.T)[np.triu_indices(32, 1)]
        assert np.std(similarities) > 0.15
        assert precision_at_1(whitened, 4) >= precision_at_1(features, 4)


@pytest.mark.parametrize(("scale", "added"), [(1, 1e-10), (1e3, 1e-9), (1e5, 1e-5)])
def test_a_channel_that_never_varies_gets_the_least_variance_that_counts(scale, added) -> None:
    features = np.c_[stretched(11, 200, 6), np.zeros((200, 2), np.float32)] * np.float32(scale)
    learned = pca_whitening(features)
    scales = np.linalg.norm(learned.projection.astype(np.float64), axis=1)
    np.testing.assert_allclose(scales[-2:], added**-0.5, rtol=1e-4)


@pytest.mark.parametrize("channel", ["small", "dead"])
def test_lda_is_the_authors_where_a_direction_hardly_varies_or_never_does(channel: str) -> None:
    """The gram matrix of whitened rows, which no order and no sign of the directions changes."""
    features, queries, positives = matching(12, 60, 4, 8)
    features[:, 3] *= np.float32(1e-5 if channel == "small" else 0)
    learned = lda_whitening(features, queries, positives)
    mean, projection = oracles.lda_whitening(features, queries, positives)
    expected = np.array([oracles.unit(projection @ (row - mean)) for row in features])
    found = learned.apply(features)
    np.testing.assert_allclose(found @ found.T, expected @ expected.T, atol=1e-3)


@pytest.mark.parametrize("dims", [1, 5, 12, None])
def test_apply_centres_projects_and_normalises(dims: int | None) -> None:
    features = stretched(12, 100, 12)
    learned = pca_whitening(features)
    z = learned.apply(features, dims)
    assert z.shape == (100, dims or 12)
    assert z.dtype == np.float32
    for i in (0, 57):
        centred = features[i].astype(np.float64) - learned.mean
        row = [math.fsum(p * centred) for p in learned.projection[:dims].astype(np.float64)]
        np.testing.assert_allclose(z[i], oracles.unit(np.array(row)), atol=1e-5)


def test_apply_leaves_its_input_alone_and_takes_no_rows() -> None:
    features = stretched(13, 40, 5)
    before = features.copy()
    learned = pca_whitening(features)
    learned.apply(features)
    np.testing.assert_array_equal(features, before)
    assert learned.apply(features[:0]).shape == (0, 5)


def test_the_mean_itself_is_projected_to_zero_and_stays_zero() -> None:
    learned = Whitening(np.full(3, 0.5, np.float32), np.eye(3, dtype=np.float32))
    z = learned.apply(np.array([[0.5, 0.5, 0.5], [0.5, 0.5, 2.5]], np.float32))
    np.testing.assert_array_equal(z, [[0, 0, 0], [0, 0, 1]])


def test_the_order_of_the_items_does_not_matter() -> None:
    features, queries, positives = matching(14, 20, 4, 8)
    order = np.random.default_rng(15).permutation(len(features))
    renamed = np.argsort(order)  # features[order][renamed[i]] is features[i]
    one = lda_whitening(features, queries, positives)
    two = lda_whitening(features[order], renamed[queries], renamed[positives])
    np.testing.assert_allclose(one.projection, two.projection, rtol=1e-4, atol=1e-4)
    three = pca_whitening(features[order])
    np.testing.assert_allclose(
        pca_whitening(features).projection, three.projection, rtol=1e-4, atol=1e-4
    )


def test_learning_twice_gives_the_same_bits() -> None:
    features, queries, positives = matching(16, 20, 4, 8)
    for one, two in (
        (pca_whitening(features), pca_whitening(features.copy())),
        (lda_whitening(features, queries, positives), lda_whitening(features, queries, positives)),
    ):
        assert one.projection.tobytes() == two.projection.tobytes()
        assert one.mean.tobytes() == two.mean.tobytes()


def test_the_largest_entry_of_each_row_is_positive() -> None:
    projection = pca_whitening(stretched(17, 100, 9)).projection
    assert (projection[np.arange(9), np.abs(projection).argmax(axis=1)] > 0).all()


def test_a_saved_whitening_is_read_back_bit_for_bit(tmp_path) -> None:
    learned = pca_whitening(stretched(18, 50, 6))
    path = tmp_path / "whitening"  # no suffix is added
    learned.save(path)
    stream = io.BytesIO()
    learned.save(stream)
    assert stream.getvalue() == path.read_bytes()
    stream.seek(0)
    for read in (Whitening.load(path), Whitening.load(str(path)), Whitening.load(stream)):
        np.testing.assert_array_equal(read.mean, learned.mean)
        np.testing.assert_array_equal(read.projection, learned.projection)


def npz(**arrays: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.savez(stream, **arrays)
    return stream.getvalue()


def npy(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    np.save(stream, array)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"neither this nor that",
        b"PK\x03\x04 a damaged zip file",
        npy(np.eye(3)),
        npz(mean=np.zeros(3)),
        npz(mean=np.zeros(3), projection=np.eye(4)),
        npz(mean=np.zeros((3, 1)), projection=np.eye(3)),
        npz(mean=np.zeros(3), projection=np.full((3, 3), np.nan)),
        npz(mean=np.array(["a"]), projection=np.eye(1)),
        npz(mean=np.array([None]), projection=np.eye(1)),
        npz(mean=np.zeros(1, complex), projection=np.eye(1)),
        npz(mean=np.full(1, 1e300), projection=np.eye(1)),
        npz(mean=np.zeros(1), projection=np.eye(1))[:-40],
    ],
)
def test_a_file_that_is_no_whitening_is_refused(tmp_path, content: bytes) -> None:
    path = tmp_path / "whitening.npz"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"whitening\.npz: not a whitening"):
        Whitening.load(path)


def test_a_whitening_that_is_not_there_is_not_found(tmp_path) -> None:
    with pytest.raises(FileNotFoundError):
        Whitening.load(tmp_path / "whitening.npz")


def test_nothing_is_learned_from_values_that_are_not_finite() -> None:
    features = stretched(19, 20, 4)
    features[7, 2] = np.nan
    with pytest.raises(ValueError, match=r"features: row 7 is not finite \(1 of 20 rows\)"):
        pca_whitening(features)
    with pytest.raises(ValueError, match="features: row 7 is not finite"):
        lda_whitening(features, np.array([0]), np.array([1]))
    learned = pca_whitening(features[:7])
    with pytest.raises(ValueError, match="embeddings: row 0 is not finite"):
        learned.apply(features[7:])


def test_nothing_is_learned_where_nothing_varies() -> None:
    same = np.full((5, 4), 0.5, np.float32)
    with pytest.raises(ValueError, match="all 5 features are equal"):
        pca_whitening(same)
    features = np.r_[same, stretched(20, 5, 4)]
    with pytest.raises(ValueError, match="each of the 2 matching pairs are equal"):
        lda_whitening(features, np.array([0, 1]), np.array([2, 3]))


@pytest.mark.parametrize("shape", [(1, 4), (0, 4), (4,), (4, 0)])
def test_features_of_other_shapes_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"need \(n, d\) with n >= 2"):
        pca_whitening(np.zeros(shape, np.float32))


@pytest.mark.parametrize(
    ("queries", "positives", "message"),
    [
        ([], [], "at least 1"),
        ([0, 1], [1], "same length"),
        ([[0]], [[1]], "must be lists"),
        ([0], [10], r"positives holds ids outside 0\.\.9: 10\.\.10"),
        ([-1, 3], [1, 2], r"queries holds ids outside 0\.\.9: -1\.\.3"),
    ],
)
def test_pairs_that_name_no_rows_are_refused(queries, positives, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lda_whitening(
            stretched(21, 10, 4), np.array(queries, np.int64), np.array(positives, np.int64)
        )


@pytest.mark.parametrize("dims", [0, -1, 5])
def test_dimensions_that_a_whitening_does_not_have_are_refused(dims: int) -> None:
    features = stretched(22, 30, 4)
    with pytest.raises(ValueError, match=f"dims = {dims}: this whitening has 1 to 4"):
        pca_whitening(features).apply(features, dims)


def test_embeddings_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match=r"shape \(2, 3\): this whitening takes \(n, 4\)"):
        pca_whitening(stretched(23, 30, 4)).apply(np.zeros((2, 3), np.float32))


# Moments, and features read block by block

MANY = 20_000  # rows, more than two blocks


def far_away(seed: int, n: int, d: int) -> np.ndarray:
    """Rows whose mean is 10,000 times as large as what they vary by, which drifts with the row."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) * 0.5 ** np.arange(d) + np.linspace(0, 3, n)[:, None]
    return (x + 1e4).astype(np.float32)


@pytest.mark.parametrize("n", [1, 2, 8192, 8193, MANY])
def test_moments_are_mean_and_covariance_however_large_the_mean(n: int) -> None:
    rows = far_away(30, n, 3)
    found = Moments.of(rows)
    mean, covariance = oracles.moments(rows)
    assert found.count == n
    np.testing.assert_allclose(found.mean, mean, rtol=1e-14)
    np.testing.assert_allclose(found.covariance(), covariance, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_moments_of_parts_merge_in_any_order_to_those_of_the_whole(seed: int) -> None:
    rng = np.random.default_rng(seed)
    rows = far_away(31, 3000, 4)
    cuts = np.sort(rng.integers(0, 3000, 12))
    parts = [Moments.of(part) for part in np.split(rows, cuts)]
    whole = Moments.of(rows)
    for order in (np.arange(13), np.arange(13)[::-1], rng.permutation(13)):
        merged = Moments.none(4)
        for place in order:
            merged = merged.merge(parts[place])
        assert merged.count == 3000
        np.testing.assert_allclose(merged.mean, whole.mean, rtol=1e-12)
        scale = np.sqrt(np.outer(*[np.diag(whole.scatter)] * 2))
        np.testing.assert_allclose(merged.scatter / scale, whole.scatter / scale, atol=1e-9)


def test_merging_no_rows_changes_nothing() -> None:
    some, none = Moments.of(stretched(44, 9, 3)), Moments.of(np.zeros((0, 3), np.float32))
    for merged in (some.merge(none), none.merge(some)):
        assert merged.count == 9
        np.testing.assert_array_equal(merged.mean, some.mean)
        np.testing.assert_array_equal(merged.scatter, some.scatter)
    assert none.merge(none).count == 0


def test_merging_leaves_both_parts_as_they_were() -> None:
    parts = [Moments.of(far_away(seed, 50, 3)) for seed in (32, 33)]
    before = [(part.mean.copy(), part.scatter.copy()) for part in parts]
    merged = parts[0].merge(parts[1])
    merged.scatter[:] = merged.mean[:] = 0
    for part, (mean, scatter) in zip(parts, before, strict=True):
        np.testing.assert_array_equal(part.mean, mean)
        np.testing.assert_array_equal(part.scatter, scatter)


def test_moments_about_a_centre_are_the_mean_outer_product() -> None:
    rows, centre = stretched(34, 200, 5), np.arange(5.0)
    x = rows.astype(np.float64) - centre
    np.testing.assert_allclose(Moments.of(rows).about(centre), x.T @ x / 200, rtol=1e-12)


def test_moments_are_kept_without_pickle() -> None:
    moments, stream = Moments.of(far_away(35, 100, 6)), io.BytesIO()
    np.savez(stream, **moments.to_arrays())
    stream.seek(0)
    read = Moments.of_arrays(np.load(stream, allow_pickle=False))
    assert (read.count, type(read.count)) == (100, int)
    np.testing.assert_array_equal(read.mean, moments.mean)
    np.testing.assert_array_equal(read.scatter, moments.scatter)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scatter": np.zeros((2, 3))}, r"have shapes \(\(\), \(3,\), \(2, 3\)\)"),
        ({"mean": np.zeros((3, 3))}, "have shapes"),
        ({"count": np.zeros(2)}, "have shapes"),
        ({"mean": None}, "no array 'mean'"),
    ],
)
def test_arrays_that_are_no_moments_are_refused(changes: dict, message: str) -> None:
    arrays = {**Moments.of(stretched(36, 9, 3)).to_arrays(), **changes}
    with pytest.raises(ValueError, match=f"not moments: .*{message}"):
        Moments.of_arrays({name: array for name, array in arrays.items() if array is not None})


def test_moments_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="of 3 and of 4 dimensions"):
        Moments.none(3).merge(Moments.none(4))
    with pytest.raises(ValueError, match="no rows, so they have no covariance"):
        Moments.none(3).covariance()
    with pytest.raises(ValueError, match=r"shape \(3,\): need \(n, d\)"):
        Moments.of(np.zeros(3, np.float32))
    for few in (Moments.none(3), Moments.of(np.ones((1, 3), np.float32))):
        with pytest.raises(ValueError, match=f"at least 2 features, not {few.count}"):
            pca_from(few)


@pytest.mark.parametrize("offset", [0, 100])
@pytest.mark.parametrize("n", [300, MANY])
def test_pca_by_blocks_is_the_formula_of_all_rows_at_once(n: int, offset: int) -> None:
    features = stretched(37, n, 6) + np.float32(offset)
    learned = pca_whitening(features)
    x = features.astype(np.float64)
    variances, columns = np.linalg.eigh(np.cov(x.T, bias=True))
    expected = oracles.positive_largest((columns / np.sqrt(variances)).T[::-1])
    np.testing.assert_allclose(learned.mean, x.mean(axis=0), rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(learned.projection, expected, rtol=1e-5, atol=1e-5)


def test_pca_from_moments_of_parts_is_pca_of_the_whole() -> None:
    features = stretched(38, 900, 8)
    merged = Moments.of(features[600:]).merge(Moments.of(features[:600]))
    one, two = pca_from(merged), pca_whitening(features)
    np.testing.assert_allclose(one.mean, two.mean, atol=1e-7)
    np.testing.assert_allclose(one.projection, two.projection, rtol=1e-5, atol=1e-5)


def test_pca_from_moments_counts_all_rows_for_the_directions_that_they_support() -> None:
    features = stretched(39, 24, 10)
    merged = Moments.of(features[:12]).merge(Moments.of(features[12:]))
    scales = np.linalg.norm(pca_from(merged).projection.astype(np.float64), axis=1)
    variances = np.linalg.eigvalsh(np.cov(features.T.astype(np.float64), bias=True))[::-1]
    expected = oracles.supported(variances.tolist(), 24)
    np.testing.assert_allclose(1 / scales**2, expected, rtol=1e-3)


def test_lda_by_blocks_is_the_formula_of_all_pairs_at_once() -> None:
    features, queries, positives = matching(40, 2300, 4, 5)
    features += np.float32(3)
    queries, positives = queries[:9000], positives[:9000]
    assert min(len(features), len(queries)) > 8192
    learned = lda_whitening(features, queries, positives)
    mean, projection = oracles.lda_whitening(features, queries, positives)
    np.testing.assert_allclose(learned.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(learned.projection, projection, rtol=1e-4, atol=1e-4)


def test_lda_of_pairs_that_all_differ_by_the_same_has_that_direction_last() -> None:
    # Differences have a mean: their second moment is about zero, not about it.
    features = stretched(41, 40, 4)
    features[20:] = features[:20] + np.array([1, 0, 0, 0], np.float32)
    learned = lda_whitening(features, np.arange(20), np.arange(20, 40))
    moved = learned.projection @ np.array([1, 0, 0, 0], np.float32)
    np.testing.assert_allclose(np.linalg.norm(moved), 1, rtol=1e-4)


def test_learning_holds_a_block_of_rows_in_double_precision_and_not_all(tmp_path) -> None:
    features = np.lib.format.open_memmap(
        tmp_path / "features.npy", "w+", np.float32, (10 * MANY, 8)
    )
    features[:] = np.tile(stretched(42, MANY, 8), (10, 1))
    features = np.load(tmp_path / "features.npy", mmap_mode="r")
    pairs = np.arange(100), np.arange(100, 200)
    tracemalloc.start()
    learned = pca_whitening(features)
    lda = lda_whitening(features, *pairs)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < features.nbytes / 2
    for array in (learned.mean, learned.projection, lda.mean, lda.projection):
        assert type(array) is np.ndarray
    again = pca_whitening(np.array(features))
    np.testing.assert_array_equal(again.projection, learned.projection)


def test_values_that_are_not_finite_are_named_by_their_row_in_the_whole() -> None:
    features = stretched(43, MANY, 3)
    features[15_000, 1], features[MANY - 1, 2] = np.inf, -np.inf
    for learn in (pca_whitening, lambda x: lda_whitening(x, np.array([0]), np.array([1]))):
        with pytest.raises(ValueError, match=rf"row 15000 is not finite \(2 of {MANY} rows\)"):
            learn(features)


def test_equal_features_are_recognised_over_all_blocks() -> None:
    same = np.tile(np.array([0.1, 1 / 3, 1e-3], np.float32), (MANY, 1))
    with pytest.raises(ValueError, match=f"all {MANY} features are equal"):
        pca_whitening(same)
    same[-1, 2] = np.nextafter(same[-1, 2], np.float32(1))  # by as little as float32 can
    assert np.isfinite(pca_whitening(same).projection).all()


def test_an_archive_that_inflates_to_far_more_is_not_read(tmp_path) -> None:
    path = tmp_path / "whitening.npz"
    np.savez_compressed(path, mean=np.zeros(3), projection=np.zeros((4000, 4000)))
    with pytest.raises(InputError, match=r"not a whitening .*: the array projection has 128000128"):
        Whitening.load(path)
