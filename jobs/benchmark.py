"""Measure how fast mmray is, beside what one would call instead; both sides in one run.

Or, with `features`, the synthetic features themselves in a file, for `jobs/mine.py`; or, with
`gpu`, what one GPU could do and what mmray gets out of it.
"""

import sys
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import tyro
from benchmarks.options import (
    DecodingOptions,
    DiffusionOptions,
    ExtractionOptions,
    FeaturesOptions,
    GpuOptions,
    KnnOptions,
    RankingOptions,
    SearchOptions,
    ServeOptions,
    StreamOptions,
    SyntheticFeatures,
    TenMillionOptions,
    Threads,
    TrainingOptions,
)
from benchmarks.tables import Table, of_comparisons, of_rates

from mmray.config.command_line import exit_status

if TYPE_CHECKING:
    from mmray.system.arrays import Features

# Benchmarks import what they run only when they run, as the jobs of mmray.__main__ do.


def extraction(options: ExtractionOptions) -> Table:
    """Describe photos of mixed shapes in every way."""
    from benchmarks.extraction import compare_extraction
    from benchmarks.photos import photos_of

    from mmray.descriptors.settings import DescriptorSettings, Preprocessing
    from mmray.descriptors.weights import build

    with tempfile.TemporaryDirectory() as rendered:
        settings = DescriptorSettings(
            preprocessing=Preprocessing(options.longest_side),
            poolings=("mac",),
            precision=options.precision,
            batch_size=options.batch_size,
            shard_size=options.shard_size,
        )
        rates = compare_extraction(
            photos_of(options.images, options.sample, rendered),
            build(options.network, pooling="mac", weights=options.weights),
            settings,
            threads=_threads(options),
        )
    return of_rates(rates, "largest 1 - cosine")


def decoding(options: DecodingOptions) -> Table:
    """Decode photos of some sizes by every library that is there."""
    from benchmarks.decoding import compare_decoders
    from benchmarks.photos import photos_of

    with tempfile.TemporaryDirectory() as rendered:
        found = compare_decoders(
            photos_of(options.images, options.sample, rendered),
            megapixels=options.megapixels,
            longest_side=options.longest_side,
            repeats=options.repeats,
        )
    head = ("decoder", "megapixels", "ms", "gray levels off")
    return head, [each.row() for each in found]


def stream(options: StreamOptions) -> Table:
    """Stream photos through a double of a GPU."""
    from benchmarks.photos import photos_of
    from benchmarks.stream import measure_device_use

    with tempfile.TemporaryDirectory() as rendered:
        use = measure_device_use(
            photos_of(options.images, options.sample, rendered),
            longest_side=options.longest_side,
            rate=options.rate,
            cpus=options.cpus,
            shard_size=options.shard_size,
        )
    head = ("images", "in a pass", "before the first, s", "seconds", "images/s", "busy")
    return head, [use.row()]


def training(options: TrainingOptions) -> Table:
    """Take steps of fine-tuning on photos of mixed shapes in every way."""
    from benchmarks.photos import photos_of
    from benchmarks.training import compare_training

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
            photos_of(options.images, options.sample, rendered),
            build(options.network, pooling="mac", weights=options.weights),
            config,
            steps=options.steps,
            workers=options.workers,
            threads=_threads(options),
            storage=options.storage,
        )
    return of_rates(rates, "deviation of the loss")


def knn(options: KnnOptions) -> Table:
    """Search synthetic features for the nearest neighbours of some of them."""
    from benchmarks.mining import compare_knn

    found = compare_knn(
        _features(options),
        options.k,
        queries=options.queries,
        threads=_threads(options),
        repeats=options.repeats,
    )
    return of_comparisons(found)


def diffusion(options: DiffusionOptions) -> Table:
    """Diffuse on the graph of synthetic features."""
    from benchmarks.mining import compare_diffusion

    found = compare_diffusion(
        _features(options),
        options.k,
        anchors=options.anchors,
        solved=options.solved,
        threads=_threads(options),
        repeats=options.repeats,
    )
    return of_comparisons(found)


