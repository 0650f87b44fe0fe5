"""Environments that a job may meet: how each is made, and how the job may end in it."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.environments.machine import (
    Disk,
    RayBeside,
    cover_shm,
    nobody,
    reachable_interpreter,
    start_ray_beside,
)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """One environment, made in a mount namespace of its own.

    Attributes
    ----------
    what : in a phrase, for the table
    job : name of the job that meets it, see `run.arguments`
    prefix : words before the command, as of `prlimit`
    environ : variables that are set, or removed where the value is None
    storage : the folder of results, below the scratch folder or absolute
    prepare : makes the environment; returns what removes it and makes room, or None
    fills_at : glob below the storage; the disk is filled as soon as it fits
    statuses : exit statuses that are well
    says : part of the sentence, where the job ends with one
    """

    what: str
    job: str = "mine"
    prefix: tuple[str, ...] = ()
    environ: Mapping[str, str | None] = field(default_factory=dict)
    storage: str = "runs"
    prepare: Callable[[Path], Disk | RayBeside | None] = lambda scratch: None
    fills_at: str = ""
    statuses: tuple[int, ...] = (0,)
    says: str = ""


def _full(place: str, *, size: str = "100m", inodes: int = 0) -> Callable[[Path], Disk]:
    return lambda scratch: Disk.mount(scratch / place, size=size, inodes=inodes, full=True)


def _empty(place: str, *, size: str = "100m", inodes: int = 0) -> Callable[[Path], Disk]:
    return lambda scratch: Disk.mount(scratch / place, size=size, inodes=inodes)


def _other_user(*, temporary: bool) -> Callable[[Path], None]:
    def prepare(scratch: Path) -> None:
        reachable_interpreter()
        for path in (scratch, *scratch.rglob("*")):
            os.chown(path, 65534, 65534)
        if not temporary:
            os.chown(scratch / "tmp", 0, 0)
            (scratch / "tmp").chmod(0o755)

    return prepare


LONG = "/".join(["a folder with a name of forty letters 123"] * 5)[:200]
ROOM = {"statuses": (1, 2), "says": "make room"}
ONE_CPU = str(min(os.sched_getaffinity(0)))

ENVIRONMENTS: dict[str, Environment] = {
    "ordinary": Environment(what="nothing unusual"),
    "shm": Environment(what="64 MB of /dev/shm", prepare=lambda scratch: cover_shm()),
    "shm, training": Environment(
        what="64 MB of /dev/shm, training", job="retrieval", prepare=lambda scratch: cover_shm()
    ),
    "files": Environment(
        what="`ulimit -n 256`", prefix=("prlimit", "--nofile=256:256"), statuses=(0, 1, 2)
    ),
    "files, training": Environment(
        what="`ulimit -n 256`, training",
        job="retrieval",
        prefix=("prlimit", "--nofile=256:256"),
        statuses=(0, 1, 2),
    ),
    "no home": Environment(what="HOME unset", environ={"HOME": None}, job="retrieval"),
    "home read-only": Environment(
        what="HOME=/proc, where nothing can be written", environ={"HOME": "/proc"}, job="retrieval"
    ),
    "another user": Environment(
        what="user nobody without capabilities, HOME of root",
        prefix=nobody(),
        prepare=_other_user(temporary=True),
        job="retrieval",
    ),
    "another user, no tmp": Environment(
        what="the same, TMPDIR is not writable",
        prefix=nobody(),
        prepare=_other_user(temporary=False),
        statuses=(0, 1, 2),
    ),
    "locale": Environment(
        what="LC_ALL=C, PYTHONUTF8=0, names that are not ASCII",
        job="index",
        storage="Läufe",
        environ={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        statuses=(2,),
        says="set PYTHONUTF8=1",
    ),
    "one CPU": Environment(
        what="one CPU (`taskset`)", job="retrieval", prefix=("taskset", "-c", ONE_CPU)
    ),
    "memory": Environment(what="4 GB of memory (cgroup)", job="retrieval", prefix=("4G",)),
    "second Ray": Environment(
        what="another Ray on the machine, joined", prepare=start_ray_beside, job="retrieval"
    ),
    "second Ray, alone": Environment(
        what="another Ray on the machine, RAY_ADDRESS=local",
        environ={"RAY_ADDRESS": "local"},
        prepare=start_ray_beside,
        job="retrieval",
    ),
    "long storage": Environment(
        what="a storage path of 200 characters", storage=LONG, job="retrieval"
    ),
    "long TMPDIR": Environment(
        what="a TMPDIR of 200 characters", environ={"TMPDIR": LONG}, statuses=(0, 1, 2)
    ),
    "full": Environment(
        what="the storage is full at the start", prepare=_full("runs"), statuses=(2,),
        says="cannot write there",
    ),
    "no inodes": Environment(
        what="the storage has no inodes at the start",
        prepare=_full("runs", inodes=60),
        statuses=(2,),
        says="cannot write there",
    ),
    "full at MLflow": Environment(
        what="the storage is full once MLflow's database is there",
        prepare=_empty("runs"), fills_at="mlflow.db", **ROOM,
    ),
    "full in mining": Environment(
        what="the storage is full from mining on", prepare=_empty("runs"), fills_at="knn-*", **ROOM
    ),
    "full in extraction": Environment(
        what="the storage is full from extraction on",
        job="retrieval", prepare=_empty("runs", size="400m"), fills_at="extract-*", **ROOM,
    ),
    "full in training": Environment(
        what="the storage is full from training on",
        job="retrieval", prepare=_empty("runs", size="400m"), fills_at="train-*", **ROOM,
    ),
    "no inodes in extraction": Environment(
        what="the storage has no inodes from extraction on",
        job="retrieval", prepare=_empty("runs", size="400m", inodes=2000),
        fills_at="extract-*", **ROOM,
    ),
    "full /tmp": Environment(
        what="TMPDIR is full at the start", prepare=_full("tmp"), statuses=(0, 1, 2)
    ),
    "full /tmp in mining": Environment(
        what="TMPDIR is full from mining on", prepare=_empty("tmp"), fills_at="knn-*",
        statuses=(0, 1, 2),
    ),
}  # fmt: skip
CHEAP = ("full", "no inodes", "full at MLflow")
