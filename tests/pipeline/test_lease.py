"""One process at a time makes a stage, whoever is killed, stopped or late."""

import json
import multiprocessing
import os
import signal
import threading
import time

import pytest

from mmray.pipeline import lease as module
from mmray.pipeline.lease import lease
from mmray.system.errors import InputError
from mmray.system.folder import Folder

NAME = "extract-0123456789ab"


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr(module, "_SLOWEST", 0.02)


@pytest.fixture(params=["local", "bucket"])
def storage(request, tmp_path):
    if request.param == "local":
        return Folder(str(tmp_path))
    request.getfixturevalue("bucket")
    return Folder("s3://bucket/runs")


def never() -> bool:
    return False


def claim(storage, **about):
    """Write the claim of a process that is not this one."""
    whose = {"pid": 1234, "host": "another", "since": 1.0, "held": True} | about
    (storage / "leases" / NAME).write("other.json", json.dumps(whose).encode())


def test_work_is_done_by_one_at_a_time_and_the_claims_are_withdrawn(storage):
    working, most, order = [], [], []

    def work(number):
        with lease(storage, NAME, done=never) as needed:
            assert needed
            working.append(number)
            most.append(len(working))
            time.sleep(0.01)
            order.append(number)
            working.remove(number)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(order) == [*range(8)]
    assert most == [1] * 8
    assert (storage / "leases" / NAME).names() == []


def test_who_waits_is_told_for_whom_and_has_nothing_left_to_do_once_it_is_done(storage, capsys):
    claim(storage)
    asked = []

    def done():
        asked.append(1)
        return len(asked) > 3

    with lease(storage, NAME, done=done) as needed:
        assert not needed
    told = capsys.readouterr().err
    assert told.count("extract: being made by pid 1234 on host another since") == 1
    assert (storage / "leases" / NAME).names() == ["other.json"]


def test_the_claim_of_a_process_that_was_killed_is_void_at_once(tmp_path):
    storage = Folder(str(tmp_path))
    process = multiprocessing.get_context("fork").Process(target=_claim_and_die, args=(storage,))
    process.start()
    process.join()
    assert len((storage / "leases" / NAME).names()) == 1
    before = time.monotonic()
    with lease(storage, NAME, done=never) as needed:
        assert needed
    assert time.monotonic() - before < 5


def _claim_and_die(storage):
    with lease(storage, NAME, done=never):
        os._exit(9)


def test_a_claim_that_is_not_renewed_is_void_after_a_while(storage, monkeypatch):
    claim(storage)
    monkeypatch.setattr(module, "VOID", 0.3)
    monkeypatch.setattr(module, "RENEW", 0.05)
    with lease(storage, NAME, done=never) as needed:
        assert needed
        assert len((storage / "leases" / NAME).names()) == 1


def test_a_claim_is_renewed_while_the_work_lasts(storage, monkeypatch):
    monkeypatch.setattr(module, "RENEW", 0.05)
    with lease(storage, NAME, done=never):
        folder = storage / "leases" / NAME
        (first,) = folder.times().values()
        deadline = time.monotonic() + 10
        while next(iter(folder.times().values())) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_a_claim_is_renewed_once_a_full_disk_has_room_again(storage, monkeypatch):
    monkeypatch.setattr(module, "RENEW", 0.02)
    folder, write, left = storage / "leases" / NAME, Folder.write, [3]

    def without_room(folder, name, data):
        if left[0]:
            left[0] -= 1
            raise InputError(f"{name}: no room")
        write(folder, name, data)

    with lease(storage, NAME, done=never):
        (first,) = folder.times().values()
        monkeypatch.setattr(Folder, "write", without_room)
        deadline = time.monotonic() + 10
        while next(iter(folder.times().values())) == first:
            assert time.monotonic() < deadline
            time.sleep(0.01)
    assert left == [0]


@pytest.fixture
def terminable():
    """Handle SIGTERM as jobs do."""

    def terminate(signum, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, terminate)
    yield
    signal.signal(signal.SIGTERM, before)


def test_who_stood_still_while_another_took_over_is_interrupted(
    storage, monkeypatch, capsys, terminable
):
    monkeypatch.setattr(module, "RENEW", 0.02)

    def stand_still():
        with lease(storage, NAME, done=never):
            folder = storage / "leases" / NAME
            folder.delete(folder.names()[0])
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        stand_still()
    assert "another has taken over" in capsys.readouterr().err


def test_who_stood_still_just_before_it_renewed_its_claim_is_interrupted(
    tmp_path, monkeypatch, capsys, terminable
):
    """It looked, and saw its claim; then another deleted it as void, and claimed the work."""
    monkeypatch.setattr(module, "RENEW", 0.02)
    storage, has = Folder(str(tmp_path)), Folder.has

    def seen_before(folder, name):
        was_there = has(folder, name)
        if "other.json" not in folder.names():
            time.sleep(0.2)
            folder.delete(name)
            claim(storage)
        return was_there

    def stand_still():
        with lease(storage, NAME, done=never):
            monkeypatch.setattr(module, "VOID", 0.1)
            monkeypatch.setattr(Folder, "has", seen_before)
            time.sleep(10)

    with pytest.raises(KeyboardInterrupt):
        stand_still()
    assert "another has taken over" in capsys.readouterr().err


def test_of_two_that_claim_at_once_the_younger_gives_way(storage):
    """The other one has written its claim, and not yet looked at those of others."""
    claim(storage, held=False)
    given_way = []

    def done():
        (mine,) = [n for n in (storage / "leases" / NAME).names() if n != "other.json"] or [None]
        if mine:
            given_way.append(json.loads((storage / "leases" / NAME).read(mine))["held"])
        return len(given_way) > 2

    with lease(storage, NAME, done=done) as needed:
        assert not needed
    assert given_way == [False] * 3


def test_a_claim_that_a_power_cut_damaged_becomes_void(storage, monkeypatch):
    (storage / "leases" / NAME).write("other.json", b"")
    monkeypatch.setattr(module, "VOID", 0.2)
    monkeypatch.setattr(module, "RENEW", 0.05)
    with lease(storage, NAME, done=never) as needed:
        assert needed