def ranking(options: RankingOptions) -> Table:
    """Search a whole database of synthetic features, as an evaluation does."""
    from benchmarks.mining import FIRST, time_ranking

    timed = time_ranking(_features(options), queries=options.queries, threads=_threads(options))
    return ("search", "seconds", "most memory, MB", f"of diffusion's first {FIRST}"), [
        (each.search, f"{each.seconds:.1f}", f"{each.peak:,.0f}", f"{each.shared:.3f}")
        for each in timed
    ]


def search(options: SearchOptions) -> Table:
    """Search an index of synthetic features, as `jobs/search.py query` does."""
    from benchmarks.search import compare_search, stored_features

    from mmray.system.folder import Folder

    with tempfile.TemporaryDirectory() as stored:
        vectors, queries = stored_features(
            Folder(stored),
            *(options.items, options.dims),
            queries=options.queries,
            intrinsic=options.intrinsic,
        )
        ways = compare_search(
            *(vectors, queries, options.top), probes=options.probes, threads=_threads(options)
        )
    head = ("way", "probes", "seconds to build", "MB", "ms a query", "in a batch")
    return (*head, f"recall@{options.top}"), [each.row() for each in ways]


def serve(options: ServeOptions) -> Table:
    """Ask a server of random vectors, as browsers do."""
    from benchmarks.photos import photos_of
    from benchmarks.serve import HEAD, measure_serving, write_random_index

    from mmray.images.containers import read_images
    from mmray.system.folder import Folder

    with tempfile.TemporaryDirectory() as base:
        write_random_index(Folder(f"{base}/runs"), options.items, options.longest_side)
        photos = photos_of(options.images, 100, f"{base}/photos")
        bodies = [each for each in read_images(photos, limit=1 << 25) if isinstance(each, bytes)]
        return HEAD, measure_serving(
            *(f"{base}/runs", bodies, options.items),
            clients=options.clients,
            seconds=options.seconds,
        )


def ten_million(options: TenMillionOptions) -> Table:
    """Measure the driver's way from a list to descriptors for growing collections."""
    from benchmarks.ten_million import table_of, time_steps

    counts = [max(2, round(options.items * share)) for share in options.shares]
    measured = time_steps(counts, described_every=options.described_every)
    return table_of(counts, measured)


def features(options: FeaturesOptions) -> None:
    """Write synthetic features into a file."""
    np.save(options.output, _features(options))


def gpu(options: GpuOptions) -> None:
    """Measure on a GPU; ends the process with status 1 if a part failed."""
    from benchmarks.gpu import measure_parts

    failed = measure_parts(options.parts, options.scale)
    if failed:
        sys.exit(
            f"gpu: {', '.join(failed)} failed ({len(failed)} of {len(options.parts)} parts); the "
            "tracebacks are above"
        )


# By the name of its subcommand: the class of its options, and what runs with them.
BENCHMARKS: dict[str, tuple[type, Callable[[Any], Table | None]]] = {
    "extraction": (ExtractionOptions, extraction),
    "decoding": (DecodingOptions, decoding),
    "stream": (StreamOptions, stream),
    "training": (TrainingOptions, training),
    "knn": (KnnOptions, knn),
    "diffusion": (DiffusionOptions, diffusion),
    "ranking": (RankingOptions, ranking),
    "search": (SearchOptions, search),
    "serve": (ServeOptions, serve),
    "ten-million": (TenMillionOptions, ten_million),
    "features": (FeaturesOptions, features),
    "gpu": (GpuOptions, gpu),
}


def measure(arguments: list[str]) -> None:
    """Run the benchmark that the first argument names, and print its table.

    Raises
    ------
    InputError
        An input cannot be used. Arguments that cannot be parsed end the process with status 2.
    """
    options = tyro.extras.subcommand_cli_from_dict(
        {name: kind for name, (kind, _) in BENCHMARKS.items()},
        args=arguments,
        description=__doc__,
    )
    run = dict(BENCHMARKS.values())[type(options)]
    found = run(options)
    if found is not None:
        from mmray.pipeline.reports.tables import table

        print(table(*found))


def main() -> int:
    return exit_status(lambda: measure(sys.argv[1:]))


def _threads(options: Threads) -> int:
    import torch

    return options.threads or torch.get_num_threads()


def _features(options: SyntheticFeatures) -> "Features":
    from benchmarks.mining import manifold_features

    return manifold_features(options.items, options.dims, intrinsic=options.intrinsic)


if __name__ == "__main__":
    sys.exit(main())
