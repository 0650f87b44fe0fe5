"""Searches of many callers at once: one thread describes and compares what waits together.

k results, d dimensions.

The network and the matrix product share the cores among themselves; two calls side by side would
only wait for each other. So one thread takes whatever waits, up to some searches, in one forward
pass and one product, which reads the vectors once for all of them.
"""

import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from queue import SimpleQueue

import numpy as np
import torch

from mmray.descriptors.settings import Preprocessing
from mmray.mining.knn.results import Neighbors
from mmray.serving.encoder import ImageEncoder
from mmray.serving.search_index import SearchIndex
from mmray.system.arrays import Features, Pixels

_TOGETHER = 16  # searches that share a pass at most: the first of them wait for the last

Found = list[Neighbors | None]  # of each index; None: it does not hold the photo


@dataclass(frozen=True, eq=False, kw_only=True)
class LiveIndex:
    """An index with the model that its images were described by.

    Attributes
    ----------
    probes : cells of a compressed index to search
    """

    name: str
    index: SearchIndex
    encoder: ImageEncoder
    probes: int

    @property
    def frame(self) -> Preprocessing:
        """Return the preprocessing of queries: the size is that of the images of the index."""
        side: int | None = self.index.about["longest_side"]
        return self.encoder.frame(side)


@dataclass(frozen=True, eq=False)
class Query:
    """A search of each index by decoded pixels, or by the row that a photo has there.

    Attributes
    ----------
    queries : for each index the pixels that its network is given, or a row of its vectors; None:
        it has no such photo
    k : number of results
    """

    queries: Sequence[Pixels | int | None]
    k: int
    found: "Future[Found]" = field(default_factory=Future)


class Searcher:
    """The thread that searches the indexes; `submit` returns at once.

    Parameters
    ----------
    cores : that the network and the product may use. Others are left to what decodes: a thread of
        theirs that has no core holds up the rest.
    """

    def __init__(self, indexes: Sequence[LiveIndex], cores: int) -> None:
        self.indexes, self._cores = indexes, cores
        self._waiting: SimpleQueue[Query | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="searches", daemon=True)
        self._thread.start()

    def submit(self, query: Query) -> "Future[Found]":
        """Put a query behind those that wait, and return its future result."""
        self._waiting.put(query)
        return query.found

    def warm_up(self) -> None:
        """Search once by every network: the first call compiles and allocates."""
        pixels = np.zeros((96, 128, 3), np.uint8)
        for k in (1, 2):
            self.submit(Query([each.frame.cropped(pixels) for each in self.indexes], k)).result()

    def close(self) -> None:
        """End the thread once it has searched what waits."""
        self._waiting.put(None)
        self._thread.join()

    def _run(self) -> None:
        torch.set_num_threads(min(torch.get_num_threads(), self._cores))  # of this thread
        while (query := self._waiting.get()) is not None:
            together, ends = [query], False
            while len(together) < _TOGETHER and not self._waiting.empty():
                another = self._waiting.get()
                if another is None:
                    ends = True
                    break
                together.append(another)
            self._answer([each for each in together if each.found.set_running_or_notify_cancel()])
            if ends:
                return

    def _answer(self, together: Sequence[Query]) -> None:
        """Search for some queries at once, and set their results."""
        try:
            results: list[Found] = [[] for _ in together]
            for place, live in enumerate(self.indexes):
                found = _found(live, [query.queries[place] for query in together], together)
                for result, neighbors in zip(results, found, strict=True):
                    result.append(neighbors)
        except Exception as error:
            if len(together) > 1:  # only the query at fault is to fail
                for query in together:
                    self._answer([query])
                return
            together[0].found.set_exception(error)
            return
        for query, result in zip(together, results, strict=True):
            query.found.set_result(result)


def _found(
    live: LiveIndex, asked: Sequence[Pixels | int | None], queries: Sequence[Query]
) -> list[Neighbors | None]:
    """Search an index for the pixels or rows that are asked for; None for those without either."""
    vectors = live.index.vectors
    descriptors: Features = np.empty((len(asked), vectors.shape[1]), np.float32)
    shown = [place for place, each in enumerate(asked) if isinstance(each, np.ndarray)]
    if shown:
        pixels = [each for each in asked if isinstance(each, np.ndarray)]
        descriptors[shown] = live.encoder.describe(pixels)
    for place, each in enumerate(asked):
        if isinstance(each, int):
            descriptors[place] = vectors[each]
    found: list[Neighbors | None] = [None] * len(asked)
    of_k: dict[int, list[int]] = {}
    for place, each in enumerate(asked):
        if each is not None:
            of_k.setdefault(queries[place].k, []).append(place)
    for k, places in of_k.items():
        near = live.index.nearest(descriptors[places], k, probes=live.probes)
        for row, place in enumerate(places):
            found[place] = Neighbors(near.ids[row : row + 1], near.similarities[row : row + 1])
    return found
