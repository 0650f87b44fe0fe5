"""How fast mmray is, beside what one would call instead; both sides in one run, as a table.

Or, with `features`, the synthetic features themselves in a file, for `jobs/mine.py`.
"""

import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import tyro

from mmray.config.choices import Loss, Network, Precision
from mmray.config.command_line import exit_status

if TYPE_CHECKING:
    from jobs.benchmarks.extraction import Rate
    from mmray.images.collection import Collection

Table = tuple[Sequence[str], Sequence[Sequence[str]]]


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured, and on how much."""

    what: tyro.conf.Positional[
        Literal["extraction", "training", "knn", "diffusion", "ranking", "search", "features"]
    ]
    items: int = 100_000
    dims: int = 64
    intrinsic: int = 8
    """Dimensions of the manifold that the features lie on."""
    k: int = 30
    queries: int = 8192
    """Rows that neighbours are searched for (knn), or all rows ranked for (ranking); of others
    beside the items, which are searched for one after the other (search), 50 at most."""
    top: int = 20
    """Items to find (search)."""
    probes: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Cells that an ivf-pq index looks into (search)."""
    anchors: int = 64
    """Anchors diffused from (diffusion)."""
    solved: int = 4
    """How many of these scipy solves; its time is scaled to all (diffusion)."""
    threads: int = 0
    """CPU threads on both sides; 0: all."""
    repeats: int = 3
    """Times each side is measured; the best counts (knn, diffusion)."""
    output: Path = Path("features.npy")
    """Where `features` writes."""
    images: tuple[str, ...] = ()
    """Photos (extraction, training), as for jobs/retrieval.py; none: rendered ones."""
    sample: int = 1000
    """Photos at most (extraction, training)."""
    network: Network = "efficientnet_lite0"
    weights: str | None = None
    longest_side: int = 362
    precision: Precision = "float32"
    """bfloat16 is measured besides float32 (extraction), or instead (training)."""
    shard_size: int = 64
    batch_size: int = 32
    loss: Loss = "contrastive"
    steps: int = 20
    """In an epoch of 5 tuples each, 15 images (training)."""
    workers: int = 2
    """Processes that share the threads, where training is distributed."""


def main() -> int:
    options = tyro.cli(Benchmark, description=__doc__)

    def job() -> None:
        from mmray.pipeline.reports.tables import table

        if options.what == "features":
            from jobs.benchmarks.mining import manifold_features

            size = (options.items, options.dims)
            np.save(options.output, manifold_features(*size, intrinsic=options.intrinsic))
            return
        others = {
            "extraction": extraction,
            "training": training,
            "ranking": ranking,
            "search": searching,
        }
        print(table(*others.get(options.what, part)(options)))

    return exit_status(job)


def part(options: Benchmark) -> Table:
    """The k-NN search or the diffusion, on synthetic features."""
    import torch

    from jobs.benchmarks.mining import compare_diffusion, compare_knn, manifold_features

    features = manifold_features(options.items, options.dims, intrinsic=options.intrinsic)
    same = {"threads": options.threads or torch.get_num_threads(), "repeats": options.repeats}
    if options.what == "knn":
        found = compare_knn(features, options.k, queries=options.queries, **same)
    else:
        anchors = {"anchors": options.anchors, "solved": options.solved}
        found = compare_diffusion(features, options.k, **anchors, **same)
    row = (found.part, found.baseline, f"{found.theirs:.2f}", f"{found.ours:.2f}")
    return ("part", "against", "its seconds", "ours", "times faster"), [
        (*row, f"{found.ratio:.1f}")
    ]


def ranking(options: Benchmark) -> Table:
    """Searching a whole database of synthetic features, as an evaluation does."""
    import torch

    from jobs.benchmarks.mining import manifold_features, time_ranking

    features = manifold_features(options.items, options.dims, intrinsic=options.intrinsic)
    threads = options.threads or torch.get_num_threads()
    timed = time_ranking(features, queries=options.queries, threads=threads)
    return ("search", "seconds", "most memory, MB"), [
        (each.search, f"{each.seconds:.1f}", f"{each.peak:,.0f}") for each in timed
    ]


