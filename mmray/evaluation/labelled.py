"""A labelled set: its images, paired with its ground truth, and the score of descriptors on it."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from mmray.arrays import Features
from mmray.collection import ImageFile
from mmray.evaluation.benchmarks import load_benchmark
from mmray.evaluation.ranking import Query, mean_average_precision, rank
from mmray.sources import list_images


@dataclass(frozen=True, kw_only=True)
class LabelledSet:
    """Images with ground truth, to measure on; nothing is learned from it or chosen by it.

    Attributes
    ----------
    database : n images, the rows of the ground truth
    queries : q images, each with the box to search with
    ground_truth : q queries
    """

    database: Sequence[ImageFile]
    queries: Sequence[ImageFile]
    ground_truth: Sequence[Query]

    @property
    def items(self) -> list[ImageFile]:
        """The database, then the queries: (n + q) images."""
        return [*self.database, *self.queries]

    def mean_average_precision(self, descriptors: Features) -> float:
        """The mAP, in [0, 1], of descriptors (n + q, d), rows in the order of `items`."""
        n = len(self.database)
        ranks = rank(descriptors[:n], descriptors[n:])
        return mean_average_precision(ranks, self.ground_truth)[0]


def labelled_set(images: str, ground_truth: str) -> LabelledSet:
    """Read a ground truth and find its images in a folder.

    Raises
    ------
    InputError
        Either cannot be read, or an image is missing; see `load_benchmark` and `list_images`.
    """
    files = {image.name: image for image in list_images(images)}
    benchmark = load_benchmark(ground_truth, list(files))
    return LabelledSet(
        database=[files[name] for name in benchmark.images],
        queries=[
            dataclasses.replace(files[query.image], box=query.box) for query in benchmark.queries
        ],
        ground_truth=benchmark.queries,
    )
