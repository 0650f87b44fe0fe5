"""Dry runs as a user types them: a table, and nothing is left behind."""

import numpy as np
import pytest

from tests.end_to_end.small_job import run_here
from tests.made.synthetic import clouds

pytestmark = pytest.mark.usefixtures("ray_cluster")


def rows_of(printed):
    return [line.split("|")[1].strip() for line in printed.splitlines() if line.startswith("|")]


def test_a_dry_run_of_mining_tells_of_its_features_or_of_more(tmp_path):
    np.save(tmp_path / "rows.npy", clouds(0, 5000, 16))
    given = ("--features", tmp_path / "rows.npy", "--storage", tmp_path / "runs", "--dry-run")
    told = run_here("mine", *given).succeeded.stdout
    head, _, *stages = rows_of(told)
    assert head == "5,000 items of 16 dimensions, GB"
    assert stages == ["knn", "graph", "mine"]
    assert "for shared objects are enough." in told
    more = ("--dry-run-items", 10**9, "--mining.memory", 1)
    told = run_here("mine", *given, *more).succeeded.stdout
    head, _, *stages = rows_of(told)
    assert head == "1,000,000,000 items of 16 dimensions, GB"
    assert stages[0].startswith("knn in ")
    assert "are too little." in told
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("job", ["retrieval", "finegrained"])
def test_a_dry_run_of_learning_tells_of_so_many_images(tmp_path, job):
    given = ("--storage", tmp_path / "runs", "--extraction.longest-side", 96, "--dry-run")
    if job == "retrieval":
        error = run_here(job, *given).error
        assert error == "error: --dry-run: say of how many images, with --dry-run-items 1000000"
    told = run_here(job, *given, "--dry-run-items", 100_000).succeeded.stdout
    head, _, *stages = rows_of(told)
    assert head.startswith("100,000 images, ")
    assert stages == ["extract", "knn", "graph", "mine", "check"]
    assert "Training keeps up to " in told
    assert not (tmp_path / "runs").exists()
