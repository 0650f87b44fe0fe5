"""Two jobs on one cluster at a time: one is killed and typed again, and a machine is lost."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.end_to_end.clusters import free_port, running_head, start_node, stop, vanish, wait_for
from tests.end_to_end.small_job import SMALL, command, table

pytestmark = pytest.mark.slow
CPUS = 3  # of either machine
SEEDS = {"one": 0, "other": 1}  # of the jobs, whose tables differ by it
KEPT = ("--training.keep", "last", "--training.patience", "None")  # which the seed changes


def start(folder: Path, name: str, log: Path, address: str) -> subprocess.Popen[bytes]:
    """Start a job of this name on the cluster at an address, or on a Ray of its own."""
    flags = ("--storage", folder / name, "--seed", SEEDS[name], *SMALL, *KEPT)
    with log.open("w") as output:
        return subprocess.Popen(
            command("retrieval", *flags),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"RAY_ADDRESS": address},
        )


@pytest.mark.timeout(1500)
def test_two_jobs_end_as_if_alone_though_one_is_killed_and_a_machine_lost(tmp_path):
    expected = {}
    for name in SEEDS:
        log = tmp_path / f"{name} alone"
        assert start(tmp_path / "alone", name, log, "local").wait(400) == 0, log.read_text()
        expected[name] = table(log.read_text())
    assert expected["one"] != expected["other"]

    logs = {name: tmp_path / name for name in (*SEEDS, "again")}
    runs = tmp_path / "runs"
    with running_head(tmp_path, port=free_port(), cpus=CPUS, dashboard=True) as address:
        node = start_node(
            *(f"--address={address}", f"--num-cpus={CPUS}", "--object-store-memory", 200_000_000),
            log=tmp_path / "node",
        )
        jobs = {name: start(runs, name, logs[name], address) for name in SEEDS}
        try:
            wait_for(lambda: "epoch 1/2" in logs["one"].read_text(), jobs["one"], seconds=500)
            assert jobs["other"].poll() is None, logs["other"].read_text()
            jobs["one"].send_signal(signal.SIGKILL)
            jobs["one"].wait()
            jobs["again"] = start(runs, "one", logs["again"], address)
            wait_for(lambda: "(check-" in logs["other"].read_text(), jobs["other"], seconds=500)
            vanish(node)
            for name in ("again", "other"):
                assert jobs[name].wait(500) == 0, logs[name].read_text()
        finally:
            stop(node)
            for job in jobs.values():
                job.kill()
    assert "done before (extract-" in logs["again"].read_text()
    assert table(logs["again"].read_text()) == expected["one"]
    assert table(logs["other"].read_text()) == expected["other"]
