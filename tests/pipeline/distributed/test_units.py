"""A stage computes each missing unit once, whole, the same for any number of actors or tasks."""

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path
from subprocess import DEVNULL, PIPE
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import ray

from mmray.pipeline.distributed import capacity, units
from mmray.pipeline.distributed.capacity import Capacity, run_watched
from mmray.pipeline.distributed.tasks import run_once
from mmray.pipeline.distributed.units import ActorPool, ShardForm, run_units
from mmray.system.errors import InputError
from mmray.system.folder import Folder

pytestmark = pytest.mark.usefixtures("ray_cluster")


class Squares:
    """Squares numbers; notes each call in a file and sums in the unit; stumbles where told."""

    def __init__(self, calls: str, broken: int | None = None) -> None:
        self.calls, self.broken = Path(calls), broken

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        with self.calls.open("a") as file:
            file.write(f"{unit['unit']}\n")
        if unit["unit"] == self.broken:
            raise InputError(f"unit {self.broken} is broken: mend it")
        assert not unit["restarted"]
        unit |= {"bytes": 100 * unit["items"], "bad": unit["unit"] % 2}
        return pa.table({"square": [x * x for x in unit["numbers"]]})


def work(count: int) -> pa.Table:
    rows = [list(range(3 * unit, 3 * unit + 1 + unit % 3)) for unit in range(count)]
    return pa.table({"unit": range(count), "items": [len(row) for row in rows], "numbers": rows})


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def run(
    tmp_path: Path,
    name: str,
    *,
    count: int = 7,
    maximum: int | None = 2,
    pool: ActorPool | None = None,
    **options: Any,
) -> Path:
    arguments = (str(tmp_path / f"{name}.calls"), *options.pop("arguments", ()))
    run_units(
        work(count),
        Squares,
        arguments,
        output=Folder(str(tmp_path / name)),
        pool=pool or ActorPool(maximum=maximum),
        label=name,
        **options,
    )
    return tmp_path / name


in_actors_or_tasks = pytest.mark.parametrize("few", [0, 4])


@in_actors_or_tasks
def test_one_worker_or_several_give_the_same_files(tmp_path, monkeypatch, few):
    monkeypatch.setattr(units, "FEW", few)
    one, two = run(tmp_path, "one", maximum=1), run(tmp_path, "two", maximum=2)
    assert files(one) == files(two)
    assert list(files(one)) == [f"part-{unit:06d}.parquet" for unit in range(7)]
    assert sorted(map(int, (tmp_path / "two.calls").read_text().split())) == list(range(7))


def test_only_missing_units_are_computed(tmp_path):
    folder = run(tmp_path, "x")
    whole = files(folder)
    (folder / "part-000003.parquet").unlink()
    (folder / ".part-000004.parquet.part-00c0ffee").write_bytes(
        b"PAR1 half"
    )  # killed while writing
    (folder / "part-000004.parquet").unlink()
    (tmp_path / "x.calls").unlink()
    run(tmp_path, "x")
    assert {name: data for name, data in files(folder).items() if name[0] != "."} == whole
    assert sorted((tmp_path / "x.calls").read_text().split()) == ["3", "4"]
    table = Folder(str(folder)).read_table("part-000001.parquet")
    assert table["square"].to_pylist() == [3 * 3, 4 * 4]


def test_what_workers_add_to_units_is_summed_up_for_the_display(tmp_path, capsys):
    figures: list[dict[str, float]] = []
    run(tmp_path, "x", report=figures.append)
    assert figures[-1]["done"] == 13
    assert (figures[-1]["bytes"], figures[-1]["bad"]) == (1300, 3)
    assert "x: 13/13, " in capsys.readouterr().err


def test_shards_are_of_the_form_that_is_asked(tmp_path):
    form = ShardForm("txt", lambda table: str(table["square"].to_pylist()).encode())
    folder = run(tmp_path, "x", count=3, form=form)
    assert (folder / "part-000002.txt").read_text() == "[36, 49, 64]"
    (folder / "part-000001.txt").unlink()
    written = (folder / "part-000002.txt").stat().st_mtime_ns
    run(tmp_path, "x", count=3, form=form)
    assert len(files(folder)) == 3
    assert (folder / "part-000002.txt").stat().st_mtime_ns == written


