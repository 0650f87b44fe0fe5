"""A stage is made once, by one process, and what is damaged of it is made again."""

import dataclasses
import json
import threading
from types import SimpleNamespace

import pytest

from mmray.config.presets import DEMO
from mmray.config.validation import in_uploaded_folder
from mmray.pipeline.session import Session
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder
from tests.made import synthetic

PARTS = ("a.bin", "b.bin", "sub/c.bin")


class Work:
    """Makes the missing ones of three files, and counts what it makes."""

    def __init__(self):
        self.made = []

    def __call__(self, stage):
        for name in PARTS:
            if not stage.folder.has(name):
                stage.folder.write(name, name.encode() * 100)
                self.made.append(name)
        stage.folder.write("internal/x", b"")
        return {"parts": len(PARTS)}


@pytest.fixture
def storage(tmp_path):
    return Folder(str(tmp_path / "runs"))


def staged(storage, work, *, chosen=("mine",), **options):
    session = Session(DEMO, storage, synthetic.SilentRun(), chosen)
    return session.run_stage("mine", "x", work=work, internal=["internal/"], **options)


def flip(path, bit=0):
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def test_a_stage_that_is_whole_is_read(storage, capsys):
    work = Work()
    first = staged(storage, work)
    assert (first.counts, work.made) == ({"parts": 3}, [*PARTS])
    assert staged(storage, work, chosen=("train",)).counts == {"parts": 3}
    assert work.made == [*PARTS]
    assert "done before (mine-" in capsys.readouterr().err


@pytest.mark.parametrize("damage", [flip, lambda path: path.unlink(), lambda p: p.write_bytes(b"")])
@pytest.mark.parametrize("part", PARTS)
def test_only_what_is_damaged_is_made_again(storage, part, damage, capsys):
    work = Work()
    stage = staged(storage, work)
    damage(stage.folder.local / part)
    (stage.folder.local / "internal" / "x").unlink()  # which no other stage reads
    assert staged(storage, work).counts == {"parts": 3}
    assert work.made == [*PARTS, part]
    assert f"mine: {part} damaged or missing, and made again" in capsys.readouterr().err
    assert stage.folder.read(part) == part.encode() * 100
    staged(storage, work)
    assert work.made == [*PARTS, part]


def test_damage_of_a_stage_that_was_not_chosen_is_said(storage):
    stage = staged(storage, Work())
    flip(stage.folder.local / "a.bin")
    with pytest.raises(InputError, match=r"the stage mine is damaged or outdated .*--stages"):
        staged(storage, Work(), chosen=("train",))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"counts": {}}', b"\xff\xfe"])
def test_a_record_that_cannot_be_read_is_as_if_it_were_not_there(storage, content):
    work = Work()
    stage = staged(storage, work)
    (stage.folder.local / "_SUCCESS.json").write_bytes(content)
    assert staged(storage, work).counts == {"parts": 3}
    assert work.made == [*PARTS]


def test_a_record_with_another_number_is_no_record(storage):
    stage = staged(storage, Work())
    path = stage.folder.local / "_SUCCESS.json"
    path.write_text(path.read_text().replace('"parts": 3', '"parts": 2'))
    assert not stage.done
    assert staged(storage, Work()).counts == {"parts": 3}


def test_the_record_of_an_earlier_version_without_digests_is_read(storage):
    work = Work()
    stage = staged(storage, work)
    path = stage.folder.local / "_SUCCESS.json"
    record = json.loads(path.read_text())
    del record["digest"], record["files"]
    path.write_text(json.dumps(record))
    flip(stage.folder.local / "a.bin")
    assert staged(storage, work).counts == {"parts": 3}
    assert work.made == [*PARTS]


def test_files_that_are_read_by_part_are_compared_by_their_size(storage):
    work, sizes = Work(), {"read_by_part": ["b"]}
    stage = staged(storage, work, **sizes)
    flip(stage.folder.local / "b.bin")
    staged(storage, work, **sizes)
    assert work.made == [*PARTS]
    (stage.folder.local / "b.bin").write_bytes(b"")
    staged(storage, work, **sizes)
    assert work.made == [*PARTS, "b.bin"]


