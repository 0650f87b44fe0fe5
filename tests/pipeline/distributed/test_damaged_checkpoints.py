"""Training goes on from the newest checkpoint that is whole."""

import json
import shutil

import numpy as np
import pytest
from ray.train import ControllerError, WorkerGroupError
from ray.train.v2._internal.exceptions import UserExceptionWithTraceback

from mmray.pipeline.distributed.ray_internals import failures_in
from mmray.pipeline.distributed.trainer import _need_room, _remove_damaged
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.training.checkpoints import DIGESTS, save_history, seal

LIST = "checkpoint_manager_snapshot.json"


@pytest.fixture
def checkpoints(tmp_path):
    for epoch in (3, 4):
        folder = tmp_path / f"epoch-{epoch:03d}"
        (folder / "best").mkdir(parents=True)
        (folder / "best" / "model.safetensors").write_bytes(bytes(1000))
        (folder / "optimizer.pt").write_bytes(bytes(1000))
        history = [{"loss": 1.0 / (1 + e)} for e in range(epoch + 1)]
        save_history(folder, history, np.array([0.5, 0.7]), seed=0)
        seal(folder)
    names = [{"checkpoint_dir_name": f"epoch-{epoch:03d}", "metrics": {}} for epoch in (3, 4)]
    (tmp_path / LIST).write_text(json.dumps({"checkpoint_results": names, "more": 1}))
    return tmp_path


def left(path):
    _remove_damaged(Folder(str(path)))
    if not path.exists():
        return None
    listed = json.loads((path / LIST).read_text())["checkpoint_results"]
    folders = sorted(p.name for p in path.iterdir() if p.is_dir())
    assert folders == [each["checkpoint_dir_name"] for each in listed]
    return listed


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def test_checkpoints_that_are_whole_stay_as_they_are(checkpoints, capsys):
    before = (checkpoints / LIST).read_bytes()
    assert len(left(checkpoints)) == 2
    assert (checkpoints / LIST).read_bytes() == before
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("file", ["optimizer.pt", "best/model.safetensors", "state.json", DIGESTS])
def test_a_damaged_one_gives_way_to_the_one_before(checkpoints, file, capsys):
    flip(checkpoints / "epoch-004" / file)
    (only,) = left(checkpoints)
    assert (only["checkpoint_dir_name"], only["metrics"]) == ("epoch-003", {"loss": 0.25})
    assert "damaged: epoch-004; training goes on from epoch-003" in capsys.readouterr().err


def test_a_list_that_was_cut_is_written_anew(checkpoints, capsys):
    (checkpoints / LIST).write_bytes((checkpoints / LIST).read_bytes()[:30])
    (checkpoints / "epoch-005").mkdir()  # its upload had begun
    (checkpoints / "epoch-005" / "optimizer.pt").write_bytes(b"half")
    assert [each["checkpoint_dir_name"] for each in left(checkpoints)] == ["epoch-003", "epoch-004"]
    assert "goes on from epoch-004" in capsys.readouterr().err


def test_one_whose_upload_was_cut_off_is_removed(checkpoints, capsys):
    (checkpoints / "epoch-005").mkdir()
    (checkpoints / "epoch-005" / "optimizer.pt").write_bytes(b"half")
    assert len(left(checkpoints)) == 2
    assert capsys.readouterr().err == ""


def test_a_checkpoint_that_finds_no_room_is_said(checkpoints, monkeypatch):
    folder = Folder(str(checkpoints))
    _need_room(folder, folder / "epoch-004")
    few = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: few)
    with pytest.raises(InputError, match=r"no room for a checkpoint of 0 MB .*make room"):
        _need_room(folder, folder / "epoch-004")


def test_without_one_that_is_whole_training_begins_anew(checkpoints, capsys):
    for epoch in (3, 4):
        (checkpoints / f"epoch-{epoch:03d}" / "optimizer.pt").unlink()
    assert left(checkpoints) is None
    assert "training begins anew" in capsys.readouterr().err


def test_those_of_earlier_versions_have_no_digests(checkpoints):
    for epoch in (3, 4):
        (checkpoints / f"epoch-{epoch:03d}" / DIGESTS).unlink()
    assert len(left(checkpoints)) == 2


def test_the_sentence_of_a_rank_that_could_write_it_nowhere_is_found_in_ray_s_error():
    refused = InputError("no room")
    failures = {0: RuntimeError("gone"), 1: UserExceptionWithTraceback(refused, "Traceback ...")}
    assert failures_in(WorkerGroupError("failed", failures)) == [failures[0], refused]
    gone = RuntimeError("gone")
    assert failures_in(ControllerError(gone)) == [gone]