def test_it_ends_early_when_too_much_is_bad(tmp_path):
    folder = run(tmp_path, "x", count=40, maximum=1, most_bad=3)
    assert 8 <= len(files(folder)) < 40


def test_blocks_hold_neighbours_and_all_rows():
    table = work(20)
    rows = np.array([0, 1, 2, 3, 4, 7, 9, 10, 11, 19])
    blocks = units.blocks_of(table, rows, 3)
    assert [block["unit"].to_pylist() for block in blocks] == [
        *([0, 1, 2], [3, 4], [7], [9, 10, 11], [19]),
    ]
    assert [len(block) for block in units.blocks_of(table, rows, 1)] == [1] * 10


def test_a_block_that_is_tried_again_computes_no_unit_twice(tmp_path, monkeypatch):
    """Let an actor die at the third of the units in a block."""
    monkeypatch.setattr(units, "FEW", 0)
    monkeypatch.setattr(units, "blocks_of", lambda work, rows, most: [work])
    calls = tmp_path / "calls"
    run_units(
        work(5).append_column("calls", pa.array([str(calls)] * 5)),
        DiesAtTheThird,
        (),
        output=Folder(str(tmp_path / "x")),
        pool=ActorPool(maximum=1),
        label="x",
    )
    assert len(files(tmp_path / "x")) == 5
    assert calls.read_text().split() == ["0", "1", "2", "2", "3", "4"]


class DiesAtTheThird:
    """Notes each call, and kills its own process at the third one there ever is."""

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        with Path(unit["calls"]).open("a") as file:
            file.write(f"{unit['unit']}\n")
        if len(Path(unit["calls"]).read_text().split()) == 3:
            os._exit(1)
        return pa.table({"x": [1]})


def test_nothing_is_started_when_nothing_is_missing(tmp_path):
    run(tmp_path, "x", count=2)
    start = time.monotonic()
    run(tmp_path, "x", count=2)
    assert time.monotonic() - start < 0.5


def test_what_a_worker_says_of_its_input_reaches_the_caller_and_the_rest_is_kept(tmp_path):
    with pytest.raises(InputError, match="unit 6 is broken: mend it"):
        run(tmp_path, "x", maximum=1, arguments=(6,))
    kept = set(files(tmp_path / "x"))
    assert "part-000006.parquet" not in kept
    run(tmp_path, "x")
    assert kept < set(files(tmp_path / "x"))
    assert len(files(tmp_path / "x")) == 7


@in_actors_or_tasks
def test_a_worker_that_dies_is_replaced_and_the_new_one_is_told(tmp_path, monkeypatch, few):
    """An actor tells it of all further units, a task of the one that was lost."""
    monkeypatch.setattr(units, "FEW", few)
    run_units(
        work(3).append_column("died", pa.array([str(tmp_path / "died")] * 3)),
        Noting,
        (),
        output=Folder(str(tmp_path / "x")),
        pool=ActorPool(maximum=1),
        label="x",
    )
    assert (tmp_path / "died").exists()
    tables = [Folder(str(tmp_path / "x")).read_table(name) for name in files(tmp_path / "x")]
    told = [table["restarted"][0].as_py() for table in tables]
    assert told == [True] * 3 if few == 0 else sum(told) >= 1
    assert len(told) == 3


def test_tasks_of_a_stage_share_what_their_process_built_and_those_of_the_next_the_process(
    tmp_path,
):
    noted = []
    for stage in "ab":
        folder = Folder(str(tmp_path / stage))
        run_units(work(4), Counting, (stage,), output=folder, pool=ActorPool(maximum=1), label="x")
        rows = [folder.read_table(name).to_pylist()[0] for name in folder.names()]
        assert [row["stage"] for row in rows] == [stage] * 4
        noted.append({row["process"] for row in rows})
        for process in noted[-1]:
            counts = [row["count"] for row in rows if row["process"] == process]
            assert sorted(counts) == list(range(1, len(counts) + 1))
    assert noted[0] & noted[1]


class Counting:
    """Notes its process, and how many units it has had."""

    def __init__(self, stage: str) -> None:
        self.stage, self.count = stage, 0

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        self.count += 1
        return pa.table({"stage": [self.stage], "process": [os.getpid()], "count": [self.count]})


