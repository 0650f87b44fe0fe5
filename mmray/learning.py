"""Unlabelled images to a fine-tuned network: what all applications of the method share."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from mmray.artifacts import Stage
from mmray.config.learning import LearningConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.candidates import TUNED
from mmray.evaluation.purity import (
    Purity,
    labels_of,
    read_named_labels,
    without_false_pairs,
)
from mmray.evaluation.scores import Score
from mmray.evaluation_stages import Found
from mmray.feature_stages import extract_stage, features_stage
from mmray.gallery_stages import gallery_stage
from mmray.images.collection import Collection
from mmray.images.demo.demo_set import render_collection
from mmray.images.sources import probe
from mmray.listing import given_exclusions, list_stage
from mmray.mining.pool_lists import summary
from mmray.mining_stages import Mined, Source, check_stage, graph_stage, measure_purity, mine_stage
from mmray.session import Counts, Session, nested
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.progress import Progress, announce
from mmray.training.validation import NEIGHBORS
from mmray.training_stages import Tuned, train_stage


@dataclass(frozen=True, kw_only=True)
class Unlabelled:
    """The images to learn from.

    Attributes
    ----------
    sources, excluded : where they are, to be listed as a stage
    listed : the images themselves, where that has been done
    labels : of the images, by name, which measure how pure the pools are; None: there are none
    """

    sources: Sequence[str] = ()
    excluded: frozenset[str] = frozenset()
    listed: Collection | None = None
    labels: Mapping[str, str] | None = None

    def images(self, session: Session[LearningConfig]) -> Collection:
        """The list, made now if it was not before."""
        if self.listed is not None:
            return self.listed
        return list_stage(session, self.sources, self.excluded)

    @classmethod
    def given(cls, config: LearningConfig, labels: str | None) -> "Unlabelled":
        """What --images names; it is looked for only, not listed.

        Parameters
        ----------
        labels : file of the images' labels, see `read_named_labels`

        Raises
        ------
        InputError
            One of the files cannot be read, or there are no images.
        """
        for source in config.images:
            probe(source, column=config.image_column)
        return cls(
            sources=config.images,
            excluded=given_exclusions(config),
            labels=read_named_labels(labels) if labels else None,
        )


@dataclass(frozen=True, kw_only=True)
class Learned:
    """What the last round left.

    Attributes
    ----------
    images : n that could be read; the ids of the pools are places among them
    mined : the pools, or what stands in for them
    extracted : the stage that described the images, and set aside what could not be read; None
        where nothing was mined
    graph, source : that the pools were mined from; None where labels stand in for pools
    labels : (n,), where they are known, which measure and frame pictures and serve nothing else
    purity : of the pools that were trained on, where labels are known
    trained : what each round left; none where the last stage was to mine
    """

    images: Collection
    mined: Mined
    extracted: Stage | None = None
    graph: Stage | None = None
    source: Source | None = None
    labels: NDArray[Any] | None = None
    purity: Purity | None = None
    trained: Sequence[Tuned] = ()

    @property
    def tuned(self) -> Tuned | None:
        """What the last round left."""
        return self.trained[-1] if self.trained else None


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of a run.

    Attributes
    ----------
    scores : none where nothing was measured
    model : folder of the network that was kept, ready for use
    found : what the initial network finds for the queries of a labelled set, and what this one
        finds; none where nothing was measured
    """

    scores: list[Score] = field(default_factory=list)
    learned: Learned | None = None
    model: Folder | None = None
    found: Sequence[Found] = ()


