"""MLflow's database: whole or not there, under any name of its folder, and after a move."""

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import mlflow
import pytest
from mlflow.tracking._tracking_service import utils

from mmray.pipeline.database import database_path, database_uri, main, make_ready
from mmray.pipeline.tracking import default_uri, open_run
from mmray.system.errors import InputError
from mmray.system.folder import Folder

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "a b",
    "q?x=1",
    "h#h",
    "p%41",
    "%3F",
    "o'b\"c",
    "é@b:c",
    "$x;&",
    "\n",
    "100%",
    "u?uri=true",
]


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> bytes:
    """Content of a new database."""
    path = tmp_path_factory.mktemp("made") / "mlflow.db"
    make_ready(path)
    return path.read_bytes()


def opened(folder):
    """A run as another process opens it, which does not know yet where its artifacts are."""
    utils._artifact_repos_cache.clear()
    storage = Folder(str(folder))
    options = {"experiment": "e", "name": "n", "identity": "i", "settings": {"a": 1}}
    return open_run(storage, uri=default_uri(storage), **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_folder_of_any_name_keeps_its_database_and_artifacts_inside_it(name, made, tmp_path):
    storage = tmp_path / name / "runs"
    storage.mkdir(parents=True)
    (storage / "mlflow.db").write_bytes(made)
    run = opened(storage)
    assert database_path(run.uri) == storage / "mlflow.db"
    run.log_text("a.txt", "content")
    place = f"runs:/{run.run_id}/a.txt"
    read = mlflow.artifacts.download_artifacts(artifact_uri=place, tracking_uri=run.uri)
    assert Path(read).read_text() == "content"
    (kept,) = (storage / "mlartifacts").rglob("a.txt")
    assert kept.read_text() == "content"
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert {path.name for path in storage.iterdir()} == {"mlflow.db", "mlartifacts", "runs"}


def test_an_ordinary_path_stands_in_the_uri_as_it_is():
    assert database_uri(Path("/data/my runs/mlflow.db")) == "sqlite:////data/my runs/mlflow.db"
    for uri in ("http://mlflow:5000", "sqlite://", "sqlite:///:memory:", "sqlite:///a?uri=true"):
        assert database_path(uri) is None


def test_a_new_database_has_a_first_experiment_beside_it(tmp_path):
    make_ready(tmp_path / "new" / "mlflow.db")
    (found,) = mlflow.MlflowClient(
        database_uri(tmp_path / "new" / "mlflow.db")
    ).search_experiments()
    assert found.artifact_location == (tmp_path / "new" / "mlartifacts" / "0").as_uri()


@pytest.mark.parametrize(
    ("content", "set_aside"),
    [
        ("", False),
        ("CREATE TABLE experiments (name)", True),
        ("CREATE TABLE alembic_version (version_num)", True),
    ],
)
def test_a_database_that_was_never_finished_is_made_anew(content, set_aside, tmp_path):
    """Make a database like one left by an earlier version that was killed in a migration."""
    path = tmp_path / "mlflow.db"
    path.touch()
    if content:
        with closing(sqlite3.connect(path)) as database, database:
            database.execute(content)
    opened(tmp_path).log_metrics({"a": 1.0})
    assert (tmp_path / "mlflow.db.damaged").exists() == set_aside


def test_rows_of_a_finished_database_are_never_set_aside(tmp_path):
    run = opened(tmp_path)
    make_ready(tmp_path / "mlflow.db")
    assert run.client.get_run(run.run_id).data.params == {"a": "1"}
    assert not (tmp_path / "mlflow.db.damaged").exists()


@pytest.mark.parametrize("damage", ["garbage", "cut off", "overwritten"])
def test_a_damaged_database_is_said_in_a_sentence_and_kept(damage, made, tmp_path):
    content = {
        "garbage": b"no database" * 1000,
        "cut off": made[:5000],
        "overwritten": made[:4096] + bytes(len(made) - 4096),
    }[damage]
    path = tmp_path / "mlflow.db"
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"^{path}: MLflow's database is damaged .*restore it"):
        opened(tmp_path)
    assert path.read_bytes() == content


def test_a_database_that_cannot_be_written_is_said_in_a_sentence(tmp_path):
    (tmp_path / "mlflow.db").mkdir()
    with pytest.raises(InputError, match=r"database cannot be used \(unable to open"):
        opened(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"database cannot be used \(Not a directory|exists"):
        make_ready(tmp_path / "file" / "mlflow.db")


def test_a_moved_storage_finds_its_artifacts_and_goes_on_with_its_run(tmp_path):
    old, new = tmp_path / "a?b" / "runs", tmp_path / "c%41" / "runs"
    run = opened(old)
    run.log_text("a.txt", "old")
    new.parent.mkdir()
    shutil.move(old, new)
    again = opened(new)
    assert again.run_id == run.run_id
    again.log_text("b.txt", "new")
    assert {each.path for each in again.client.list_artifacts(run.run_id)} == {"a.txt", "b.txt"}
    assert not old.exists()
    with closing(sqlite3.connect(new / "mlflow.db")) as database:
        dump = "\n".join(database.iterdump())
    assert (tmp_path / "a?b").as_uri() not in dump