def searching(options: Benchmark) -> Table:
    """Searching an index of synthetic features, as `jobs/search.py query` does."""
    import torch

    from jobs.benchmarks.search import compare_search, stored_features
    from mmray.system.folder import Folder

    with tempfile.TemporaryDirectory() as stored:
        vectors, queries = stored_features(
            Folder(stored),
            *(options.items, options.dims),
            queries=min(options.queries, 50),
            intrinsic=options.intrinsic,
        )
        threads = options.threads or torch.get_num_threads()
        ways = compare_search(vectors, queries, options.top, probes=options.probes, threads=threads)
    head = ("way", "probes", "seconds to build", "MB", "ms a query", "in a batch")
    return (*head, f"recall@{options.top}"), [
        (
            each.way,
            "" if each.probes is None else str(each.probes),
            f"{each.building:.1f}",
            f"{each.size:,.1f}",
            f"{each.alone:.2f}",
            f"{each.together:.2f}",
            f"{each.recall:.3f}",
        )
        for each in ways
    ]


def extraction(options: Benchmark) -> Table:
    """Describing photos of mixed shapes."""
    import torch

    from jobs.benchmarks.extraction import compare_extraction
    from mmray.descriptors.settings import DescriptorSettings
    from mmray.descriptors.weights import build

    with tempfile.TemporaryDirectory() as rendered:
        how = DescriptorSettings(
            longest_side=options.longest_side,
            poolings=("mac",),
            precision=options.precision,
            batch_size=options.batch_size,
        )
        rates = compare_extraction(
            photos(options, rendered),
            build(options.network, pooling="mac", weights=options.weights),
            how,
            shard_size=options.shard_size,
            threads=options.threads or torch.get_num_threads(),
        )
    return of_rates(rates, "largest 1 - cosine")


def training(options: Benchmark) -> Table:
    """Steps of fine-tuning on photos of mixed shapes."""
    import torch

    from jobs.benchmarks.training import compare_training
    from mmray.config.sections import TrainingConfig
    from mmray.descriptors.weights import build

    with tempfile.TemporaryDirectory() as rendered:
        config = TrainingConfig(
            loss=options.loss,
            learning_rate=1e-3,
            precision=options.precision,
            longest_side=options.longest_side,
        )
        rates = compare_training(
            photos(options, rendered),
            build(options.network, pooling="mac", weights=options.weights),
            config,
            steps=options.steps,
            workers=options.workers,
            threads=options.threads or torch.get_num_threads(),
        )
    return of_rates(rates, "deviation of the loss")


def photos(options: Benchmark, rendered: str) -> "Collection":
    """The photos named, or some that are rendered into a folder."""
    from mmray.images.collection import Collection, sample
    from mmray.images.demo.demo_set import render_collection
    from mmray.images.sources import find
    from mmray.system.folder import Folder

    if not options.images:
        size = {"objects": 12, "photos": 13, "distractors": 20, "longest_side": 512}
        render_collection(Folder(rendered).write, **size, seed=0)
    found = [find(source).images for source in options.images or (rendered,)]
    return sample(Collection.joined(found), options.sample, seed=0)


def of_rates(rates: "Sequence[Rate]", deviation: str) -> Table:
    """The ways beside the first one."""
    base = rates[0].images_per_second
    return ("way", "start-up, s", deviation, "images/s", "times one at a time"), [
        (
            rate.way,
            f"{rate.startup:.1f}",
            f"{rate.deviation:.1e}",
            f"{rate.images_per_second:.1f}",
            f"{rate.images_per_second / base:.2f}",
        )
        for rate in rates
    ]


if __name__ == "__main__":
    sys.exit(main())
