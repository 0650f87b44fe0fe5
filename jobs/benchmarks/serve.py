"""`mmray serve` under load: how long searches take, and whether its memory grows.

n rows, d dimensions.
"""

import os
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from http.client import HTTPConnection, HTTPException
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from mmray.descriptors.settings import Preprocessing
from mmray.descriptors.weights import build, save
from mmray.images.collection import Collection, ImageFile
from mmray.pipeline.named_indexes import set_current_index
from mmray.pipeline.stage import StageFolder
from mmray.serving.catalog import Catalog
from mmray.serving.search_index import ABOUT, IMAGES, MODEL, write_vectors
from mmray.system.folder import Folder
from mmray.system.formats import write_json
from mmray.system.processes import of_module

_PAGE, _TICKS = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_CLK_TCK")
HEAD = (
    *("searches by", "clients", "answers", "a second", "p50, ms", "p95", "p99", "longest"),
    *("CPU ms an answer", "errors", "MB before", "MB after"),
)


def write_random_index(storage: Folder, n: int, longest_side: int) -> None:
    """Write an index of random vectors, whose images are not there, with a pre-trained network."""
    stage = StageFolder.of(storage, "index", n, longest_side)
    network, frame = build("efficientnet_lite0", pooling="mac"), Preprocessing(longest_side)
    save(network, stage.folder / MODEL, preprocessing=frame)
    images = Collection.of([ImageFile(uri=f"/none/{i}.jpg", name=f"{i}.jpg") for i in range(n)])
    catalog = Catalog.empty().merged([("/none", images)], retry=False)
    catalog, origins = catalog.with_descriptors(np.arange(n), [None] * n)
    rows = np.random.default_rng(0).standard_normal((n, network.dim), np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    write_vectors(stage.folder, origins, old=rows[:0], new=rows, whiten=lambda new: new)
    stage.folder.write_table(IMAGES, catalog.table)
    write_json(stage.folder, ABOUT, {"longest_side": longest_side})
    stage.finish({"images": n, "kind": "flat"})
    set_current_index(storage, "mmray", stage)


@dataclass
class Load:
    """Clients that ask again as soon as they are answered, each on a connection of its own.

    Attributes
    ----------
    bodies : photos that are sent in turn; empty: photos of the index are asked for
    times : seconds of each answer of status 200
    errors : other answers, and connections that broke
    """

    host: str
    bodies: Sequence[bytes]
    items: int
    times: list[float] = field(default_factory=list)
    errors: int = 0

    def run(self, clients: int, seconds: float) -> None:
        """Ask for so long; the counts are those of all clients."""
        end, numbers = time.perf_counter() + seconds, count()
        ask = partial(self._ask, end, numbers)
        threads = [threading.Thread(target=ask) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def _ask(self, end: float, numbers: "count[int]") -> None:
        with closing(HTTPConnection(self.host, timeout=60)) as connection:
            while (start := time.perf_counter()) < end:
                number = next(numbers)
                try:
                    if self.bodies:
                        body = self.bodies[number % len(self.bodies)]
                        connection.request("POST", "/api/search", body)
                    else:
                        connection.request("GET", f"/api/similar/{number * 7919 % self.items}")
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, HTTPException):
                    connection.close()
                    self.errors += 1
                    continue
                if answer.status == 200:
                    self.times.append(time.perf_counter() - start)
                else:
                    self.errors += 1


def measure_serving(
    storage: str, bodies: Sequence[bytes], items: int, *, clients: Sequence[int], seconds: float
) -> list[tuple[str, ...]]:
    """Start the server, ask it as so many clients by photos and by rows, and return a row each."""
    command = of_module("mmray") | {"stdout": subprocess.PIPE, "text": True}
    command["args"] += ["serve", "--storage", storage, "--port", "0"]
    rows = []
    with subprocess.Popen(**command) as server:
        try:
            assert server.stdout is not None
            host = urlsplit(server.stdout.readline().strip()).netloc
            for by, sent in (("photo", bodies), ("row", ())):
                Load(host, sent, items).run(max(clients), 2)  # all buffers have grown
                for several in clients:
                    before, spent = _megabytes(server.pid), _cpu_seconds(server.pid)
                    load = Load(host, sent, items)
                    load.run(several, seconds)
                    spent = (_cpu_seconds(server.pid) - spent) / max(1, len(load.times)) * 1e3
                    milliseconds = np.percentile(load.times, (50, 95, 99, 100)) * 1e3
                    answers = len(load.times)
                    rows.append(
                        (
                            *(by, str(several), str(answers), f"{answers / seconds:.1f}"),
                            *(f"{each:.0f}" for each in milliseconds),
                            *(
                                f"{spent:.0f}",
                                str(load.errors),
                                f"{before:.0f}",
                                f"{_megabytes(server.pid):.0f}",
                            ),
                        )
                    )
        finally:
            server.terminate()
    return rows


def _megabytes(pid: int) -> float:
    """Return the resident memory of a process and its children, on Linux."""
    return sum(int(each.split()[1]) for each in _read(pid, "statm")) * _PAGE / 1e6


def _cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process and its children so far, on Linux."""
    # After the name of the program, which may have spaces: the 14th and 15th of all fields.
    ticks = [each.rpartition(")")[2].split()[11:13] for each in _read(pid, "stat")]
    return sum(int(user) + int(system) for user, system in ticks) / _TICKS


def _read(pid: int, file: str) -> list[str]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [Path(f"/proc/{each}/{file}").read_text() for each in (str(pid), *children)]