def test_a_file_that_an_interrupted_run_left_damaged_is_made_again(storage, capsys):
    work = Work()

    def reading(stage):
        counts = work(stage)
        for name in PARTS:
            if stage.folder.read(name) != name.encode() * 100:
                raise DamagedFileError(stage.folder.location(name), "not as it was written")
        return counts

    stage = staged(storage, Work())
    (stage.folder.local / "_SUCCESS.json").unlink()
    flip(stage.folder.local / "b.bin")
    staged(storage, reading)
    assert work.made == ["b.bin"]
    assert "mine: b.bin is damaged, and made again" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["mine", "other"])
def test_damage_that_does_not_go_away_or_is_of_another_stage_ends_the_job(storage, where):
    def failing(stage):
        stage.folder.write("x", b"")
        raise DamagedFileError((storage / where).location("x"), "still")

    with pytest.raises(DamagedFileError, match="still"):
        Session(DEMO, storage, synthetic.SilentRun(), ("mine",)).run_stage("mine", work=failing)


def test_of_two_jobs_that_need_a_stage_one_makes_it_and_the_other_reads_it(storage, capsys):
    begun, work = threading.Event(), Work()

    def slowly(stage):
        begun.set()
        threading.Event().wait(1.0)
        return work(stage)

    first = threading.Thread(target=staged, args=(storage, slowly))
    first.start()
    assert begun.wait(30)
    assert staged(storage, work).counts == {"parts": 3}
    first.join()
    assert work.made == [*PARTS]
    told = capsys.readouterr().err
    assert "mine: being made by pid" in told
    assert "made meanwhile (mine-" in told


def test_a_session_with_other_settings_is_of_the_same_run(storage):
    session = Session(DEMO, storage, synthetic.SilentRun(), ("mine",))
    other = session.with_settings(dataclasses.replace(DEMO, seed=7))
    assert (session.config.seed, other.config.seed) == (0, 7)
    other.run_stage("mine", "y", work=Work())
    assert [stage.name for stage in session.stages] == ["mine"]


def test_the_time_left_is_less_what_stages_took_when_they_were_made(storage):
    session = Session(DEMO, storage, synthetic.SilentRun(), ("mine",))
    session.seconds_before = 600.0
    assert session.time_left(None) is None
    assert session.time_left("1h") == 3000
    stage = session.run_stage("mine", "z", work=Work())
    assert session.time_left("15m") == pytest.approx(300 - stage.seconds)
    # A rerun reads the stage in no time, and has as much left.
    again = Session(DEMO, storage, synthetic.SilentRun(), ("mine",))
    again.run_stage("mine", "z", work=Work())
    assert again.time_left("10m") == pytest.approx(600 - stage.seconds)


@pytest.mark.parametrize(
    ("runtime_env", "uploaded"), [({}, False), ({"working_dir": "gcs://x.zip"}, True)]
)
def test_a_job_knows_that_its_folder_will_vanish(monkeypatch, runtime_env, uploaded):
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps({"runtime_env": runtime_env}))
    assert in_uploaded_folder() is uploaded
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert in_uploaded_folder() is False


def test_a_run_that_was_finished_logs_only_once_it_makes_something_anew(storage):
    logged = []
    run = SimpleNamespace(finished_before=True, identity="a", log_metrics=logged.append)
    staged(storage, Work())
    session = Session(DEMO, storage, run, ("mine",))
    session.run_stage("mine", "x", work=Work())
    assert (logged, session.finished_before) == ([], True)
    session.run_stage("mine", "y", work=Work())
    assert (logged, session.finished_before) == ([{"system/mine/parts": 3}], False)
    unfinished = SimpleNamespace(finished_before=False, identity="b", log_metrics=logged.append)
    Session(DEMO, storage, unfinished, ("mine",)).run_stage("mine", "x", work=Work())
    assert logged == [{"system/mine/parts": 3}] * 2
