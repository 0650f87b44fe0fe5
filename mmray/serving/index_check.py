"""Reading an index of faiss in a process of its own, which damaged bytes may end without harm.

Indexes that earlier versions wrote have no checksum, and faiss crashes on some damaged ones.
"""

import resource
import subprocess
import sys
from pathlib import Path

from mmray.system.processes import of_module

_SECONDS = 300
_ROOM = 8  # bytes of memory that a byte of an index may take, beside _BESIDE
_BESIDE = 1 << 32


def check_restorable(stored: bytes) -> None:
    """Raise ValueError where faiss cannot restore an index from bytes, or crashes on them."""
    command = of_module(__spec__.name)
    try:
        done = subprocess.run(**command, input=stored, capture_output=True, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise ValueError(f"faiss did not read it in {_SECONDS} seconds") from error
    if done.returncode != 0:
        raise ValueError(f"faiss cannot read it (status {done.returncode})")


def _main() -> None:
    import numpy as np  # in this process alone

    from mmray.mining.knn.faiss_library import faiss

    stored = np.frombuffer(sys.stdin.buffer.read(), np.uint8)
    with Path("/proc/self/statm").open() as file:
        present = int(file.read().split()[0]) * resource.getpagesize()
    most = present + _BESIDE + _ROOM * len(stored)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    index = faiss.deserialize_index(stored)
    index.search(np.zeros((1, index.d), np.float32), 1)


if __name__ == "__main__":
    _main()
