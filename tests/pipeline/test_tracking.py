"""The metrics of an epoch reach MLflow once; limits of MLflow end no run, and faults say why."""

import json
import os
import shutil
import socket
import sqlite3
import time
from collections import Counter

import mlflow
import pytest

from mmray.pipeline import tracking, tracking_server
from mmray.pipeline.metric_names import of_epoch
from mmray.pipeline.tracking import Run, default_uri, open_run
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.formats import write_json

HISTORY = [
    {"manifold_map": 0.5, "map": 0.4},
    {"manifold_map": 0.6, "loss": 1.5},
    {"manifold_map": 0.55, "map": 0.45, "loss": 1.25},
]


@pytest.fixture(scope="module")
def storage(tmp_path_factory):
    """One database for all tests: to create one takes a second."""
    return Folder(str(tmp_path_factory.mktemp("store")))


def opened(storage, identity):
    return open_run(
        storage,
        uri=default_uri(storage),
        experiment="tests",
        name="vgg16",
        identity=identity,
        settings={"network": "vgg16"},
    )


@pytest.fixture
def run(storage, request):
    return opened(storage, request.node.name)


def logged(run):
    """How often each (name, step, value) is in the store."""
    client = mlflow.MlflowClient(run.uri)
    names = client.get_run(run.run_id).data.metrics
    entries = [entry for name in names for entry in client.get_metric_history(run.run_id, name)]
    return Counter((entry.key, entry.step, entry.value) for entry in entries)


def once(history):
    return Counter(
        (of_epoch(name), step, value)
        for step, metrics in enumerate(history)
        for name, value in metrics.items()
    )


def test_an_epoch_is_logged_once_though_the_history_is_given_again(run):
    for length in (1, 2, 2, 3, 3):
        run.log_epochs(HISTORY[:length])
        assert logged(run) == once(HISTORY[:length])


def test_epochs_that_an_earlier_process_did_not_log_are_made_up_for(run):
    run.log_epochs(HISTORY[:1])
    Run(run.uri, run.run_id).log_epochs(HISTORY)
    assert logged(run) == once(HISTORY)


def test_an_epoch_is_known_by_any_of_its_metrics(run):
    """An epoch without a metric that the others have is no gap."""
    run.log_epochs(HISTORY[:2])
    run.log_epochs([HISTORY[0], {"loss": 1.5, "manifold_map": 0.6}, HISTORY[2]])
    assert logged(run) == once(HISTORY)


def test_metrics_of_other_names_at_the_same_steps_are_no_epochs(run):
    run.log_metrics({"train/loss": 7.0}, step=1)
    run.log_epochs(HISTORY)
    assert logged(run) == once(HISTORY) + Counter([("train/loss", 1, 7.0)])


def test_epochs_that_an_earlier_version_logged_under_other_names_are_not_logged_again(run):
    run.log_metrics({"map": 0.4, "spread": 0.9}, step=0)
    history = [{"map": 0.4, "spread": 0.9}, {"map": 0.5, "spread": 0.8}]
    run.log_epochs(history)
    before = Counter([("map", 0, 0.4), ("spread", 0, 0.9)])
    assert logged(run) == before + Counter([("train/mAP", 1, 0.5), ("train/spread", 1, 0.8)])


def test_an_empty_history_logs_nothing(run):
    run.log_epochs([])
    assert logged(run) == Counter()


def test_an_epoch_goes_in_whole_or_not_at_all(run):
    """What MLflow refuses is said with the remedy, and the same history completes it later."""
    with pytest.raises(InputError, match=r"cannot be written \(.*run the same command again"):
        run.log_epochs([HISTORY[0], HISTORY[1] | {"no:such/na?me": 1.0}])
    assert logged(run) == once(HISTORY[:1])
    run.log_epochs(HISTORY)
    assert logged(run) == once(HISTORY)


def test_a_run_goes_on_under_its_identity_and_one_that_was_deleted_does_not(run, storage, request):
    run.end("KILLED")
    client = mlflow.MlflowClient(run.uri)
    assert opened(storage, request.node.name) == run
    assert client.get_run(run.run_id).info.status == "RUNNING"
    client.delete_run(run.run_id)
    other = opened(storage, request.node.name)
    assert other.run_id != run.run_id
    assert opened(storage, request.node.name) == other


@pytest.mark.parametrize(
    "content", [None, b"", b"[]", b'{"run_id": ', b'{"run_id": "0123"}', b"{}"]
)
def test_a_run_is_found_though_the_note_of_it_is_lost_or_damaged(storage, request, content):
    """A job was killed before it wrote the note, or a power cut cut it off."""
    identity = request.node.name.partition("[")[0]
    run, note = opened(storage, identity), storage.local / "runs" / f"{identity}.json"
    note.unlink() if content is None else note.write_bytes(content)
    assert opened(storage, identity) == run
    noted = json.loads(note.read_text())
    assert noted == {"run_id": run.run_id, "uri": run.uri, "stages": None}, "which it used is lost"


