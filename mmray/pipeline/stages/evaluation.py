"""The stages that measure networks on labelled sets: describe images, rank, score.

n database images, q queries, d dims.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from joblib import cpu_count

from mmray.config.choices import Descriptor
from mmray.config.run import RunConfig
from mmray.config.sections import LabelledSetsConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings
from mmray.evaluation.benchmarks.labelled_set import LabelledSet, labelled_set
from mmray.evaluation.benchmarks.published import find_benchmark
from mmray.evaluation.candidates import EvaluatedNetwork
from mmray.evaluation.expansion import ranked
from mmray.evaluation.paper_table import paper_scores
from mmray.evaluation.ranking import Query, mean_average_precision
from mmray.evaluation.scores import Score
from mmray.evaluation.scoring import clustered, figures
from mmray.images.collection import Collection
from mmray.pipeline.reports.tables import results_table
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.labelled_descriptors import SetFeatures, describe_set
from mmray.system.arrays import Features, Floats, Ids
from mmray.system.formats import read_json, write_json
from mmray.system.progress import announce

SHOWN = 10  # search results of a query to show in pictures
SEARCHED = 300  # images without labels that search for others, of which some are shown


@dataclass(frozen=True, eq=False, kw_only=True)
class SearchExamples:
    """Search results of a network for the queries of a labelled set, to show in pictures.

    Attributes
    ----------
    network : label of the network
    labelled : the labelled set
    first : for each query up to SHOWN rows of the database, the most similar first; the query
        itself is left out where it is ignored
    precision : (q,) float64, average precision of the whole ranking; NaN for queries without
        positives, as are all those without labels
    """

    network: str
    labelled: LabelledSet
    first: tuple[Ids, ...]
    precision: Floats


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationResult:
    """Scores of networks on labelled sets, and their search results on the first set."""

    scores: list[Score]
    found: list[SearchExamples]


def read_labelled_sets(config: LabelledSetsConfig) -> list[LabelledSet]:
    """Read the labelled sets that the settings name, in the order of the table.

    Raises
    ------
    InputError
        A set cannot be read or is incomplete; the message says what is missing, and where it is
        published.
    """
    sets = []
    if config.images:
        sets.append(labelled_set(config.images, config.ground_truth))
    for name in config.benchmark:
        assert config.data is not None, "settings are validated"
        sets.append(find_benchmark(name, config.data, distractors=config.distractors))
    return [each if config.crop else each.without_boxes() for each in sets]


def evaluate_stages(
    session: Session[RunConfig],
    candidates: Sequence[EvaluatedNetwork],
    sets: Sequence[LabelledSet],
    config: LabelledSetsConfig,
    settings: DescriptorSettings,
) -> EvaluationResult:
    """Measure each descriptor of each network on each set, without and with its whitenings.

    The scores of the paper follow where a network and its setting are the paper's; all are logged
    to MLflow as a table.
    """
    scores: list[Score] = []
    found: list[SearchExamples] = []
    for labelled in sets:
        described = [describe_set(session, c.network, labelled, settings) for c in candidates]
        scores += _evaluate_set(session, candidates, described, labelled, config)
        if not found:
            pairs = zip(candidates, described, strict=True)
            found = [_search_examples(*pair, labelled, config) for pair in pairs]
    networks = [candidate.network.network for candidate in candidates]
    scores += paper_scores(scores, config, networks)
    session.run.log_text("results.md", results_table(scores) + "\n")
    return EvaluationResult(scores=scores, found=found)


def _evaluate_set(
    session: Session[RunConfig],
    candidates: Sequence[EvaluatedNetwork],
    described: "Sequence[SetFeatures]",
    labelled: LabelledSet,
    config: LabelledSetsConfig,
) -> list[Score]:
    name = labelled.name
    announce(
        f"evaluate: {name}: {len(labelled.queries):,} queries, {len(labelled.database):,} images, "
        f"{described[0].others:,} distractors"
        + ("" if labelled.complete else "; not the published numbers: results do not compare")
    )

    def work(stage: StageFolder) -> Counts:
        scores = [
            score
            for candidate, features in zip(candidates, described, strict=True)
            for score in _scores(candidate, features, labelled, config)
        ]
        write_json(stage.folder, "metrics.json", [dataclasses.asdict(s) for s in scores])
        return {_metric(score): score.value for score in scores}

    stage = session.run_stage(
        "evaluate",
        [fingerprint for features in described for fingerprint in features.fingerprints],
        [[(*key, w.digest()) for key, w in each.whitenings.items()] for each in candidates],
        [each.label for each in candidates],
        labelled.digest(),
        (config.dims, config.search, config.clusterings),
        work=work,
    )
    return [Score(**row) for row in read_json(stage.folder, "metrics.json")]


def _search_examples(
    candidate: EvaluatedNetwork,
    features: "SetFeatures",
    labelled: LabelledSet,
    config: LabelledSetsConfig,
) -> SearchExamples:
    """Search with the descriptor that the network was trained with, whitened if it can be."""
    pooling = shown_descriptor(candidate.network, config)
    database, queries = features.parts(labelled, pooling)
    _, whitening = candidate.variants(pooling)[-1]
    if whitening is not None:
        database, queries = (whitening.apply(part, config.dims) for part in (database, queries))
    ranks = ranked(database, queries, "plain")
    _, precision = mean_average_precision(ranks, labelled.ground_truth)
    return SearchExamples(
        network=candidate.label,
        labelled=labelled,
        first=_first(ranks, labelled),
        precision=precision,
    )


def shown_descriptor(network: EmbeddingNet, config: LabelledSetsConfig) -> Descriptor:
    """Return the descriptor by which searches are shown: the network's own if it is measured."""
    own: Descriptor = network.pooling
    return own if own in config.poolings else config.poolings[0]


