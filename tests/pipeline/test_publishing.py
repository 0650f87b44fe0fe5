"""What every page says of its run, and runs within runs."""

import dataclasses
import re
import time
from pathlib import Path

import mlflow
import pytest
from pyarrow import fs

from mmray.config.run import identity_of
from mmray.config.tools import MineConfig
from mmray.pipeline.opening import nested
from mmray.pipeline.plan import Plan
from mmray.pipeline.recipes.publishing import write_report
from mmray.pipeline.reports.run_page import Report
from mmray.pipeline.session import Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.tracking import open_run
from mmray.system.folder import Folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A database for all, as making one takes seconds."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow') / 'mlflow.db'}"


@pytest.fixture
def session(tmp_path, server):
    return opened(tmp_path, server, "x.npy")


def opened(tmp_path, server, features):
    config = MineConfig(features=features, storage=str(tmp_path), tracking_uri=server)
    storage = Folder(str(tmp_path))
    run = open_run(
        storage,
        uri=server,
        experiment="pages",
        name="mine-0",
        identity="0",
        settings=identity_of(config),
    )
    return Session(config, storage, run, ("graph", "mine"))


def finished(session, name, mark, **counts):
    stage = StageFolder.of(session.storage, name, mark)
    stage.finish(counts)
    return stage


def test_a_page_has_the_times_and_settings_of_its_run(session, tmp_path):
    first, second = finished(session, "extract", 1), finished(session, "extract", 2)
    session.stages += [first, second, first, finished(session, "knn", 1)]
    write_report(session, Report(title="Mined"))
    page = (tmp_path / "reports" / "mine-0.html").read_text()
    assert "extract \N{MULTIPLICATION SIGN} 2</td>" in page, "one that was read twice counts once"
    assert "<td>knn</td>" in page
    assert "--mining.graph-k" in page
    assert "--storage" not in page
    (artifact,) = session.run.client.list_artifacts(session.run.run_id, "report")
    assert artifact.path == "report/mine-0.html"


def test_credentials_are_in_no_page_no_file_and_not_in_mlflow(tmp_path, server, capsys):
    source = "s3://KEY:SECRET@b/x.npy?region=r"
    session = opened(tmp_path, server, source)
    session.run.log_data("images", digest="d", sources=[source], rows=1)
    session.run_stage("list", source, work=lambda stage: {}, stage_flag="mine")
    (stage,) = tmp_path.glob("list-*")
    write_report(session, Report(title="Mined", summary=(f"Model: {source}, in a bucket",)))
    page = (tmp_path / "reports" / "mine-0.html").read_text()
    assert "Model: s3://***@b/x.npy?region=r, in a bucket" in page
    run = session.run.client.get_run(session.run.run_id)
    assert run.data.params["features"] == "s3://***@b/x.npy?region=r"
    assert "s3://***@b/x.npy" in run.inputs.dataset_inputs[0].dataset.source
    database = Path(server.removeprefix("sqlite:///"))
    for file in (database, *(path for path in tmp_path.rglob("*") if path.is_file())):
        assert b"SECRET" not in file.read_bytes(), file
    # Other credentials are the same run, and the same stage.
    other = opened(tmp_path, server, source.replace("SECRET", "OTHER"))
    assert identity_of(other.config) == identity_of(session.config)
    other.run_stage(
        "list", source.replace("SECRET", "OTHER"), work=lambda stage: {}, stage_flag="mine"
    )
    assert list(tmp_path.glob("list-*")) == [stage]
    assert "SECRET" not in capsys.readouterr().err


def test_mlflow_is_told_no_credentials_of_the_storage(server, s3):
    bucket = fs.FileSystem.from_uri(f"s3://test:test@runs{s3}&allow_bucket_creation=true")[0]
    bucket.create_dir("runs")
    storage = Folder(f"s3://KEY:SECRET@runs/x{s3}")
    run = open_run(storage, uri=server, experiment="e", name="n", identity="0", settings={})
    tag = run.client.get_run(run.run_id).data.tags["mmray.storage"]
    assert tag.startswith("s3://%2A%2A%2A%40runs/x%3Fscheme")


