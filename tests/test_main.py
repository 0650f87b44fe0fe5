"""The command `mmray` runs every job by its name."""

import signal
import sys
import time

import numpy as np
import pytest

from mmray.__main__ import JOBS, main
from mmray.pipeline.database import database_uri, make_ready


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmray"])


def test_every_job_has_a_line_of_help(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(JOBS)
    assert all(len(line) > 30 for line in lines[2:])
    assert main([]) == 0


def test_a_job_that_does_not_exist_is_named(capsys):
    assert main(["minw"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: no job 'minw'" in told.err
    assert "{retrieval,finegrained,mine," in told.err


@pytest.mark.parametrize("name", [name for name in JOBS if name != "benchmark"])
def test_the_help_of_a_job_is_that_of_the_command(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mmray {name} ")


def test_a_job_ends_with_its_status(tmp_path, capsys):
    assert main(["figure1", "--output", str(tmp_path / "figure.jpg")]) == 2
    assert "error: --output" in capsys.readouterr().err


def _damaged(path):
    path.write_bytes(b"no database" * 1000)


def _without_its_experiment(path):
    import mlflow

    make_ready(path)
    client = mlflow.MlflowClient(database_uri(path))
    client.delete_experiment(client.create_experiment("mmray"))


@pytest.mark.parametrize(
    ("before", "flags", "said"),
    [
        (_damaged, (), "mlflow.db: MLflow's database is damaged (file is not a database); restore"),
        (_without_its_experiment, (), "--experiment mmray: it was deleted in MLflow; restore it"),
        (None, ("--tracking-uri", "http://127.0.0.1:9"), "MLflow cannot be used there (NewConn"),
    ],
)
def test_a_tracker_that_cannot_be_used_ends_a_job_with_a_sentence(
    before, flags, said, tmp_path, capsys
):
    """Before it starts Ray, and within 20 seconds."""
    storage, features = tmp_path / "my runs?", tmp_path / "rows.npy"
    storage.mkdir()
    np.save(features, np.eye(20, dtype=np.float32))
    if before is not None:
        before(storage / "mlflow.db")
    handler, started = signal.getsignal(signal.SIGTERM), time.monotonic()
    try:
        given = ["--features", str(features), "--storage", str(storage), *flags]
        assert main(["mine", *given]) == 2
    finally:
        signal.signal(signal.SIGTERM, handler)
    assert time.monotonic() - started < 20
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert said in line
