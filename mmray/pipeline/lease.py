"""Leases: one process at a time makes a stage, on any file system and without a server.

A process writes a claim, a small file below `leases/`. It works once no other claim is held, and
renews its own while it works. A claim that was not renewed for a while is void: its process ended.

Two processes that claim at once are told apart by two rules. One that lists the claims after
writing its own, and sees no other held, holds its own and lists them again; it gives way if it then
sees an older claim. Of two that hold, the younger sees the older: it listed after it held, and the
older had written its claim by then, or else it would have seen the younger hold, and waited.
"""

import _thread
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.progress import announce

RENEW = 10.0  # seconds between two renewals of a claim
VOID = 60.0  # seconds after which a claim that was not renewed is void
POLL = 0.5  # seconds between two looks at the claims of others, at first
_SLOWEST = 5.0


@contextmanager
def lease(storage: Folder, name: str, *, done: Callable[[], bool]) -> Iterator[bool]:
    """Wait until this process is the only one that works on `name`, or until the work is done.

    Yields whether there is work left. If this process stands still for longer than `VOID`, and
    another takes the work over meanwhile, this one is interrupted as by SIGTERM when it wakes.

    Parameters
    ----------
    storage : that all processes share
    name : of the work, such as the name of a stage's folder
    done : tells whether the work is done; asked now and then while another process works
    """
    claim = _Claim(storage / "leases" / name, name)
    try:
        if claim.wait(done):
            with claim.renewed():
                yield True
        else:
            yield False
    finally:
        claim.withdraw()


class _Claim:
    """The claim of this process on some work."""

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.what = folder, name.rpartition("-")[0] or name
        self.file = f"{secrets.token_hex(8)}.json"
        self.about = {"since": time.time(), "host": socket.gethostname(), **_process(os.getpid())}

    def write(self, *, held: bool) -> None:
        self.folder.write(self.file, json.dumps({**self.about, "held": held}).encode())

    def withdraw(self) -> None:
        with suppress(OSError):
            self.folder.delete(self.file)

    def wait(self, done: Callable[[], bool]) -> bool:
        """Wait until the claim is held, or the work done; return whether it is held."""
        told, pause, written = "", POLL, 0.0
        while True:
            if done():
                return False
            if time.monotonic() - written > RENEW:
                self.write(held=False)
                written = time.monotonic()
            others = self.others()
            if not any(other["held"] for other in others):
                self.write(held=True)
                others = self.others()
                if not any(self.is_younger_than(other) for other in others):
                    return True
                self.write(held=False)
            holder = next((other for other in others if other["held"]), None)
            if holder and told != holder["file"]:
                told = holder["file"]
                announce(f"{self.what}: being made by {_named(holder)}; waiting for it")
            time.sleep(pause)
            pause = min(1.5 * pause, _SLOWEST)

    def is_younger_than(self, other: Mapping[str, Any]) -> bool:
        return (other["since"], other["file"]) < (self.about["since"], self.file)

    def others(self) -> list[dict[str, Any]]:
        """List the valid claims of other processes, and delete those that are void."""
        times, valid = self.folder.times(), []
        now = times.get(self.file, time.time())  # by the clock that dates the others, too
        for file, written in times.items():
            if file == self.file:
                continue
            with suppress(FileNotFoundError):  # it was withdrawn meanwhile
                other = _read_claim(self.folder.read(file)) | {"file": file}
                if now - written > VOID or _gone(other):
                    self.folder.delete(file)
                else:
                    valid.append(other)
        return valid

    @contextmanager
    def renewed(self) -> Iterator[None]:
        """Renew the claim from a thread while the block runs."""
        ended = threading.Event()

        def renew() -> None:
            renewed = time.monotonic()
            while not ended.wait(RENEW):
                # A disk that is full, a network that fails: try again.
                with suppress(OSError, InputError):
                    lost = not self.folder.has(self.file)
                    if not lost:
                        self.write(held=True)
                        # It may have been deleted just before, and so have been written anew.
                        late, renewed = time.monotonic() - renewed > VOID, time.monotonic()
                        lost = late and any(other["held"] for other in self.others())
                    if lost:
                        announce(
                            f"{self.what}: this process stood still for over {VOID:.0f} s, and "
                            "another has taken over; the same command waits for it"
                        )
                        # Not SIGINT, which a shell lets commands in the background ignore.
                        _thread.interrupt_main(signal.SIGTERM)
                        return

        thread = threading.Thread(target=renew, daemon=True, name=f"lease of {self.what}")
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _read_claim(content: bytes) -> dict[str, Any]:
    """Parse a claim; one that a power cut damaged is held by a process that is not known."""
    unknown = {"pid": "unknown", "host": "unknown", "since": 0.0, "held": True}
    try:
        claim = json.loads(content)
    except ValueError:
        return unknown
    return unknown | (claim if isinstance(claim, dict) else {})


def _named(claim: Mapping[str, Any]) -> str:
    since = datetime.fromtimestamp(claim["since"]).strftime("%H:%M")
    return f"pid {claim['pid']} on host {claim['host']} since {since}"


def _process(pid: int) -> dict[str, Any]:
    """Identify a process of this machine, as far as the system tells: a pid may be used again."""
    about: dict[str, Any] = {"pid": pid}
    with suppress(OSError, IndexError):
        stat = Path(f"/proc/{pid}/stat").read_text()
        about["started"] = stat.rpartition(")")[2].split()[19]
        about["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        about["pids"] = str(Path("/proc/self/ns/pid").readlink())
    return about


def _gone(claim: Mapping[str, Any]) -> bool:
    """Tell whether a claim is of a process of this machine that has ended."""
    here = _process(os.getpid())
    if "pids" not in here or any(claim.get(key) != here[key] for key in ("boot", "pids")):
        return False
    return bool(_process(claim["pid"]).get("started") != claim.get("started"))
