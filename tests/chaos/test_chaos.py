"""Two rounds of the chaos test; fifty are run by `python tests/chaos/run.py`."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.chaos.damage import KINDS, damage_newest

RUN = Path(__file__).with_name("run.py")


@pytest.mark.ray
@pytest.mark.process
@pytest.mark.slow
def test_runs_that_are_killed_stopped_and_damaged_end_as_if_nothing_had_been(tmp_path):
    done = subprocess.run(
        [sys.executable, RUN, "--rounds", "2", "--seed", "1", "--storage", tmp_path],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rounds = [json.loads((tmp_path / f"round-00{number}.json").read_text()) for number in (0, 1)]
    assert all(round_["lines"] and not round_["findings"] for round_ in rounds)
    assert "2 ended as the undisturbed run" in done.stdout


def test_damage_changes_one_file_and_leaves_those_of_the_tracker_alone(tmp_path):
    files = {name: tmp_path / name for name in ("mlflow.db", "mlartifacts/a", "s-1/x", "s-1/y")}
    for file in files.values():
        file.parent.mkdir(exist_ok=True)
    kinds = set()
    for seed in range(40):
        for file in files.values():
            file.write_bytes(bytes(range(1, 101)))
        said = damage_newest(tmp_path, np.random.default_rng(seed), tracker=False)
        (changed,) = [n for n, f in files.items() if f.read_bytes() != bytes(range(1, 101))]
        assert said.startswith(f"{changed} ")
        assert changed.startswith("s-1/")
        kinds.add(said.partition(" ")[2])
    assert kinds == set(KINDS)
    assert damage_newest(tmp_path, np.random.default_rng(0), tracker=True).startswith("ml")
