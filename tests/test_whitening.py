import io
import math

import numpy as np
import pytest

from mmray.errors import InputError
from mmray.whitening import Whitening, lda_whitening, pca_whitening
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


def test_a_channel_that_never_varies_is_divided_by_a_thousandth_of_the_largest_deviation() -> None:
    features = np.c_[stretched(11, 200, 6), np.zeros((200, 2), np.float32)]
    learned = pca_whitening(features)
    scales = np.linalg.norm(learned.projection, axis=1)
    np.testing.assert_allclose(scales[-2:], 1000 * scales[0], rtol=1e-4)


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
