"""Parts of an environment: small disks, limits, users, another Ray."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

NOBODY = 65534
CGROUP = Path("/sys/fs/cgroup/memory")


@dataclass
class Disk:
    """A small disk of its own, in memory, that can be filled."""

    folder: Path
    size: str
    inodes: int

    @classmethod
    def mount(cls, folder: Path, *, size: str, inodes: int = 0, full: bool = False) -> "Disk":
        folder.mkdir(exist_ok=True)
        options = f"size={size},mode=777" + (f",nr_inodes={inodes}" if inodes else "")
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=True)
        disk = cls(folder, size, inodes)
        if full:
            disk.fill()
        return disk

    def fill(self) -> None:
        """Leave no room, or no inode where their number is limited."""
        with suppress(OSError):
            if not self.inodes:
                with (self.folder / "filler").open("wb", buffering=0) as file:
                    disk = os.statvfs(self.folder)
                    with suppress(OSError):  # at once: the job goes on meanwhile
                        os.posix_fallocate(file.fileno(), 0, disk.f_bavail * disk.f_bsize)
                    file.seek(0, os.SEEK_END)
                    while file.write(bytes(4096)):
                        pass
            else:
                (self.folder / "filler").mkdir()
                for number in range(self.inodes + 1):
                    (self.folder / "filler" / str(number)).touch()

    def make_room(self) -> None:
        subprocess.run(["rm", "-rf", self.folder / "filler"], check=True)


@dataclass
class RayBeside:
    """A Ray of somebody else on this machine."""

    process: subprocess.Popen[bytes]

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait(60)


def start_ray_beside(scratch: Path) -> RayBeside:
    """Start a Ray that the job finds as it would any on its machine: by the file in TMPDIR."""
    words = ["-m", "ray.scripts.scripts", "start", "--head", "--block", "--port=36399"]
    ports = ["--min-worker-port=36400", "--max-worker-port=36600", "--dashboard-port=36398"]
    more = ["--num-cpus=4", "--disable-usage-stats", "--include-dashboard=false"]
    with (scratch / "ray.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, *words, *ports, *more],
            stdout=log,
            stderr=log,
            env=os.environ | {"TMPDIR": str(scratch / "tmp")},
        )
    for _ in range(600):
        if b"Ray runtime started" in (scratch / "ray.log").read_bytes():
            return RayBeside(process)
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.1)
            break
    raise RuntimeError((scratch / "ray.log").read_text())


def cover_shm() -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", "/dev/shm"], check=True)


def nobody() -> tuple[str, ...]:
    """Words before a command that make it another user's, without any capability."""
    ids = (f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    return ("setpriv", *ids, "--inh-caps=-all", "--bounding-set=-all")


def reachable_interpreter() -> None:
    """Let other users run this Python where it lies in a folder that they cannot search."""
    base = Path(sys.base_prefix)
    closed = [folder for folder in base.parents if not folder.stat().st_mode & 1]
    if not closed:
        return
    kept = Path("/mnt")
    subprocess.run(["mount", "--bind", base, kept], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=755", "tmpfs", closed[-1]], check=True)
    base.mkdir(parents=True)
    subprocess.run(["mount", "--bind", kept, base], check=True)


@contextmanager
def memory_limit(size: str) -> Iterator[list[str]]:
    """Words before a command that bound the memory of it and of all its processes."""
    group = CGROUP / f"mmray-{os.getpid()}"
    group.mkdir()
    (group / "memory.limit_in_bytes").write_text(size)
    try:
        yield ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
    finally:
        with suppress(OSError):  # a process of Ray may still be ending
            group.rmdir()