def _first(ranks: Ids, labelled: LabelledSet) -> tuple[Ids, ...]:
    return tuple(
        ranking[ranking != itself][:SHOWN]
        for ranking, itself in zip(ranks.T, labelled.own, strict=True)
    )


def unlabelled_examples(
    networks: Mapping[str, Features], images: Collection, *, seed: int
) -> list[SearchExamples]:
    """Search images without labels by some of their own.

    Parameters
    ----------
    networks : label of a network -> its descriptors (n, d) of the images
    images : n images
    seed : draws those that search
    """
    drawn = np.random.default_rng(seed).permutation(len(images))[:SEARCHED]
    nothing = np.empty(0, np.int64)
    unlabelled = LabelledSet(
        database=images,
        queries=list(images.take(drawn)),
        ground_truth=[
            Query("", "", None, positives=nothing, junk=nothing, itself=row)
            for row in drawn.tolist()
        ],
    )
    return [
        SearchExamples(
            network=label,
            labelled=unlabelled,
            first=_first(ranked(rows, rows[drawn], "plain"), unlabelled),
            precision=np.full(len(drawn), np.nan),
        )
        for label, rows in networks.items()
    ]


def _metric(score: Score) -> str:
    """Return the name of a metric in MLflow, such as oxford5k-map-fine-tuned-mac-LDA."""
    parts = [score.measure.replace("@", "-at-").replace(" ", "-").lower()]
    parts += [score.network, score.descriptor, score.whitening]
    parts += [] if score.search == "plain" else [score.search]
    text = "-".join([score.benchmark, *parts])
    return "".join(letter if letter.isalnum() or letter in "-_./ " else "_" for letter in text)


def _scores(
    candidate: EvaluatedNetwork,
    features: SetFeatures,
    labelled: LabelledSet,
    config: LabelledSetsConfig,
) -> list[Score]:
    scores = []
    for pooling in config.poolings:
        parts = features.parts(labelled, pooling)
        for name, whitening in candidate.variants(pooling):
            database, queries = parts
            if whitening is not None:
                database, queries = (whitening.apply(part, config.dims) for part in parts)
            for search in config.search:
                ranks = ranked(database, queries, search, own=labelled.own, threads=cpu_count())
                scores += [
                    Score(candidate.label, pooling, name, value, labelled.name, measure, search)
                    for measure, value in figures(labelled, ranks).items()
                ]
            if labelled.labels is not None:
                scores += [
                    Score(candidate.label, pooling, name, value, labelled.name, measure)
                    for measure, value in clustered(
                        database[: len(labelled.labels)], labelled.labels, config.clusterings
                    ).items()
                ]
    return scores
