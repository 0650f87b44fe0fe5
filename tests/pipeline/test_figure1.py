"""On points of the plane, what is mined is what one sees; its picture is always the same."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "jobs"))

import figure1 as job

from mmray.config.tools import FigureConfig
from mmray.mining.anchors import select_anchors
from mmray.mining.knn.exact import nearest_neighbors
from mmray.pipeline.reports.figure1 import counts, draw, image_format
from mmray.pipeline.reports.plane import gaussian_features, mine_plane_example, spirals
from mmray.system.errors import InputError

DEFAULTS = {key: value for key, value in asdict(FigureConfig()).items() if key != "output"}


def toy(**changes):
    return mine_plane_example(**DEFAULTS | changes)


def distances(places):
    return np.linalg.norm(places[:, None] - places, axis=2)


@pytest.fixture(scope="module")
def places():
    return spirals(600, curves=3, noise=0.03, rng=np.random.default_rng(0))[0]


def test_the_order_of_cosines_is_that_of_distances(places):
    features, apart = gaussian_features(places), distances(places)
    found = np.take_along_axis(
        apart, nearest_neighbors(features, features, len(places)).ids, axis=1
    )
    farther = np.maximum.accumulate(found, axis=1) - found  # by which a pair is the wrong way round
    assert farther[:, :300].max() < 1e-5
    assert farther.max() < 0.01  # of 2.1: float32 is too coarse for points on opposite sides
    nearest = np.argsort(apart, axis=1, kind="stable")[:, :80]
    np.testing.assert_array_equal(nearest_neighbors(features, features, 80).ids, nearest)


def test_features_have_length_1_and_the_cosines_of_a_gaussian(places):
    features = gaussian_features(places, width=0.5).astype(np.float64)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    expected = np.exp(-(distances(places) ** 2) / (2 * 0.5**2))
    np.testing.assert_allclose(features @ features.T, expected, atol=1e-7)


def test_points_too_far_apart_for_the_quadrature_are_refused():
    places = np.array([[0.0, 0.0], [0.0, 2.8], [2.7, 0.1]])
    cosines = gaussian_features(places) @ gaussian_features(places).T
    np.testing.assert_allclose(cosines, np.eye(3), atol=1e-6)
    with pytest.raises(ValueError, match=r"points spread over 2\.81, but 7 widths of 0\.4 are all"):
        gaussian_features(places * [1, 1.005])


def test_spirals_share_the_points_and_keep_apart():
    places, curve = spirals(301, curves=3, noise=0, rng=np.random.default_rng(1))
    assert np.bincount(curve).tolist() == [101, 100, 100]
    radius = np.linalg.norm(places, axis=1)
    assert 0.2 <= radius.min() < 0.25
    assert 0.95 < radius.max() <= 1
    apart = distances(places)
    assert apart[curve[:, None] != curve].min() > 0.15
    nearest = np.sort(np.where(curve[:, None] == curve, apart, np.inf), axis=1)[:, 1]
    assert nearest.max() < 0.1


@pytest.mark.parametrize("changes", [{}, {"seed": 1}, {"seed": 2, "curves": 2}])
def test_positives_go_on_along_the_curve_and_negatives_are_near_on_another(changes):
    mined = toy(**changes)
    apart = np.linalg.norm(mined.places - mined.places[mined.anchor], axis=1)
    own = mined.curve == mined.curve[mined.anchor]
    reach = apart[mined.euclidean(80)].max()
    assert len(mined.positives) > 20
    assert len(mined.negatives) > 20
    assert own[mined.positives].all()
    assert apart[mined.positives].min() > reach
    assert not own[mined.negatives].any()
    assert apart[mined.negatives].max() <= reach
    assert not own[mined.euclidean(80)].all()


@pytest.mark.parametrize("changes", [{}, {"noise": 0.06, "negative_k": 150, "anchor": 4}])
def test_the_sets_are_those_of_the_equations(changes):
    mined = toy(**changes)
    k, K = mined.positive_k, mined.negative_k
    by_distance = np.argsort(np.linalg.norm(mined.places - mined.places[mined.anchor], axis=1))
    by_manifold = np.argsort(-mined.similarity, kind="stable")
    others = by_manifold[:k][by_manifold[:k] != mined.anchor]
    assert mined.euclidean(k).tolist() == by_distance[1:k].tolist()
    assert mined.manifold.tolist() == others.tolist()
    positives = others[~np.isin(others, by_distance[:k])]
    negatives = by_distance[:K][~np.isin(by_distance[:K], by_manifold[:K])]
    assert mined.positives.tolist() == positives.tolist()
    assert mined.negatives.tolist() == negatives.tolist()


def test_the_anchor_is_the_most_important_unless_one_is_asked_for():
    mined = toy()
    assert mined.anchors.tolist() == select_anchors(mined.graph, 600).tolist()
    assert mined.anchor == mined.anchors[0]
    assert toy(anchor=17).anchor == 17


def test_counts_tell_true_from_false():
    mined = toy(noise=0.06, negative_k=150, anchor=4)
    row = dict(zip(*counts(mined), strict=True))
    own = mined.curve == mined.curve[4]
    assert row == {
        "anchor": "4",
        "NN^e": "79",
        "NN^m": "79",
        "P+": str(len(mined.positives)),
        "true P+": str(own[mined.positives].sum()),
        "P-": str(len(mined.negatives)),
        "true P-": str((~own[mined.negatives]).sum()),
    }
    assert 0 < own[mined.positives].mean() < 1  # noise leads astray: the figure says so


@pytest.mark.parametrize(
    ("kind", "start"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_same_seed_gives_the_same_picture(kind, start):
    small = {"points": 120, "graph_k": 6, "positive_k": 20, "negative_k": 30}
    first, again = (draw(toy(**small, seed=3), kind) for _ in range(2))
    assert first.startswith(start)
    assert first == again


def test_another_seed_gives_other_points(places):
    np.testing.assert_array_equal(toy().places, places)
    assert not np.isclose(toy(seed=1).places, places).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": 9}, "--points 9: give 10 to 10,000"),
        ({"points": 50}, "--positive-k 80: with 50 points, give 2 to 50"),
        ({"points": 100}, "--negative-k 80: with 100 points, give 2 to 50"),
        ({"graph_k": 601}, "--graph-k 601: with 600 points, give 2 to 600"),
        ({"graph_k": 1}, "--graph-k 1: "),
        ({"anchor": 600}, "--anchor 600: with 600 points, give 0 to 599"),
        ({"anchor": -1}, "--anchor -1: "),
        ({"curves": 1}, "--curves 1: with 600 points, give 2 to 6"),
        ({"noise": float("nan")}, "--noise nan: "),
        ({"seed": -1}, "--seed -1: "),
        ({"alpha": 1.0}, "--alpha 1.0: "),
    ],
)
def test_what_cannot_be_is_refused_by_its_flag(changes, words):
    with pytest.raises(InputError) as refused:
        toy(**changes)
    assert str(refused.value).startswith(words)


def test_a_point_without_an_edge_is_no_anchor(places):
    second = np.argsort(distances(places), axis=1)[:, 1]
    lonely = int(np.flatnonzero(second[second] != np.arange(600))[0])
    with pytest.raises(InputError, match=f"--anchor {lonely}: it has no edge"):
        toy(graph_k=2, anchor=lonely)
    with pytest.raises(InputError, match="--graph-k 2: no point is an anchor"):
        toy(graph_k=2)  # only pairs are linked, and the two of a pair tie


@pytest.mark.process
def test_the_job_draws_and_ends_with_the_table(tmp_path):
    output = tmp_path / "new" / "figure.png"
    ended = subprocess.run(
        [sys.executable, job.__file__, "--output", str(output)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (ended.returncode, ended.stderr) == (0, "")
    assert ended.stdout.splitlines() == [
        str(output),
        "| anchor | NN^e | NN^m | P+ | true P+ | P- | true P- |",
        "| -----: | ---: | ---: | -: | ------: | -: | ------: |",
        "|     86 |   79 |   79 | 41 |      41 | 41 |      41 |",
    ]
    with Image.open(output) as image:
        assert image.width > 2 * image.height > 1000


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("figure.jpg", "the name must end with .png, .svg or .pdf"),
        ("figure", "the name must end with"),
        ("file/figure.png", "cannot be written (NotADirectoryError: "),
        ("folder.png", "cannot be written (IsADirectoryError: Is a directory)"),
    ],
)
def test_an_unusable_output_ends_with_one_sentence_and_status_2(
    tmp_path, monkeypatch, capsys, name, words
):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder.png").mkdir()
    output = str(tmp_path / name)
    monkeypatch.setattr(sys, "argv", ["figure1.py", "--output", output])
    assert job.main() == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(f"error: --output {output}: {words}")
    assert (printed.err.count("\n"), printed.out) == (1, "")


def test_the_ending_may_be_in_capitals():
    assert image_format("s3://bucket/Figure.PNG") == "png"