def test_a_copied_storage_uses_its_own_artifacts_and_leaves_the_first_alone(tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    run = opened(first)
    run.log_text("a.txt", "both")
    shutil.copytree(first, second)
    opened(second).log_text("a.txt", "second")
    (kept,) = (first / "mlartifacts").rglob("a.txt")
    assert kept.read_text() == "both"
    content = (first / "mlflow.db").read_bytes()
    opened(first)
    place = run.client.get_run(run.run_id).info.artifact_uri
    assert place.startswith((first / "mlartifacts").as_uri())
    assert len(content) == (first / "mlflow.db").stat().st_size


def test_artifacts_that_stayed_where_they_were_are_still_found_there(tmp_path):
    """Only the database was copied, or another storage keeps its runs in it."""
    first, second = tmp_path / "first", tmp_path / "second"
    run = opened(first)
    run.log_text("a.txt", "there")
    (second / "mlartifacts").mkdir(parents=True)
    shutil.copy(first / "mlflow.db", second)
    make_ready(second / "mlflow.db")
    client = mlflow.MlflowClient(database_uri(second / "mlflow.db"))
    assert client.get_run(run.run_id).info.artifact_uri.startswith((first / "mlartifacts").as_uri())


def test_a_storage_by_another_path_to_it_is_not_a_moved_one(tmp_path):
    run = opened(tmp_path / "runs")
    run.log_text("a.txt", "there")
    (tmp_path / "link").symlink_to(tmp_path / "runs")
    assert opened(tmp_path / "link").run_id == run.run_id
    place = run.client.get_run(run.run_id).info.artifact_uri
    assert place.startswith((tmp_path / "runs").as_uri())


CHILD = """
import sys
from mmray.pipeline.tracking import default_uri, open_run
from mmray.system.folder import Folder
for folder in sys.argv[2:]:
    print("ready", flush=True)
    sys.stdin.readline()
    storage = Folder(folder)
    options = {"uri": default_uri(storage), "experiment": "e", "name": "n", "settings": {}}
    run = open_run(storage, identity=sys.argv[1], **options)
    run.log_metrics({"a": 1.0})
    print(run.run_id, flush=True)
"""


@pytest.mark.slow
@pytest.mark.process
def test_two_jobs_that_begin_at_once_on_a_new_storage_both_run(tmp_path):
    folders = [tmp_path / str(number) for number in range(5)]
    for folder in folders:
        folder.mkdir()
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    command = [sys.executable, "-W", "ignore", "-c", CHILD]
    jobs = [
        subprocess.Popen([*command, name, *folders], text=True, cwd=ROOT, **options)
        for name in ("first", "second")
    ]
    for folder in folders:
        assert [job.stdout.readline() for job in jobs] == ["ready\n"] * 2, jobs[0].stderr
        for job in jobs:
            job.stdin.write("\n")
            job.stdin.flush()
        known = {job.stdout.readline().strip() for job in jobs}
        client = mlflow.MlflowClient(database_uri(folder / "mlflow.db"))
        found = client.search_runs([client.get_experiment_by_name("e").experiment_id])
        assert {run.info.run_id for run in found} == known
        assert all(run.data.metrics == {"a": 1.0} for run in found)
        assert not [*folder.glob("*.damaged")]
    for job in jobs:
        assert job.wait() == 0


# make


def lines(*arguments):
    command = ["make", "-n", "-o", "install", *arguments, f"PYTHON={sys.executable}"]
    # Within `make test` it would say which folder it enters, and take that one's ARGS.
    alone = {
        key: text
        for key, text in os.environ.items()
        if not re.match("MAKE|MFLAGS|ARGS$|STORAGE$|PORT$", key)
    }
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=alone)
    return [shlex.split(line) for line in done.stdout.splitlines()]


@pytest.mark.process
@pytest.mark.parametrize("name", ["my runs", "q?#%41", "it's", 'a"$x', "~/runs"])
def test_make_takes_a_storage_of_any_name_as_one_word_and_another_port(name, capsys):
    command, run = "--backend-store-uri", lines("retrieval", f"STORAGE={name}")[0]
    assert run[run.index("--storage") + 1 :] == [name]
    ui = next(line for line in lines("ui", f"STORAGE={name}", "PORT=5001") if command in line)
    assert ui[ui.index("--port") + 1] == "5001"
    (uri,) = ui[ui.index(command) + 1 :]
    folder = Path(re.sub("^~", str(Path.home()), name))
    assert database_path(uri) == ROOT / folder / "mlflow.db"
    assert main([str(ROOT / folder)]) == 0
    assert capsys.readouterr().out == f"{uri}\n"


def test_the_interface_is_not_started_on_a_damaged_database(tmp_path, capsys):
    (tmp_path / "mlflow.db").write_bytes(b"no database" * 1000)
    assert main(["--ready", str(tmp_path)]) == 2
    assert "MLflow's database is damaged" in capsys.readouterr().err
