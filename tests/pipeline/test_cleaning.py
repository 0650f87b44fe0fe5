"""Only what no run and no index needs is removed."""

import dataclasses
import json

import mlflow
import pytest

from mmray.config.presets import DEMO
from mmray.config.tools import CleanConfig
from mmray.pipeline.notes import Note, note_stages, notes, read_note, write_note
from mmray.pipeline.opening import nested, running
from mmray.pipeline.plan import Plan
from mmray.pipeline.recipes import cleaning
from mmray.pipeline.session import Session
from mmray.system.errors import InputError
from mmray.system.folder import Folder


@pytest.fixture
def storage(tmp_path):
    return Folder(str(tmp_path))


def job(storage, seed, *stages, fails=False, experiment="mmray"):
    """Run the stages that are named, with 1000 bytes each, in a run of its own; return its id."""
    settings = {"storage": storage.uri, "seed": seed, "experiment": experiment}
    config = dataclasses.replace(DEMO, **settings)
    with running(config, storage, ("extract", "mine")) as session:
        for name in stages:
            made(session, name)
        if fails:
            raise KeyboardInterrupt
        return session.run.run_id


def made(session: Session, name: str):
    def work(stage):
        stage.folder.write("data", bytes(1000))
        return {}

    return session.run_stage(*name.split("-"), work=work, stage_flag="mine")


def folders(storage):
    return sorted(name.rpartition("-")[0] for name in storage.folders() if "-" in name)


def clean(storage, **options):
    return cleaning.run(CleanConfig(storage=storage.uri, **options))


def client(storage):
    return mlflow.MlflowClient(f"sqlite:///{storage.local / 'mlflow.db'}")


def test_what_only_a_deleted_run_used_is_removed(storage):
    job(storage, 1, "extract-a", "mine-a")
    second = job(storage, 2, "extract-a", "mine-b", "mine-c")
    assert clean(storage)[0] == []
    client(storage).delete_run(second)
    rows, summary = clean(storage, dry_run=True)
    assert [row[:2] for row in rows] == [["mine", "2"]]
    assert summary.startswith(
        "2 folders, 0.0 MB would be removed; 1 runs and 0 indexes keep 0.0 MB"
    )
    assert folders(storage) == ["extract", "mine", "mine", "mine"]
    assert clean(storage)[0] == rows
    assert folders(storage) == ["extract", "mine"]
    assert len(list(notes(storage))) == 1
    assert clean(storage)[0] == []


def test_who_shares_a_storage_has_runs_of_their_own_of_the_same_stages(storage):
    alice, bob = (job(storage, 1, "mine-a", experiment=name) for name in ("alice", "bob"))
    again = job(storage, 1, "mine-a", experiment="alice")
    assert (again, folders(storage)) == (alice, ["mine"])
    for run, left in ((bob, ["mine"]), (alice, [])):
        client(storage).delete_run(run)
        clean(storage)
        assert folders(storage) == left


def test_rounds_go_with_the_run_that_they_belong_to(storage):
    config = dataclasses.replace(DEMO, storage=storage.uri)
    with running(config, storage, ("extract", "mine")) as session:
        for number in (1, 2):
            with nested(session, config, session.chosen, Plan(), name=f"round {number}") as inner:
                made(inner, f"mine-{number}")
            session.stages += inner.stages
    assert clean(storage)[0] == []
    client(storage).delete_run(session.run.run_id)
    assert [row[:2] for row in clean(storage)[0]] == [["mine", "2"]]


def test_what_a_killed_run_had_begun_and_an_index_stay(storage):
    with pytest.raises(KeyboardInterrupt):
        job(storage, 1, "extract-a", "mine-a", fails=True)
    begun = set(storage.folders())
    other = job(storage, 2, "index-a", "index-b", "mine-b")
    index = next(name for name in storage.folders() if name.startswith("index-"))
    (storage / "indexes").write("images.json", json.dumps({"index": index[-12:]}).encode())
    client(storage).delete_run(other)
    (storage / "leases" / "mine-0123456789ab").write("claim.json", b"{}")
    (storage / "mine-0123456789ab").write("part", b"")
    clean(storage)
    assert index in storage.folders()
    assert begun <= set(storage.folders())
    assert folders(storage) == ["extract", "index", "mine", "mine"]


def test_nothing_is_removed_while_it_is_not_known_what_a_run_used(storage):
    job(storage, 1, "mine-a")
    ((identity, note),) = notes(storage)
    (storage / "runs").write(f"{identity}.json", json.dumps({"run_id": note.run_id}).encode())
    (storage / "mine-0123456789ab").write("part", b"")
    with pytest.raises(InputError, match=rf"which stages 1 runs used \(MLflow's run {note.run_id}"):
        clean(storage)
    note_stages(storage, identity, ["mine-0123456789ab"], whole=False)
    assert read_note(storage, identity).stages is None, "earlier ones are not known yet"
    job(storage, 1, "mine-a")
    assert [row[:2] for row in clean(storage)[0]] == [["mine", "1"]]
    assert folders(storage) == ["mine"]


def test_runs_of_another_server_and_those_that_mlflow_does_not_know_are_kept(storage, tmp_path):
    job(storage, 1, "mine-a")
    other = f"sqlite:///{tmp_path / 'other.db'}"
    assert clean(storage, tracking_uri=other)[0] == []
    (tmp_path / "mlflow.db").unlink()
    assert clean(storage)[0] == []
    assert folders(storage) == ["mine"]


def test_a_server_is_asked_with_its_credentials_and_noted_without(storage, monkeypatch):
    write_note(storage, "a", Note("0123", "https://***@host", ("mine-0123456789ab",)))
    (storage / "mine-0123456789ab").write("part", b"")
    asked = []

    def deleted(uri, run_ids):
        asked.append(uri)
        return set(run_ids)

    monkeypatch.setattr(cleaning, "deleted_runs", deleted)
    clean(storage, tracking_uri="https://KEY:SECRET@host")
    assert asked == ["https://KEY:SECRET@host"]
    assert folders(storage) == []


def test_a_run_that_changes_frees_what_it_does_not_use_any_more(storage):
    job(storage, 1, "mine-a", "mine-b")
    job(storage, 1, "mine-a")
    assert [row[:2] for row in clean(storage)[0]] == [["mine", "1"]]


def test_an_extraction_that_is_removed_is_no_longer_named_as_known(storage):
    first = job(storage, 1, "extract-a")
    job(storage, 2, "mine-a")
    (name,) = [name for name in storage.folders() if name.startswith("extract-")]
    (storage / "described/way").write(name[-12:], b"")
    (storage / "described/way").write("0123456789ab", b"")
    client(storage).delete_run(first)
    clean(storage)
    assert (storage / "described/way").names() == ["0123456789ab"]


def test_a_folder_without_runs_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--storage .*: no run is noted there; name another"):
        clean(Folder(str(tmp_path)))
