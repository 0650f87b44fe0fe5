"""A Ray of this machine alone listens on loopback, and is started more than once if need be."""

import importlib
import os
import subprocess
import sys
from contextlib import suppress

import pytest
import ray
from ray._private import ray_constants

from mmray.pipeline.distributed import starting
from mmray.pipeline.distributed.capacity import SPARE_CPUS
from mmray.system.errors import InputError, MachineError

psutil = importlib.import_module("psutil")  # that of Ray, once this is imported


@pytest.fixture
def starts(monkeypatch):
    """Record the options of each start of Ray; the first so many starts fail."""

    class Starts(list):
        failures = 0

    made = Starts()

    def init(**options):
        seconds = ray_constants.RAY_DASHBOARD_STARTUP_TIMEOUT_S
        far = ray_constants.ENABLE_RAY_CLUSTER
        made.append(options | {"env": dict(os.environ), "far": far, "dashboard_s": seconds})
        if len(made) <= made.failures:
            raise ValueError(f"port {options['dashboard_port']} is taken\nand more")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    return made


def test_a_start_that_fails_is_tried_again_with_another_port(starts, capsys):
    starts.failures = 2
    starting.start()
    assert len({start["dashboard_port"] for start in starts}) == 3
    first, second = capsys.readouterr().err.splitlines()
    taken = starts[0]["dashboard_port"]
    assert first == f"ray: it did not start (port {taken} is taken); trying again with other ports"
    assert second.startswith("ray: it did not start")


def test_after_three_tries_a_job_ends_with_a_sentence_and_status_1(starts, capsys):
    starts.failures = 3
    with pytest.raises(MachineError, match=r"in 3 tries \(the last: port \d+ is taken\)"):
        starting.start()
    assert len(starts) == 3


def test_a_folder_too_deep_for_ray_s_sockets_is_refused_at_once(starts, monkeypatch):
    def too_long(**options):
        starts.append(options)
        raise OSError("AF_UNIX path length cannot exceed 107 bytes: /tmp/x")

    monkeypatch.setattr(ray, "init", too_long)
    with pytest.raises(InputError, match=r"TMPDIR .*; set TMPDIR to a folder with a shorter path"):
        starting.start()
    assert len(starts) == 1


def test_ray_is_told_to_stay_on_loopback_and_to_have_patience(starts, monkeypatch):
    monkeypatch.setenv("RAY_raylet_start_wait_time_s", "7")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://elsewhere")
    before, far = dict(os.environ), ray_constants.ENABLE_RAY_CLUSTER
    starting.start()
    (start,) = starts
    assert (start["far"], start["dashboard_s"]) == (False, 180)
    assert start["env"]["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0"
    assert start["env"]["RAY_API_SERVER_ADDRESS"] == f"http://127.0.0.1:{start['dashboard_port']}"
    assert start["env"]["RAY_gcs_server_port_wait_time_s"] == "120"
    assert start["env"]["RAY_raylet_start_wait_time_s"] == "7"
    assert dict(os.environ) == before
    assert far is ray_constants.ENABLE_RAY_CLUSTER


@pytest.mark.parametrize(
    ("present", "given", "logical", "spare"), [(1, None, 4, 3), (2, None, 4, 2), (16, None, 18, 2)]
)
def test_logical_cpus_for_tasks_are_told_from_real_ones(
    starts, monkeypatch, present, given, logical, spare
):
    monkeypatch.setattr(starting.joblib, "cpu_count", lambda: present)
    starting.start(given)
    assert (starts[0]["num_cpus"], starts[0]["resources"]) == (logical, {SPARE_CPUS: spare})
    starting.start(6)
    assert (starts[1]["num_cpus"], starts[1]["resources"]) == (6, None)


# Ray waits for its own processes no longer than this says, and none is ready at once.
FAILING = """
import sys
from mmray.config.command_line import exit_status
from mmray.pipeline.distributed import cluster
import psutil

status = exit_status(cluster.connect)
left = [p for p in psutil.Process().children(True) if p.status() != psutil.STATUS_ZOMBIE]
gone, alive = psutil.wait_procs(left, 10)
print([p.name() for p in alive])
sys.exit(status)
"""


@pytest.mark.process
def test_a_ray_that_does_not_start_leaves_a_sentence_and_no_process():
    env = os.environ | {"RAY_gcs_server_port_wait_time_s": "0", "RAY_ADDRESS": "local"}
    command = [sys.executable, "-c", FAILING]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert done.returncode == 1, done.stderr
    assert done.stdout == "[]\n"
    *tries, sentence = done.stderr.splitlines()
    assert [line.split(" (")[0] for line in tries] == 2 * ["ray: it did not start"]
    assert sentence.startswith("error: Ray did not start on this machine in 3 tries (the last: ")


@pytest.mark.usefixtures("ray_cluster")
def test_nothing_of_a_ray_that_was_started_here_listens_beyond_this_machine():
    connections = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # Ray ends idle workers at any time
            connections += process.net_connections("tcp")
    addresses = [
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in connections
        if connection.status == psutil.CONN_LISTEN
    ]
    assert len(addresses) > 5
    assert set(addresses) <= {"127.0.0.1", "::1"}


def test_a_folder_for_temporary_files_without_room_is_refused_at_once(monkeypatch):
    monkeypatch.setenv("RAY_TMPDIR", "/dev/full/x")
    monkeypatch.setattr(starting, "_try_to_start", lambda *given: pytest.fail("it was started"))
    with pytest.raises(InputError, match=r"TMPDIR /dev/full/x: .*Not a directory.*make room"):
        starting.start()
