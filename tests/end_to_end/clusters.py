"""Nodes of Ray in processes of their own, to be killed on purpose."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# A node whose processes are gone refuses connections: asked often, it is missed after seconds.
# Nodes that are only slow are given as long as ever.
OFTEN = {"RAY_health_check_initial_delay_ms": "500", "RAY_health_check_period_ms": "500"}


def start_node(*arguments: object, log: Path, **env: str) -> subprocess.Popen[bytes]:
    """`ray start --block` with these arguments and environment; returns when the node runs."""
    ray = Path(sys.executable).with_name("ray")
    with log.open("w") as output:
        node = subprocess.Popen(
            [ray, "start", "--block", *map(str, arguments)],
            stdout=output,
            stderr=output,
            env=os.environ | OFTEN | env,
        )
    try:
        wait_for(lambda: "Ray runtime started" in log.read_text(), node)
    except BaseException:
        stop(node)
        raise
    return node


@contextmanager
def running_head(
    folder: Path, *, port: int, cpus: int, gpus: int = 0, dashboard: bool = False
) -> Iterator[str]:
    """A head in its own process, ended with all it started; gives its address.

    Without its dashboard Ray Train does not see that a driver was killed, and keeps what it had.
    """
    # There no other Ray program of this machine finds and joins it. Paths of sockets must be short.
    place = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    head = start_node(
        *("--head", f"--port={port}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"),
        *(f"--dashboard-port={port + 1}", f"--temp-dir={place}"),
        f"--include-dashboard={str(dashboard).lower()}",
        *("--disable-usage-stats", "--object-store-memory", 300_000_000),
        log=folder / "head",
        # Other Rays run beside it: Ray Train is not to look for its own actors there.
        RAY_API_SERVER_ADDRESS=f"http://127.0.0.1:{port + 1}",
        # `python` of a job that is submitted is the one that runs the tests.
        PATH=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),
    )
    try:
        yield f"127.0.0.1:{port}"
    finally:
        stop(head)
        shutil.rmtree(place, ignore_errors=True)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def wait_for(
    condition: Callable[[], bool], process: subprocess.Popen[bytes], seconds: float = 120
) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, f"ended with {process.poll()}"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def stop(node: subprocess.Popen[bytes]) -> None:
    """End a node and all it started; asked kindly, it would take half a minute."""
    for pid in [*descendants(node.pid), node.pid]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    node.wait()


def vanish(node: subprocess.Popen[bytes]) -> None:
    """Kill a node's raylet, as when its machine is switched off."""
    (raylet,) = [pid for pid in descendants(node.pid) if "raylet/raylet" in command_of(pid)]
    os.kill(raylet, signal.SIGKILL)


def processes(name: str) -> list[int]:
    """Pids of this process's descendants whose command line begins with a name."""
    found = []
    for pid in descendants(os.getpid()):
        with suppress(OSError):
            if command_of(pid).startswith(name):
                found.append(pid)
    return found


def command_of(pid: int) -> str:
    text = Path(f"/proc/{pid}/cmdline").read_bytes()
    return text.replace(b"\0", b" ").decode(errors="replace")


def listening(pid: int) -> set[str]:
    """The addresses of IP at which a process listens by TCP: :: and 0.0.0.0 are all addresses."""
    sockets = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            sockets.add(str(link.readlink()))
    found = set()
    for family, table in ((socket.AF_INET, "tcp"), (socket.AF_INET6, "tcp6")):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                words = bytes.fromhex(local.partition(":")[0])  # of four bytes, the last one first
                address = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
                found.add(socket.inet_ntop(family, address).removeprefix("::ffff:"))
    return found


def descendants(pid: int) -> list[int]:
    found, frontier = [], [pid]
    while frontier:
        parent = frontier.pop()
        with suppress(OSError):
            text = Path(f"/proc/{parent}/task/{parent}/children").read_text()
            frontier += map(int, text.split())
            found += map(int, text.split())
    return found
