"""The supervised baseline as a user runs it: tuples of a file in, a marked network out."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.small_job import the_run
from tests.made import sfm

ROOT = Path(__file__).resolve().parents[2]
LABEL = "supervised (uses labels)"


def run(folder, *arguments, env=None):
    command = [sys.executable, str(ROOT / "jobs" / "retrieval.py"), *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env=env)


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
    *("--network", "efficientnet_lite0", "--training.longest-side", 64, "--training.epochs", 1),
    *("--training.anchors-per-epoch", 8, "--training.negative-pool", 16),
    *("--whitening.images", 12, "--evaluation.longest-side", 64, "--evaluation.poolings", "mac"),
    *("--evaluation.images", "test", "--evaluation.ground-truth", "gt"),
)


def test_it_trains_whitens_and_marks_what_used_labels(given, on_cluster):
    done = run(given, *ARGUMENTS, env=on_cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"tuples: {LABEL}: 36 pairs and 6 clusters of 24 images, from " in done.stderr
    assert f"train: {LABEL}: the network after epoch 1 is kept, the last one" in done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("|")]
    assert [row.split("|")[2].strip() for row in rows[2:]] == ["initial"] * 2 + [LABEL] * 2
    assert [row.split("|")[3].strip() for row in rows[2:]] == ["none", "PCA", "none", "LDA"]
    stages = {path.name.rpartition("-")[0] for path in (given / "runs").glob("*-*")}
    assert stages == {"tuples", "cache", "train", "extract", "whiten", "evaluate"}
    _, logged = the_run(f"sqlite:///{given / 'runs' / 'mlflow.db'}")
    assert logged.data.params["recipe"] == "supervised"
    assert logged.data.params["tuples"] == "retrieval-SfM-tiny.pkl"
    assert logged.data.metrics["tuples/pairs"] == 36
    assert logged.data.metrics["loss"] > 0
    assert logged.data.tags["mmray.pipeline.recipes.comparison"] == LABEL
    assert LABEL in logged.data.tags["mlflow.note.content"]
    (page,) = (given / "runs" / "reports").glob("*.html")
    assert f"This is a comparison, not the method: {LABEL}." in page.read_text("utf-8")
    assert ">Training</h2>" in page.read_text("utf-8"), "the curve of its loss"


def test_an_image_that_is_missing_ends_with_one_sentence(given, tmp_path):
    (tmp_path / "ims").mkdir()
    done = run(given, *ARGUMENTS, "--images", tmp_path / "ims", "--storage", tmp_path / "runs")
    assert done.returncode == 2, done.stdout + done.stderr
    assert "missing, as are 24 of the 24 images of retrieval-SfM-tiny.pkl" in done.stderr
    assert "Traceback" not in done.stderr