def learn(
    session: Session[LearningConfig],
    images: Collection,
    describing: EmbeddingNet,
    network: EmbeddingNet,
    *,
    labels: Mapping[str, str] | None,
    labelled: LabelledSet | None,
) -> Learned | None:
    """Extract, mine and train, as far as the last stage that was chosen; None where that is sooner.

    Parameters
    ----------
    describing : gives the features to mine on; in later rounds that is the network of the last one
    network : to be trained, likewise
    labels : of the images by their names, to measure how pure the pools are
    labelled : to measure on while training
    """
    config = session.config
    session.run.log_data(
        "images", digest=images.digest(), sources=config.images or ("rendered",), rows=len(images)
    )
    if config.rounds == 1:
        return learn_once(session, images, describing, network, labels=labels, labelled=labelled)
    learned, trained = None, list[Tuned]()
    for number in range(1, config.rounds + 1):
        if trained:
            announce(f"round {number}: features by the network of the round before")
            describing = network = trained[-1].network
        with nested(session, config, session.chosen, name=f"round {number}") as inner:
            learned = learn_once(
                inner, images, describing, network, labels=labels, labelled=labelled
            )
        session.stages += inner.stages
        if learned is None or learned.tuned is None:
            return learned
        trained.append(learned.tuned)
        if trained[-1].epoch == 0:
            break  # another round would be the same
    assert learned is not None, "there is a round at least"
    if trained[-1].label != TUNED:
        session.run.log_labels(trained[-1].label)
    return dataclasses.replace(learned, trained=trained)


def learn_once(
    session: Session[LearningConfig],
    images: Collection,
    describing: EmbeddingNet,
    network: EmbeddingNet,
    *,
    labels: Mapping[str, str] | None,
    labelled: LabelledSet | None,
) -> Learned | None:
    """One round of `learn`."""
    config, last = session.config, session.chosen[-1]
    described = extract_stage(session, describing, images)
    source = features_stage(session, described)
    if last == "extract":
        return None
    graph = graph_stage(session, source)
    if last == "graph":
        return None
    mined, purity, known = mine_stage(session, source, graph), None, None
    if labels is not None:
        known = labels_of(described.items.table["name"].to_pylist(), labels)
    gallery_stage(
        session,
        described.items,
        source,
        graph,
        mined,
        known,
        max_pixels=config.extraction.max_pixels,
    )
    if known is not None:
        purity = measure_purity(session, mined, known)
        if config.oracle is not None:
            mined = oracle_stage(session, mined, known)
            purity = measure_purity(session, mined, known)
    learned = Learned(
        images=described.items,
        extracted=described.stage,
        mined=mined,
        graph=graph,
        source=source,
        labels=known,
        purity=purity,
    )
    if last == "mine":
        return learned
    checked = check_stage(
        session, source, graph, items=config.training.check_items, neighbors=NEIGHBORS
    )
    tuned = train_stage(session, network, described.items, mined, checked, labelled)
    return dataclasses.replace(learned, trained=[tuned])


def oracle_stage(session: Session[LearningConfig], mined: Mined, labels: NDArray[Any]) -> Mined:
    """The mined pools without their false pairs, by labels (n,): what purer pools would bring."""
    which = session.config.oracle
    assert which is not None, "asked for"
    pools = without_false_pairs(mined.pools, labels, which)
    what = "false pairs" if which == "both" else f"false {which}"
    label = f"{TUNED}, without {what} (uses labels)"
    marks = (mined.fingerprint, which, labels.tolist())
    stage = session.stage("oracle", *marks, work=lambda stage: summary(pools), part_of="mine")
    announce(f"pools: {what} are left out by their labels: an oracle, no result of ours")
    return dataclasses.replace(mined, pools=pools, label=label, oracle=stage)


def with_demo_images(session: Session[LearningConfig]) -> Folder:
    """The rendered demonstration set, which stands in where no images are given."""
    size = dataclasses.asdict(session.config.demo)
    total = 2 * (size["objects"] * size["photos"] + size["distractors"])

    def render(stage: Stage) -> Counts:
        with Progress("render", total=total) as progress:
            return render_collection(stage.folder.write, progress=progress.advance, **size)

    return session.stage("demo", size, work=render, part_of="extract").folder


def check_dimensions(config: LearningConfig, network: EmbeddingNet) -> None:
    """Refuse more dimensions than a network has; InputError says how many there are."""
    if config.extraction.pca is not None and config.extraction.pca > network.channels:
        raise InputError(
            f"--extraction.pca {config.extraction.pca}: {config.network} has {network.channels} "
            "dimensions; choose as many or fewer"
        )