def test_tasks_count_as_workers_while_a_cpu_is_in_use(monkeypatch):
    """A stage of tasks has no actors to look for."""
    watchdog = capacity.WorkerWatchdog("x", workers=None, needs={"CPU": 1}, timeout=0)
    watchdog.looked = watchdog.alone_since = 0.0
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 3.0})
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    watchdog.check()
    watchdog.looked = watchdog.alone_since = 0.0
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 4.0})
    with pytest.raises(InputError, match="x: no worker could start for 0 s"):
        watchdog.check()


class Noting:
    """Kills its own process on the first unit there ever is; notes whether it was started again."""

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        died = Path(unit["died"])
        if not died.exists():
            died.write_text("")
            os._exit(1)
        return pa.table({"restarted": [unit["restarted"]]})


@pytest.mark.parametrize(("cpus", "free"), [(1, 0), (2, 1), (3, 2), (4, 2), (64, 62)])
def test_actors_never_take_every_cpu(monkeypatch, cpus, free):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": float(cpus)})
    assert Capacity().free_cpus == free
    if free:
        assert ActorPool().size() == free
    else:
        with pytest.raises(InputError, match="1 CPUs and 0 GPUs, a stage needs 2 CPUs"):
            ActorPool().size()


def test_a_pool_leaves_two_cpus_to_tasks_and_says_when_there_are_too_few():
    total = int(ray.cluster_resources()["CPU"])
    assert ActorPool().size() == total - 2
    assert ActorPool(minimum=5, maximum=2).size() == 2
    real = Capacity().real_cpus
    with pytest.raises(InputError, match=rf"{real} CPUs and 0 GPUs, a stage needs .* CPUs"):
        ActorPool(cpus=total).size()
    with pytest.raises(InputError, match="1 GPUs: add machines"):
        ActorPool(gpus=1).size()


def test_what_a_job_is_told_to_count_on_goes_before_what_is_there():
    told = Capacity(given_cpus=100, given_gpus=8)
    assert ActorPool(capacity=told).size() == 98
    assert ActorPool(capacity=told, gpus=1).size() == 8
    assert ActorPool(capacity=Capacity(given_cpus=3)).size() == 2


def test_a_stage_works_with_the_actors_that_have_room(tmp_path):
    """Of twenty that an autoscaler was to make room for."""
    folder = run(tmp_path, "x", count=25, pool=ActorPool(capacity=Capacity(given_cpus=22)))
    assert files(folder) == files(run(tmp_path, "plain", count=25))


