"""Run the main job on a small autoscaling Ray cluster on this machine.

    python cluster/demo.py [flags of jobs/retrieval.py]

The head does no work itself. The job is submitted to it with `ray job submit`; two workers of three
CPUs, which are processes of this machine, start when the job needs them and stop when they are
idle. The exit status is that of the job, or 1 where the workers do not stop.
"""

import argparse
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from mmray.system.locations import absolute

ROOT = Path(__file__).resolve().parents[1]
RAY = str(Path(sys.executable).with_name("ray"))
WORKERS, CPUS = 2, 3
IDLE_MINUTES = 0.25
# What `ray job submit` says of its own: each file that it leaves out, and how to follow the job.
OF_RAY = re.compile(r"\d{4}-\d\d-\d\d \S+\t(INFO|WARNING|SUCC) |Running entrypoint for job ")
START_SECONDS, IDLE_SECONDS = 120, 180  # limits for the head to start, and for workers to stop


def main(flags: Sequence[str]) -> int:
    """Run the main job on a cluster with these flags, and return the exit status."""
    # Ray listens on all addresses of this machine, so a token keeps others from submitting jobs.
    # All processes started here inherit it; Ray reads it when it is imported, in functions below.
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    # Not $TMPDIR, which is long on some systems: paths of sockets must be short.
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, running_head(Path(folder)) as dashboard:
        say(f"a head without CPUs, its dashboard at {dashboard}")
        wait_for_agent(dashboard)
        watch = Watch(dashboard)
        share = ("--num-cpus", str(WORKERS * CPUS), "--training.workers", str(WORKERS))
        status = submit(dashboard, *share, *with_absolute_storage(flags))
        say(f"the job ended with status {status}; idle workers stop now")
        gone = watch.none_left(IDLE_SECONDS)
        if not status and watch.counts == [0]:
            say("every stage had been done before; give another --storage to see workers start")
        say("workers from the beginning to the end: " + " -> ".join(map(str, watch.counts)))
        return status or (0 if gone else 1)


def with_absolute_storage(flags: Sequence[str]) -> list[str]:
    """Return flags whose storage is absolute, as the job starts in another folder."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--storage", default="mmray-runs")
    known, others = parser.parse_known_args(flags)
    return ["--storage", absolute(known.storage), *others]


def submit(dashboard: str, *flags: str) -> int:
    """Submit the job, print what it prints, and return the exit status of `ray job submit`."""
    job = ("python", "jobs/retrieval.py", *flags)
    # On several machines --working-dir would upload this folder too. Here all of them would unpack
    # it into one place, and take it away from processes that are starting there.
    where = ("--address", dashboard)
    say(f"$ ray job submit {shlex.join(where)} -- {shlex.join(job)}")
    command = [RAY, "job", "submit", *where, "--", *job]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as running:
        assert running.stdout is not None
        before = ""
        for line in running.stdout:
            # Two nodes on one machine each send what a worker prints.
            if line.strip() and line != before and not OF_RAY.match(line):
                print(line, end="", flush=True)
                before = line
    return running.returncode


class Watch:
    """Watcher of the number of workers, which prints each change."""

    def __init__(self, dashboard: str) -> None:
        self.dashboard, self.counts = dashboard, [0]
        threading.Thread(target=self._look, daemon=True).start()

    def none_left(self, seconds: float) -> bool:
        """Wait until all workers have stopped; False if some remain after the given seconds."""
        deadline = time.monotonic() + seconds
        while self.counts[-1] and time.monotonic() < deadline:
            time.sleep(0.5)
        return not self.counts[-1]

    def _look(self) -> None:
        from ray.util.state import list_nodes
        from ray.util.state.exception import RayStateApiException

        while True:
            time.sleep(0.5)
            with suppress(RayStateApiException, OSError):  # the dashboard is busy, or has ended
                nodes = list_nodes(
                    address=self.dashboard,
                    filters=[("state", "=", "ALIVE")],
                    raise_on_missing_output=False,  # of nodes that have just gone
                )
                count = sum(not node.is_head_node for node in nodes)
                if count != self.counts[-1]:
                    say(f"workers: {self.counts[-1]} -> {count}")
                    self.counts.append(count)


@contextmanager
def running_head(folder: Path) -> Iterator[str]:
    """Start a head with the autoscaler, yield the dashboard's address, and stop all processes."""
    port, dashboard_port = free_port(), free_port()
    config, log = folder / "autoscaling.json", folder / "head.log"
    config.write_text(json.dumps(autoscaling(f"127.0.0.1:{port}")))
    with log.open("w") as output:
        head = subprocess.Popen(
            [
                *(RAY, "start", "--block", "--head", "--num-cpus=0", "--num-gpus=0"),
                *("--node-ip-address=127.0.0.1", f"--port={port}", "--disable-usage-stats"),
                *("--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard_port}"),
                f"--dashboard-agent-listen-port={free_port()}",
                *("--object-store-memory=300000000", f"--autoscaling-config={config}"),
                # In this folder other Ray programs of this machine do not find and join it.
                f"--temp-dir={folder / 'ray'}",
            ],
            stdout=output,
            stderr=output,
            cwd=ROOT,  # where the job starts
            env=os.environ
            | {
                "RAY_FAKE_CLUSTER": "1",
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
                "RAY_SCHEDULER_EVENTS": "0",  # this script says when machines come and go
                # Ray Train looks for its actors there, and not for what else runs on this machine.
                "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard_port}",
                # A job's `python` is the one that runs this script.
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
            },
        )
    try:
        deadline = time.monotonic() + START_SECONDS
        while "Ray runtime started" not in log.read_text():
            if head.poll() is not None or time.monotonic() > deadline:
                sys.exit(f"the head did not start:\n{log.read_text()}")
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard_port}"
    finally:
        for pid in [*descendants(head.pid), head.pid]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        head.wait()


