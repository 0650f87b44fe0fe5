"""Run a job in environments that are small, odd or full: it ends well, or it says why not.

    python -m tests.environments               # a table; exit status 1 where one ends otherwise
    python -m tests.environments --only locale

A job ends well with status 0 and a table; it says why with status 1 or 2, one sentence and no
traceback. Some environments need root (a mount of their own) and are said to be left out without.
Not collected by pytest.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
SECONDS = 600  # of one job
MINING = shlex.split(
    "--mining.graph-k 6 --mining.component all --mining.selection all --mining.anchors 12 "
    "--mining.positive-k 6 --mining.negative-k 12"
)


@dataclass(frozen=True, kw_only=True)
class Environment:
    """How a job is started: what stands before its command, and its variables."""

    before: tuple[str, ...] = ()
    variables: Mapping[str, str | None] = field(default_factory=dict)
    storage: str = "runs"
    features: str = "x.npy"
    disk: str = ""  # size of a file system for the storage alone, made larger for a second run
    ray: bool = False  # whether another Ray runs on the machine


LONG = "/".join(["a folder with a long name"] * 8)[:200]
ENVIRONMENTS = {
    "as it is": Environment(),
    "64 MB of /dev/shm": Environment(
        before=(
            *("unshare", "-m", "sh", "-c"),
            'mount -t tmpfs -o size=64m tmpfs /dev/shm && exec "$@"',
            "sh",
        )
    ),
    "256 open files": Environment(before=("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")),
    "no HOME": Environment(variables={"HOME": None}),
    "a HOME that cannot be written": Environment(variables={"HOME": "/proc"}),
    "another user": Environment(
        before=("setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"),
        variables={"HOME": "/", "NUMBA_CACHE_DIR": "/nowhere"},
    ),
    "locale C": Environment(
        variables={"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        storage="Füße 日本",
        features="é.npy",
    ),
    "one CPU": Environment(before=("taskset", "-c", "0")),
    "another Ray on the machine": Environment(ray=True),
    "a storage path of 200 characters": Environment(storage=LONG),
    "a TMPDIR of 120 characters": Environment(variables={"TMPDIR": "long" * 30}),
    "a storage of 100 kB": Environment(disk="100k"),
    "a storage of 1 MB": Environment(disk="1m"),
    "a storage of 20 inodes": Environment(disk="64m,nr_inodes=20"),
}


@dataclass(frozen=True)
class Outcome:
    """How a job ended: its status, its sentence if it has one, and whether this is right."""

    status: int
    said: str
    right: bool
    seconds: float


def outcome_of(environment: Environment, folder: Path) -> list[Outcome]:
    """Run the job, and where a disk was too small run it again after room was made."""
    storage = folder / environment.storage
    np.save(folder / environment.features, _features())
    command = [*environment.before, sys.executable, str(ROOT / "jobs" / "mine.py")]
    command += ["--features", str(folder / environment.features), "--storage", str(storage)]
    with _disk(storage, environment.disk), _another_ray(environment.ray, folder):
        outcomes = [_run([*command, *MINING], environment, folder)]
        if environment.disk:
            subprocess.run(
                ["mount", "-o", "remount,size=200m,nr_inodes=10000", str(storage)], check=True
            )
            outcomes.append(_run([*command, *MINING], environment, folder))
    return outcomes


def _features() -> np.ndarray:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((12, 32))
    return (centres.repeat(10, 0) + 0.3 * rng.standard_normal((120, 32))).astype(np.float32)


def _run(command: list[str], environment: Environment, folder: Path) -> Outcome:
    variables = {**os.environ, "RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    for name, value in environment.variables.items():
        if value is None:
            variables.pop(name, None)
            continue
        if name == "TMPDIR":
            value = str(folder / value)
            Path(value).mkdir(exist_ok=True)
        variables[name] = value
    start = time.monotonic()
    try:
        done = subprocess.run(
            command, env=variables, cwd=folder, capture_output=True, timeout=SECONDS, check=False
        )
    except subprocess.TimeoutExpired:
        return Outcome(-1, "it did not end", False, SECONDS)
    said, told = done.stderr.decode(errors="replace"), done.stdout.decode(errors="replace")
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    sentence = errors[-1] if errors else "" if done.returncode == 0 else said[-300:]
    right = (done.returncode == 0 and "| anchors" in told.replace("  ", " ")) or (
        done.returncode in (1, 2) and len(errors) == 1
    )
    return Outcome(
        done.returncode, sentence, right and "Traceback" not in said, time.monotonic() - start
    )


@contextmanager
def _disk(storage: Path, size: str) -> Iterator[None]:
    """Mount a file system of its own for the storage, if a size is given."""
    if not size:
        yield
        return
    storage.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", storage], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", storage], check=False)


@contextmanager
def _another_ray(wanted: bool, folder: Path) -> Iterator[None]:
    """Run a Ray that is another user's: with its own temporary folder, so that nobody joins it."""
    if not wanted:
        yield
        return
    ray = Path(sys.executable).with_name("ray")
    command = [ray, "start", "--head", "--port=0", "--num-cpus=1", "--block"]
    command += [
        f"--temp-dir={folder / 'r'}",
        "--include-dashboard=false",
        "--ray-client-server-port=0",
    ]
    other = subprocess.Popen(
        command,
        env={**os.environ, "RAY_AUTH_MODE": "disabled"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    time.sleep(15)
    try:
        yield
    finally:
        os.killpg(other.pid, 15)
        other.wait(60)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="environments whose names have this in them")
    only = parser.parse_args().only
    wrong = 0
    print("| environment | status | seconds | what was said |\n|---|---:|---:|---|", flush=True)
    for name, environment in ENVIRONMENTS.items():
        if only not in name:
            continue
        if environment.before and shutil.which(environment.before[0]) is None:
            print(f"| {name} | left out | | no {environment.before[0]} |", flush=True)
            continue
        with tempfile.TemporaryDirectory(prefix="env-", ignore_cleanup_errors=True) as place:
            folder = Path(place)
            folder.chmod(0o777)
            try:
                outcomes = outcome_of(environment, folder)
            except subprocess.CalledProcessError as error:
                print(f"| {name} | left out | | {error} |", flush=True)
                continue
        for number, each in enumerate(outcomes):
            again = ", after room was made" * bool(number)
            mark = "" if each.right else "WRONG: "
            wrong += not each.right
            said = each.said.replace("|", "\\|").replace("\n", " ").replace(place, "…")
            print(
                f"| {name}{again} | {each.status} | {each.seconds:.0f} | {mark}{said} |", flush=True
            )
    return min(wrong, 1)


if __name__ == "__main__":
    sys.exit(main())