def test_a_stage_that_gets_no_machine_says_what_it_waits_for_and_gives_up(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(capacity, "CHECK_EVERY", 0.1)
    monkeypatch.setattr(capacity, "SAY_AFTER", 0.3)
    monkeypatch.setattr(capacity, "SAY_EVERY", 0.5)
    pool = ActorPool(gpus=1.0, capacity=Capacity(given_gpus=4, timeout=5))
    with pytest.raises(InputError) as raised:
        run(tmp_path, "x", pool=pool)
    sentence = str(raised.value)
    assert sentence.startswith("x: no worker could start for 5 s (--resource-timeout)")
    assert re.search(r"one needs 1 CPU and 1 GPU, the cluster has \d+ CPU and 0 GPU", sentence)
    said = [line for line in capsys.readouterr().err.splitlines() if "waiting for a worker" in line]
    assert 1 <= len(said) <= 10
    assert not (tmp_path / "x").exists()


ANOTHER_JOB = """
import sys
import ray
from mmray.pipeline.distributed import cluster

cluster.connect()

@ray.remote(num_cpus=int(ray.cluster_resources()["CPU"]))
class Holder:
    def held(self):
        return True

holder = Holder.remote()
ray.get(holder.held.remote())
print("held", flush=True)
sys.stdin.readline()
"""


def test_a_stage_waits_for_cpus_that_another_job_has_and_names_it(
    tmp_path, monkeypatch, capsys, on_cluster
):
    """It waits longer than it would for machines, and begins when that job ends."""
    monkeypatch.setattr(capacity, "CHECK_EVERY", 0.1)
    monkeypatch.setattr(capacity, "SAY_AFTER", 0.5)
    script = tmp_path / "another.py"
    script.write_text(ANOTHER_JOB)
    pipes = {"stdin": PIPE, "stdout": PIPE, "stderr": DEVNULL, "env": on_cluster, "text": True}
    with subprocess.Popen([sys.executable, str(script)], **pipes) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        threading.Timer(6, lambda: (other.stdin.write("\n"), other.stdin.flush())).start()
        # Long enough for an actor to start once it has room, on a machine that is busy.
        pool = ActorPool(cpus=ActorPool().size(), maximum=1, capacity=Capacity(timeout=4.0))
        monkeypatch.setattr(units, "FEW", 0)
        start = time.monotonic()
        folder = run(tmp_path, "x", count=3, pool=pool)
        assert time.monotonic() - start > 5
    assert len(files(folder)) == 3
    said = [line for line in capsys.readouterr().err.splitlines() if "waiting for a worker" in line]
    assert said
    assert f"free 0 CPU; also at work: {sys.executable}"[:60] in said[0]


class SlowToStart:
    """Start slowly, like an actor that imports a large library."""

    def __init__(self) -> None:
        time.sleep(2)

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        return pa.table({"x": [1]})


def test_a_machine_has_no_more_actors_than_it_has_memory_for(tmp_path, monkeypatch):
    monkeypatch.setattr(units, "FEW", 0)
    memory = ray.cluster_resources()["memory"]
    pool = ActorPool(memory=0.6 * memory)
    assert pool.size() > 1
    folder = Folder(str(tmp_path / "x"))
    run_units(work(6), NotesItsProcess, (), output=folder, pool=pool, label="x")
    pids = {pid for name in folder.names() for pid in folder.read_table(name)["pid"].to_pylist()}
    assert len(pids) == 1
    monkeypatch.setattr(capacity, "CHECK_EVERY", 0.1)
    pool = ActorPool(memory=1.1 * memory, capacity=Capacity(timeout=1.0))
    with pytest.raises(InputError, match=rf"needs 1 CPU and {1.1e-9 * memory:.1f} GB of memory"):
        run_units(work(6), NotesItsProcess, (), output=folder / "y", pool=pool, label="x")


class NotesItsProcess:
    """Return the number of its process."""

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        return pa.table({"pid": [os.getpid()]})


def test_a_worker_that_takes_long_to_start_is_not_called_missing(tmp_path, monkeypatch, capsys):
    """Not even by a stage that gives up earlier, nor where no other would find room."""
    monkeypatch.setattr(capacity, "CHECK_EVERY", 0.1)
    monkeypatch.setattr(capacity, "SAY_AFTER", 0.5)
    pool = ActorPool(cpus=ActorPool().size(), maximum=1, capacity=Capacity(timeout=1.5))
    folder = Folder(str(tmp_path / "slow"))
    run_units(work(1), SlowToStart, (), output=folder, pool=pool, label="slow")
    assert "waiting" not in capsys.readouterr().err


def test_work_that_is_attended_gives_its_result_or_what_was_raised(monkeypatch):
    monkeypatch.setattr(capacity, "CHECK_EVERY", 0.01)
    looks = []
    assert run_watched(lambda: time.sleep(0.1) or 7, lambda: looks.append(1)) == 7
    assert looks

    def fails():
        raise KeyError("x")

    def stops():
        raise InputError("enough")

    with pytest.raises(KeyError, match="x"):
        run_watched(fails, lambda: None)
    with pytest.raises(InputError, match="enough"):
        run_watched(lambda: time.sleep(5), stops)


def _halved(number):
    if number % 2:
        raise InputError(f"{number} is odd: choose another")
    return number // 2, os.getpid()


def test_a_task_of_its_own_gives_its_result_or_what_it_says_of_its_input():
    pool = ActorPool(maximum=1)
    half, process = run_once(_halved, 6, pool=pool, label="halves")
    assert half == 3
    assert process != os.getpid()
    assert run_once(_halved, 8, pool=pool, label="halves")[1] != process  # it ends with the task
    with pytest.raises(InputError, match=r"^7 is odd: choose another$"):
        run_once(_halved, 7, pool=pool, label="halves")
    with pytest.raises(TypeError):
        run_once(_halved, "x", pool=pool, label="halves")


def test_a_task_that_gets_no_machine_gives_up(monkeypatch):
    monkeypatch.setattr(capacity, "CHECK_EVERY", 0.2)
    pool = ActorPool(gpus=1.0, capacity=Capacity(given_gpus=4, timeout=1.5))
    with pytest.raises(InputError, match=r"^halves: no worker could start for 1\.5 s"):
        run_once(_halved, 6, pool=pool, label="halves")