def wait_for_agent(dashboard: str) -> None:
    """Wait until the head accepts jobs: it refuses them for some seconds after its start."""
    from ray.job_submission import JobSubmissionClient

    client, deadline = JobSubmissionClient(dashboard), time.monotonic() + START_SECONDS
    while True:
        try:
            client.submit_job(entrypoint="true")
        except RuntimeError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.5)
        else:
            return


def autoscaling(address: str) -> dict[str, object]:
    """Return the autoscaling configuration of `ray start`; its machines are local processes."""
    maps = ("auth", "docker", "file_mounts")
    lists = (
        *("initialization_commands", "setup_commands", "head_setup_commands"),
        *("worker_setup_commands", "head_start_ray_commands", "worker_start_ray_commands"),
        *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
    )
    head = "ray.head.default"  # the name that this provider gives the head
    return {
        "cluster_name": "demo",
        "max_workers": WORKERS,
        "idle_timeout_minutes": IDLE_MINUTES,
        "upscaling_speed": 100,
        "provider": {
            "type": "fake_multinode",
            "gcs_address": address,
            "launch_multiple": True,
            # All nodes have one address, and nothing is set up on them.
            "use_node_id_as_ip": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        "head_node_type": head,
        "available_node_types": {
            head: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": CPUS, "object_store_memory": 200_000_000},
                "node_config": {},
                "min_workers": 0,
                "max_workers": WORKERS,
            },
        },
        "file_mounts_sync_continuously": False,
        **{name: {} for name in maps},
        **{name: [] for name in lists},
    }


def descendants(pid: int) -> list[int]:
    """List the ids of all descendants of a process."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True)
    parents = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    found = [pid]
    for above in found:
        found += [child for child, parent in parents if parent == above]
    return found[1:]


def free_port() -> int:
    """Return a free TCP port of this machine."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def say(line: str) -> None:
    """Print a line with the time."""
    print(f"[cluster {time.strftime('%H:%M:%S')}] {line}", flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the head ends with it
    sys.exit(main(sys.argv[1:]))