def test_a_page_tells_what_was_left_out_when_the_images_were_listed(session, tmp_path):
    counts = {".mov": 1312, ".cr2": 4, "hidden folder": 2}
    listed = finished(session, "list", 1, left_out=counts)
    of_an_earlier_version = finished(session, "list", 2, images=9)
    session.stages += [listed, of_an_earlier_version, listed]
    write_report(session, Report(title="Mined", summary=("Model: here",)))
    page = (tmp_path / "reports" / "mine-0.html").read_text()
    rows = re.findall(r"<tr><td>([^<]*)</td><td class=\"number\">([^<]*)</td>", page)
    assert rows == [(".mov", "1,312"), (".cr2", "4"), ("hidden folder", "2")]


def test_a_page_tells_which_stages_were_read_from_before(session, tmp_path):
    def work(stage):
        return {}

    for job in range(2):
        again = Session(session.config, session.storage, session.run, session.chosen)
        for number in range(2 + job):  # the second job has a stage of its own
            again.run_stage("extract", number, work=work, stage_flag="mine")
        again.run_stage("extract", 0, work=work, stage_flag="mine")  # is read, and counts once
        write_report(again, Report(title="Mined"))
        page = (tmp_path / "reports" / "mine-0.html").read_text()
        assert ("2 of 3 read from before" if job else "made now") in page


def test_the_time_of_a_stage_is_not_that_of_stages_within_it(session):
    def slow(stage):
        time.sleep(0.5)
        return {}

    def outer(stage):
        session.run_stage("first", work=slow, stage_flag="mine")
        session.run_stage("second", work=slow, stage_flag="mine")
        session.run_stage("first", work=slow, stage_flag="mine")  # is read
        time.sleep(0.1)
        return {}

    whole = session.run_stage("outer", work=outer, stage_flag="mine")
    assert [stage.name for stage in session.stages] == ["first", "second", "first", "outer"]
    assert all(stage.seconds >= 0.5 for stage in session.stages[:2])
    assert 0.1 <= whole.seconds < 0.9, "its own 0.1 s, and what files and MLflow take"
    assert session.run_stage("next", work=slow, stage_flag="mine").seconds >= 0.5


def test_a_run_that_was_to_end_sooner_has_a_page_of_its_own(session, tmp_path):
    write_report(session, Report(title="whole"))
    write_report(session, Report(title="part"), part="mine")
    pages = {path.name: path.read_text() for path in (tmp_path / "reports").iterdir()}
    assert set(pages) == {"mine-0.html", "mine-0-to-mine.html"}
    assert "<h1>whole</h1>" in pages["mine-0.html"]


def test_runs_within_runs_are_told_apart_by_their_names_and_go_on(session):
    def opened(outer, name, config=session.config):
        with nested(outer, config, outer.chosen, Plan(), name=name) as inner:
            assert inner.run in session.open_runs, "which a SIGTERM would end"
            deepest = None
            if outer is session:
                deepest = opened(inner, "deeper")
            return inner.run, deepest

    first, deeper = opened(session, "round 1")
    second, _ = opened(session, "round 2")
    assert opened(session, "round 1")[0].run_id == first.run_id, "the same goes on"
    other = dataclasses.replace(session.config, seed=1)
    assert len({first.run_id, second.run_id, opened(session, "round 1", other)[0].run_id}) == 3
    assert session.open_runs == []
    client = mlflow.MlflowClient(session.run.uri)
    known = client.get_run(first.run_id)
    assert known.info.run_name == "round 1"
    assert known.info.status == "FINISHED"
    assert known.data.tags["mlflow.parentRunId"] == session.run.run_id
    assert client.get_run(deeper[0].run_id).data.tags["mlflow.parentRunId"] == first.run_id
