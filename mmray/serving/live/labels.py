"""Labels of results, right or wrong, kept as a labelled set that `mmray evaluate` measures on.

A folder: `images`, the photos that were labelled and those that were searched with, each named by
the digest of its content, and `gnd_NAME.pkl`, a ground truth in the layout of Oxford (see
`evaluation.benchmarks.oxford`). For each query, what was called right is to be found, what was
called wrong counts against a ranking, and all other images are junk: nobody has looked at them.
"""

import hashlib
import pickle
import threading
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from mmray.evaluation.benchmarks.oxford import Benchmark, load_benchmark
from mmray.images.image_formats import MEDIA_TYPES, format_of
from mmray.system.arrays import Box
from mmray.system.errors import InputError
from mmray.system.folder import Folder

IMAGES = "images"


@dataclass(frozen=True)
class Judged:
    """A query of the set with its labels; images by their names in the folder.

    Attributes
    ----------
    box : the part that was searched with, of the pixels as they are stored; None: the whole
    """

    image: str
    box: Box | None
    right: frozenset[str] = frozenset()
    wrong: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Labels:
    """All queries of a set, and the images of its database in their order."""

    images: tuple[str, ...] = ()
    queries: tuple[Judged, ...] = field(default=())

    def merged(self, query: Judged, cleared: frozenset[str] = frozenset()) -> "Labels":
        """Return the labels with those of one more query, which go before its earlier ones.

        Parameters
        ----------
        query : whose own image is left out of what it found
        cleared : images whose earlier label of this query is taken back
        """
        itself = frozenset([query.image])
        right, wrong = query.right - itself, query.wrong - itself
        others = []
        for known in self.queries:
            if (known.image, known.box) != (query.image, query.box):
                others.append(known)
                continue
            changed = right | wrong | cleared
            right, wrong = right | (known.right - changed), wrong | (known.wrong - changed)
        merged = (*others, replace(query, right=right, wrong=wrong)) if right else tuple(others)
        used = {name for each in merged for name in each.right | each.wrong}
        images = [name for name in self.images if name in used]
        return Labels((*images, *sorted(used.difference(images))), merged)

    def has(self, query: Judged) -> bool:
        """Tell whether there are labels of the same image and box."""
        return (query.image, query.box) in {(each.image, each.box) for each in self.queries}

    def ground_truth(self) -> bytes:
        """Return the labels as the content of a `gnd_*.pkl`."""
        row = {name: place for place, name in enumerate(self.images)}
        content = {
            "imlist": list(self.images),
            "qimlist": [query.image for query in self.queries],
            "gnd": [
                {
                    "bbx": None if query.box is None else list(query.box),
                    "ok": sorted(row[name] for name in query.right),
                    "junk": sorted(row[n] for n in row.keys() - query.right - query.wrong),
                }
                for query in self.queries
            ],
        }
        return pickle.dumps(content, protocol=4)

    @classmethod
    def of(cls, benchmark: Benchmark) -> "Labels":
        """Restore the labels from a ground truth."""
        names = benchmark.images
        queries = []
        for query in benchmark.queries:
            right = frozenset(names[row] for row in query.positives)
            junk = frozenset(names[row] for row in query.junk)
            wrong = frozenset(names) - right - junk
            queries.append(Judged(query.image, query.box, right, wrong))
        return cls(tuple(names), tuple(queries))


class LabelledPhotos:
    """A labelled set in a folder, to which the labels of queries are added one at a time.

    Only one process may write to it. Files appear whole: first images, then the ground truth.
    """

    def __init__(self, folder: Folder, name: str) -> None:
        self.folder, self.file = folder, f"gnd_{name}.pkl"
        self._lock = threading.Lock()

    @property
    def images(self) -> Folder:
        return self.folder / IMAGES

    @property
    def ground_truth(self) -> str:
        """Path or URI of the ground truth."""
        return self.folder.location(self.file)

    def read(self) -> Labels:
        """Read the labels so far.

        Raises
        ------
        InputError
            The ground truth is damaged, or an image that it names is missing.
        """
        if not self.folder.has(self.file):
            return Labels()
        return Labels.of(load_benchmark(self.ground_truth, self.images.names()))

    def add(
        self,
        query: bytes,
        box: Box | None,
        *,
        right: Iterable[bytes],
        wrong: Iterable[bytes],
        cleared: Iterable[bytes] = (),
    ) -> Labels:
        """Add the labels of a query, which go before its earlier ones, and return all.

        Parameters
        ----------
        query : content of the image file that was searched with
        box : as of `Judged`
        right, wrong : contents of the images that were labelled
        cleared : contents of those whose label is taken back

        Raises
        ------
        InputError
            A file is not an image, nothing is right of what was found, or `read` raises it.
        """
        with self._lock:
            before = self.read()
            known = set(self.images.names())
            judged = Judged(
                self._kept(query, known),
                box,
                frozenset(self._kept(image, known) for image in right),
                frozenset(self._kept(image, known) for image in wrong),
            )
            labels = before.merged(judged, frozenset(name_of(image) for image in cleared))
            if (judged.right or judged.wrong) and not labels.has(judged):
                raise InputError(
                    "label at least one result other than the query as right: else there is "
                    "nothing to be found"
                )
            if labels.queries:
                self.folder.write(self.file, labels.ground_truth())
            elif before.queries:
                self.folder.delete(self.file)
            return labels

    def _kept(self, content: bytes, known: set[str]) -> str:
        """Write an image that is not there yet, and return its name."""
        name = name_of(content)
        if name not in known:
            self.images.write(name, content)
            known.add(name)
        return name


def name_of(content: bytes) -> str:
    """Return the name of an image in the set: a digest of its content, and its suffix."""
    kind = format_of(content)
    if kind is None:
        raise InputError("not an image of a known format")
    return hashlib.sha256(content).hexdigest()[:20] + MEDIA_TYPES[kind][1]
