"""A labelled set: images paired with their ground truth, and the mAP of descriptors on it."""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from mmray.evaluation.benchmarks.classes import ClassSet, class_set
from mmray.evaluation.benchmarks.ground_truth import title
from mmray.evaluation.benchmarks.layouts import class_benchmark
from mmray.evaluation.benchmarks.oxford import Benchmark, load_benchmark
from mmray.evaluation.ranking import Query, mean_average_precision, rank
from mmray.images.collection import ImageFile
from mmray.images.sources import list_images
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Images with ground truth, for measuring only: nothing is learned from or chosen by it.

    Attributes
    ----------
    name : of its column in the table of results
    database : n images, in the order of the rows of the ground truth
    queries : q images, each with the box to search with
    ground_truth : q queries
    protocols : name -> the same queries under other rules; empty where there is one rule
    labels : the class of each image of the database, or None
    distractors : images ranked after the database's rows, relevant to no query
    complete : whether the numbers of images are the published ones
    """

    name: str = ""
    database: Sequence[ImageFile]
    queries: Sequence[ImageFile]
    ground_truth: Sequence[Query]
    protocols: Mapping[str, Sequence[Query]] = field(default_factory=dict)
    labels: Sequence[str] | None = None
    distractors: Sequence[ImageFile] = ()
    complete: bool = True

    @cached_property
    def items(self) -> list[ImageFile]:
        """List the m images to describe: the database and the queries, each once."""
        return list(dict.fromkeys([*self.database, *self.queries]))

    @cached_property
    def _places(self) -> tuple[Ids, Ids]:
        """Return the places in `items` of the database (n,) and of the queries (q,)."""
        place = {item: row for row, item in enumerate(self.items)}
        database, queries = (
            np.array([place[item] for item in part], np.int64)
            for part in (self.database, self.queries)
        )
        return database, queries

    def split(self, descriptors: Features) -> tuple[Features, Features]:
        """Split descriptors (m, d) of `items` into database (n, d) and queries (q, d)."""
        database, queries = self._places
        return descriptors[database], descriptors[queries]

    @property
    def own(self) -> Ids:
        """Return the row (q,) of each query itself where it is ignored, else -1."""
        rows = [-1 if query.itself is None else query.itself for query in self.ground_truth]
        return np.array(rows, np.int64)

    def without_boxes(self) -> "LabelledSet":
        """Return a copy whose queries are whole images."""
        whole = [dataclasses.replace(query, box=None) for query in self.queries]
        return dataclasses.replace(self, queries=whole)

    def mean_average_precision(self, descriptors: Features) -> float:
        """Return the mAP, in [0, 1], of descriptors (m, d) of `items`, without distractors."""
        return mean_average_precision(rank(*self.split(descriptors)), self.ground_truth)[0]

    def digest(self) -> str:
        """Return a hash of the ground truth and of the places of the images."""
        rules = {"": self.ground_truth, **self.protocols}
        found = {
            name: [(q.positives.tolist(), q.junk.tolist(), q.itself) for q in queries]
            for name, queries in rules.items()
        }
        parts = [rows.tolist() for rows in self._places]
        text = repr((self.name, found, parts, self.labels, len(self.distractors)))
        return hashlib.sha256(text.encode()).hexdigest()


def labelled_set(images: str, ground_truth: str | None) -> LabelledSet:
    """Read a ground truth and find its images in a folder.

    Parameters
    ----------
    images : the folder, a local path or a URI
    ground_truth : see `load_benchmark`; None: a folder of classes, see `class_set`

    Raises
    ------
    InputError
        The folder or the ground truth cannot be read, or an image is missing; see `list_images`.
    """
    if ground_truth is None:
        return as_labelled(class_set(images))
    files = {image.name: image for image in list_images(images)}
    return paired(load_benchmark(ground_truth, list(files)), files)


def as_labelled(classes: ClassSet, name: str | None = None) -> LabelledSet:
    """Make a labelled set in which every image searches for the others of its class.

    Parameters
    ----------
    name : of its column in the table of results; None: the name of the folder

    Raises
    ------
    InputError
        No two images are of the same class.
    """
    if not classes.has_pairs:
        raise InputError(
            f"{classes.source}: no two of {len(classes.images)} images in {len(classes.classes)} "
            "classes are of the same class, so that nothing could be found; add images to classes"
        )
    files = {image.name: image for image in classes.images}
    benchmark = class_benchmark(list(files), classes.labels, name=name or title(classes.source))
    return paired(benchmark, files)


def paired(benchmark: Benchmark, files: Mapping[str, ImageFile]) -> LabelledSet:
    """Pair a benchmark with its image files, given by name."""
    return LabelledSet(
        name=benchmark.name,
        database=[files[name] for name in benchmark.images],
        queries=[
            dataclasses.replace(files[query.image], box=query.box) for query in benchmark.queries
        ],
        ground_truth=benchmark.queries,
        protocols=benchmark.protocols,
        labels=benchmark.labels,
    )
