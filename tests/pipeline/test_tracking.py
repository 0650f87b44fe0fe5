"""The metrics of an epoch reach MLflow once, whoever logs them and however often."""

from collections import Counter

import mlflow
import pytest

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
        (name, step, value)
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


def test_a_server_that_lost_its_database_gets_a_new_run(run, storage, request):
    known = storage / "runs"
    write_json(known, f"{request.node.name}.json", {"uri": run.uri, "run_id": "0" * 32})
    other = opened(storage, request.node.name)
    assert other.run_id not in (run.run_id, "0" * 32)
