"""Room for the mining stages: CPUs of an actor, refusals, and the table of a dry run."""

import numpy as np
import pytest

from mmray.config.sections import MiningConfig
from mmray.mining.needs import GB, WORKER, Sizes, needs, worker_bytes
from mmray.pipeline import distributed
from mmray.pipeline.stages.room import (
    check_room,
    gigabytes,
    mining_threads,
    needs_here,
    sizes_of,
)
from mmray.system.errors import InputError
from mmray.system.rows import Rows

HEAD = distributed.Machine(0, 4 * GB, 2 * GB)


@pytest.fixture
def having(monkeypatch):
    def have(*machines):
        monkeypatch.setattr(distributed, "machines", lambda: list(machines))
        least = min(machine.shared for machine in machines)
        monkeypatch.setattr(distributed, "shared_memory", lambda: least)

    return have


@pytest.mark.parametrize(
    ("memory", "threads"), [(1000.0, 1), (40.0, 1), (16.0, 2), (13.0, 3), (9.0, 4), (4.0, 8)]
)
def test_an_actor_takes_the_cpus_that_leave_room_for_all(memory, threads):
    n = 2_000_000
    machines = [distributed.Machine(16, memory * GB, 8 * GB)]
    assert mining_threads(n, MiningConfig(), machines) == threads
    assert 16 // threads * (WORKER + worker_bytes(n, MiningConfig())) <= memory * GB


def test_a_machine_too_small_for_one_actor_is_refused():
    machines = [distributed.Machine(16, 1 * GB, 8 * GB)]
    with pytest.raises(InputError, match=r"^mine: diffusion among 2,000,000 items takes 1.9 GB"):
        mining_threads(2_000_000, MiningConfig(), machines)


@pytest.mark.parametrize(
    ("stage", "config", "remedy"),
    [
        ("knn", MiningConfig(search="ivf"), "choose --mining.search exact, which searches part"),
        ("mine", MiningConfig(), "choose --mining.memory 0.4, a smaller --mining.graph-k"),
        ("mine", MiningConfig(memory=0.1), "choose a smaller --mining.graph-k"),
    ],
)
def test_shared_objects_larger_than_the_memory_for_them_are_refused(having, stage, config, remedy):
    having(HEAD, distributed.Machine(16, 64 * GB, 20 * GB))
    n = 20_000_000 if stage == "knn" or config.memory else 1_000_000
    rows = Rows(lambda: np.broadcast_to(np.float32(0), (n, 200)))
    sizes = sizes_of(rows, config, "cuda")
    if stage == "mine" and not config.memory:
        sizes = Sizes(n=10_000_000, d=16, half=False, share=0.8 * GB)
    with pytest.raises(InputError) as refused:
        check_room(stage, sizes, config)
    assert f"{stage}: {sizes.n:,} items take " in str(refused.value)
    assert remedy in str(refused.value)


def test_what_is_much_is_said_before_it_begins(having, capsys):
    having(distributed.Machine(4, 64 * GB, 20 * GB))
    config = MiningConfig(graph_k=None, positive_k=None, negative_k=None)
    check_room("mine", Sizes(n=1000, d=16, half=False, share=GB), config)
    assert capsys.readouterr().err == ""
    check_room("mine", Sizes(n=3_000_000, d=16, half=False, share=GB), config)
    said = capsys.readouterr().err
    assert said.startswith("mine: the job takes ")
    assert "shared objects" in said
    assert "a worker 2.5 GB" in said


@pytest.mark.parametrize(("memory", "enough"), [(60.0, "enough"), (6.0, "too little")])
def test_a_dry_run_tells_of_each_stage_and_of_the_machines(having, memory, enough):
    having(HEAD, distributed.Machine(8, memory * GB, 20 * GB))
    sizes, config = Sizes(n=10_000_000, d=64, half=True, share=GB), MiningConfig()
    told = needs(sizes, config, seconds=16 * 3600.0)
    found = needs_here("10,000,000 items", told, sizes, config, note="More.")
    assert [row[0] for row in found.rows] == ["knn in 4 parts", "graph", "mine"]
    assert found.rows[0][-1] == "2.0 h"
    assert found.head[0] == "10,000,000 items, GB"
    assert found.note.endswith(f"are {enough}. More.")


def test_a_dry_run_before_a_machine_with_cpus_is_there_tells_of_one_worker(having):
    having(HEAD)
    sizes, config = Sizes(n=1_000_000, d=64, half=True, share=GB), MiningConfig()
    told = needs(sizes, config, seconds=7200.0)
    found = needs_here("items", told, sizes, config)
    assert found.rows[0][-1] == "2.0 h"
    assert found.rows[-1][4] == gigabytes(told[-1].machine(1))
    assert found.note == "No machine with CPUs is there yet: this is one with a single worker."
