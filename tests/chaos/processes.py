"""The processes of a job with all that Ray starts for it, to be killed or stopped on purpose."""

import ctypes
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

STOPPED = 20.0  # seconds between SIGSTOP and SIGCONT
_SET_CHILD_SUBREAPER = 36  # of prctl

# How the command line of each looks; None: the job itself, whose pid is known.
VICTIMS = {
    "driver": None,
    "raylet": "raylet/raylet",
    "gcs": "gcs_server",
    "actor": "ray::Map",  # of Ray Data, or a task of it
    "trainer": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
}


def adopt_orphans() -> None:
    """Become the parent of what a killed descendant leaves: nothing of a round is lost sight of."""
    ctypes.CDLL(None).prctl(_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def find(victim: str, driver: int) -> int | None:
    """Return the pid of a victim, of the actors the one that was started last."""
    pattern = VICTIMS[victim]
    if pattern is None:
        return driver if _lives(driver) else None
    found = [pid for pid in descendants() if pattern in _command_of(pid)]
    return max(found, default=None)


def disturb(pid: int, signal_name: str) -> None:
    """Send a signal; a process that is stopped goes on after `STOPPED` seconds."""
    with suppress(ProcessLookupError):
        os.kill(pid, signal.Signals[f"SIG{signal_name}"])
        if signal_name == "STOP":
            time.sleep(STOPPED)
            os.kill(pid, signal.SIGCONT)


def kill_descendants() -> None:
    """End all that was started below this process, and what that starts meanwhile."""
    deadline = time.monotonic() + 30
    while living := [pid for pid in descendants() if _lives(pid)]:
        for pid in living:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"cannot be killed: {living}"
        time.sleep(0.1)


def descendants() -> list[int]:
    """Return the pids of all processes below this one."""
    found, frontier = list[int](), [os.getpid()]
    while frontier:
        parent = frontier.pop()
        for thread in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                children = [int(pid) for pid in thread.read_text().split()]
                frontier += children
                found += children
    return found


def _lives(pid: int) -> bool:
    """Tell whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


def _command_of(pid: int) -> str:
    with suppress(OSError):
        text = Path(f"/proc/{pid}/cmdline").read_bytes()
        return text.replace(b"\0", b" ").decode(errors="replace")
    return ""