def test_runs_of_the_same_settings_in_two_storages_of_one_server_are_two(
    storage, request, tmp_path
):
    options = {"uri": default_uri(storage), "experiment": "tests", "name": "vgg16", "settings": {}}
    others = [Folder(str(tmp_path / name)) for name in ("it's", "b")]
    runs = [open_run(other, identity=request.node.name, **options) for other in others]
    (others[0].local / "runs" / f"{request.node.name}.json").unlink()
    assert open_run(others[0], identity=request.node.name, **options) == runs[0] != runs[1]


def test_a_server_that_lost_its_database_gets_a_new_run(storage, request, tmp_path):
    identity = request.node.name
    options = {"uri": default_uri(storage), "experiment": "tests", "name": "vgg16", "settings": {}}
    other = Folder(str(tmp_path))
    write_json(other / "runs", f"{identity}.json", {"run_id": "0" * 32})
    run = open_run(other, identity=identity, **options)
    assert run.run_id != "0" * 32
    assert open_run(other, identity=identity, **options) == run


# Limits of MLflow


def test_the_link_of_a_run_is_its_address_or_the_command_that_serves_it(run):
    server = tracking_server.run_page("https://u:pw@host:5000/", "7", "ab")
    assert server.endswith("@host:5000/#/experiments/7/runs/ab")
    assert "pw" not in server
    told = tracking_server.run_page("sqlite:////my runs/mlflow.db", run.experiment_id, run.run_id)
    assert "mlflow ui --backend-store-uri 'sqlite:////my runs/mlflow.db' and open http" in told
    assert told.endswith(f"/#/experiments/{run.experiment_id}/runs/{run.run_id}")
    assert run.client.get_run(run.run_id).info.experiment_id == run.experiment_id


def test_any_number_of_sources_of_any_names_is_logged(run):
    many = [f"/a folder of photos/photograph-{number:06d}.jpg" for number in range(3000)]
    for digest, sources in (
        ("a", many),
        ("b", ["\N{GRINNING FACE}" * 9000] * 3),
        ("c", ["\udce9"]),
    ):
        run.log_data("images", digest=digest, sources=sources, rows=len(sources))
    inputs = run.client.get_run(run.run_id).inputs.dataset_inputs
    named = {each.dataset.digest: json.loads(each.dataset.source)["uri"] for each in inputs}
    shown, _, count = named["a"].rpartition(" and ")
    number = int(count.removesuffix(" more"))
    assert 0 < number < 3000
    assert shown == " ".join(many[: 3000 - number])
    assert len(named["b"]) > 1000
    assert named["c"] == "\\udce9"


def test_settings_of_any_length_number_and_encoding_are_parameters(storage):
    settings = {f"k{number}": number for number in range(250)} | {
        "long": "x" * 9000,
        "bytes": "a\udce9b",
        "empty": "",
    }
    options = {"uri": default_uri(storage), "experiment": "tests", "identity": "many"}
    run = open_run(storage, name="n" * 1000, settings=settings, **options)
    params = run.client.get_run(run.run_id).data.params
    assert params == {key: str(value) for key, value in settings.items()} | {
        "long": "x" * 6000,
        "bytes": "a\\udce9b",
    }


def test_metrics_of_any_names_are_logged(run):
    names = ["C&A?", "../up", "a//b", "/root", "end/", "", ".", "\u00e9/" + "x" * 400, "map/at 1:2"]
    run.log_metrics(dict.fromkeys(names, 1.0))
    logged = run.client.get_run(run.run_id).data.metrics
    assert {"C_A_", "up", "a/b", "root", "end", "_", "map/at 1:2"} < set(logged)
    assert len(logged) == 8


def test_parameters_that_a_killed_job_did_not_log_are_made_up_for(storage, request):
    options = {
        "uri": default_uri(storage),
        "experiment": "tests",
        "identity": "killed",
        "name": "n",
    }
    first = open_run(storage, settings={"a": 1}, **options)
    again = open_run(storage, settings={"a": 1, "b": 2}, **options)
    assert again == first
    assert first.client.get_run(first.run_id).data.params == {"a": "1", "b": "2"}


# Faults of MLflow


