"""The supervised baseline as a user runs it: tuples of a file in, a marked network out."""

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.small_job import ONE, run_here, the_run
from tests.made import sfm

LABEL = "supervised (uses labels)"


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """A folder with ims/ and its tuples, and a labelled set in test/ and gt/."""
    folder = tmp_path_factory.mktemp("sfm")
    sfm.save_miniature(folder)
    rng = np.random.default_rng(1)
    for name in ("test", "gt"):
        (folder / name).mkdir()
    for index in range(6):
        pixels = rng.integers(0, 60, (48, 64, 3)) + 60 * (index % 2)
        Image.fromarray(pixels.astype(np.uint8)).save(folder / "test" / f"{index}.jpg")
    (folder / "gt" / "a_query.txt").write_text("0 0 0 64 48")
    for kind, names in (("good", "2\n4"), ("ok", ""), ("junk", "0")):
        (folder / "gt" / f"a_{kind}.txt").write_text(names)
    return folder


ARGUMENTS = (
    *("--tuples", "retrieval-SfM-tiny.pkl", "--images", "ims", "--storage", "runs"),
    *ONE,
    *("--network", "efficientnet_lite0", "--training.longest-side", 64, "--training.epochs", 1),
    *("--training.anchors-per-epoch", 8, "--training.negative-pool", 16),
    *("--whitening.images", 12, "--evaluation.longest-side", 64, "--evaluation.poolings", "mac"),
    *("--evaluation.images", "test", "--evaluation.ground-truth", "gt"),
)


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_it_trains_whitens_and_marks_what_used_labels(given, monkeypatch):
    monkeypatch.chdir(given)
    done = run_here("retrieval", *ARGUMENTS).succeeded
    assert f"tuples: {LABEL}: 36 pairs and 6 clusters of 24 images, from " in done.stderr
    assert f"train: {LABEL}: the network after epoch 1 is kept, the last one" in done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["initial"] * 3 + [LABEL] * 2
    assert [row.split("|")[3].strip() for row in rows[2:]] == ["none", "PCA", "LDA", "none", "LDA"]
    stages = {path.name.rpartition("-")[0] for path in (given / "runs").glob("*-*")}
    assert stages == {"tuples", "cache", "train", "extract", "whiten", "evaluate"}
    _, logged = the_run(f"sqlite:///{given / 'runs' / 'mlflow.db'}")
    assert logged.data.params["recipe"] == "supervised"
    assert logged.data.params["tuples"] == "retrieval-SfM-tiny.pkl"
    assert logged.data.metrics["system/tuples/pairs"] == 36
    assert logged.data.metrics["loss"] > 0
    assert logged.data.tags["mmray.comparison"] == LABEL
    assert LABEL in logged.data.tags["mlflow.note.content"]
    (page,) = (given / "runs" / "reports").glob("*.html")
    assert f"This is a comparison, not the method: {LABEL}." in page.read_text("utf-8")
    assert ">Training</h2>" in page.read_text("utf-8"), "the curve of its loss"


@pytest.mark.usefixtures("ray_cluster")
def test_an_image_that_is_missing_ends_with_one_sentence(given, tmp_path, monkeypatch):
    monkeypatch.chdir(given)
    (tmp_path / "ims").mkdir()
    elsewhere = ("--images", tmp_path / "ims", "--storage", tmp_path / "runs")
    sentence = run_here("retrieval", *ARGUMENTS, *elsewhere).error
    assert "missing, as are 24 of the 24 images of retrieval-SfM-tiny.pkl" in sentence