def test_a_deleted_experiment_is_to_be_restored_or_another_named(storage):
    options = {"name": "n", "settings": {}, "uri": default_uri(storage), "identity": "deleted"}
    run = open_run(storage, experiment="deleted", **options)
    (number,) = {run.client.get_run(run.run_id).info.experiment_id}
    run.client.delete_experiment(number)
    with pytest.raises(InputError) as caught:
        open_run(storage, experiment="deleted", **options)
    said = str(caught.value)
    assert said.startswith("--experiment deleted: it was deleted in MLflow; restore it (")
    assert f"restore --experiment-id {number}" in said
    assert "start the server" not in said
    run.client.restore_experiment(number)
    assert open_run(storage, experiment="deleted", **options) == run


@pytest.mark.parametrize("name", ["", "x" * 600])
def test_a_name_that_mlflow_does_not_take_for_an_experiment_is_refused(storage, name):
    options = {"name": "n", "settings": {}, "uri": default_uri(storage), "identity": "named"}
    with pytest.raises(InputError, match=r"^--experiment .*does not take this name .*another"):
        open_run(storage, experiment=name, **options)


@pytest.fixture
def hangs():
    """A server that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize(
    "uri", ["http://127.0.0.1:9", "foo://server", "mysql+pymysql://x", "http://127.0.0.1:x"]
)
def test_a_server_that_cannot_be_used_is_said_at_once(uri, tmp_path):
    started = time.monotonic()
    options = {"experiment": "e", "name": "n", "identity": "i", "settings": {}}
    with pytest.raises(InputError, match=r"^--tracking-uri .*: MLflow cannot be used there \("):
        open_run(Folder(str(tmp_path)), uri=uri, **options)
    assert time.monotonic() - started < 20


def test_a_server_that_hangs_is_not_waited_for(hangs, tmp_path, monkeypatch):
    asked = tracking_server.wait_for_server
    monkeypatch.setattr(tracking_server, "wait_for_server", lambda retries, timeout: asked(0, 1))
    options = {"experiment": "e", "name": "n", "identity": "i", "settings": {}}
    with pytest.raises(InputError, match=r"MLflow cannot be used there \(.*timed? ?out"):
        open_run(Folder(str(tmp_path)), uri=hangs, **options)


def test_a_server_is_asked_briefly_at_first_and_then_longer(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "")
    monkeypatch.setattr(tracking_server, "_OURS", ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"])
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    with tracking_server.waiting_briefly():
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "5"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77", "a user's own stays"


def test_a_server_that_is_gone_in_the_middle_is_said_and_the_run_goes_on_later(tmp_path):
    """Here the database is taken away; what a server cannot do looks the same to the run."""
    storage = Folder(str(tmp_path))
    options = {"experiment": "e", "name": "n", "identity": "i", "settings": {}}
    run = open_run(storage, uri=default_uri(storage), **options)
    run.log_metrics({"a": 1.0})
    content = (tmp_path / "mlflow.db").read_bytes()
    with sqlite3.connect(tmp_path / "mlflow.db") as database:
        database.execute("DROP TABLE metrics")
    database.close()
    for log in (lambda: run.log_metrics({"b": 2.0}), lambda: run.log_epochs(HISTORY)):
        with pytest.raises(
            InputError, match=r"^MLflow at .* cannot be written .*same command again"
        ):
            log()
    (tmp_path / "mlflow.db").write_bytes(content)
    again = open_run(storage, uri=default_uri(storage), **options)
    assert again == run
    again.log_epochs(HISTORY)
    assert logged(again) == once(HISTORY) + Counter([("a", 0, 1.0)])


def test_artifacts_that_cannot_be_written_are_said_in_a_sentence(tmp_path):
    storage = Folder(str(tmp_path))
    options = {"experiment": "e", "name": "n", "identity": "i", "settings": {}}
    run = open_run(storage, uri=default_uri(storage), **options)
    shutil.rmtree(tmp_path / "mlartifacts", ignore_errors=True)
    (tmp_path / "mlartifacts").touch()
    with pytest.raises(InputError, match=r"^MLflow at .* cannot be written .*same command again"):
        run.log_text("a.txt", "text")


def test_a_run_is_finished_where_a_job_of_this_version_ended_it_so(storage, monkeypatch):
    options = {"experiment": "e", "name": "n", "identity": "finished", "settings": {}}

    def opened():
        return open_run(storage, uri=default_uri(storage), **options)

    assert not opened().finished_before
    for status in ("KILLED", "FAILED", "FINISHED"):
        opened().end(status)
        again = opened()  # which runs now
        assert again.finished_before == (status == "FINISHED")
        assert again.client.get_run(again.run_id).info.status == "RUNNING"
    assert not opened().finished_before, "the job before was cut off"
    opened().end("FINISHED")
    monkeypatch.setattr(tracking, "__version__", "99")
    assert not opened().finished_before
    opened().end("FINISHED")
    assert opened().finished_before
