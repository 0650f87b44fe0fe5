"""Rounds of mining and training, each with the network of the one before (Sec. 3.4)."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmray.config.learning import LearningConfig
from mmray.config.sections import MiningConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.candidates import TUNED
from mmray.images.collection import Collection
from mmray.pipeline.opening import nested
from mmray.pipeline.plan import Plan
from mmray.pipeline.recipes.learning import learn_once
from mmray.pipeline.recipes.outcome import LearningResult
from mmray.pipeline.recipes.steps import in_rounds, round_steps
from mmray.pipeline.session import Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.minable import NothingMinedError
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.system.progress import announce
from mmray.training.job import epoch_seconds
from mmray.training.validation import departed, rise

# Tried where the sizes of the collection do not help: kinds of things, such as species, want more
# neighbours than things do, and negatives beyond them (docs/results/recipe-study.md).
WIDER: dict[str, Any] = {"graph_k": 10, "positive_k": 20, "negative_k": 10_000}
# A rise of the check, in the first round, below which cyclic positives are tried too: with manifold
# positives it is 0.10 to 0.18 where they are the better ones, and 0.03 to 0.05 where they are not.
LITTLE = 0.1


def learn(
    session: Session[LearningConfig],
    images: Collection,
    feature_network: EmbeddingNet,
    initial_network: EmbeddingNet,
    *,
    labels: NDArray[np.str_] | None,
    labelled: LabelledSet | None,
) -> LearningResult | None:
    """Extract, mine and train in one or more rounds, up to the last stage that was chosen.

    Where the sizes of mining are left open, they are those that the collection suggests. If the
    first round gains little with them, others are tried too, see `others`, and what gained more
    goes on. A round that gains nothing, or has larger sizes, is the last.

    Parameters
    ----------
    session : the run
    images : the images to learn from
    feature_network : computes the features to mine on; from round 2 on, the network of the round
        before takes its place, unless --feature-network names one for all rounds
    initial_network : the network to train; from round 2 on that of the round before
    labels : (n,) of the images, to measure the purity of the pools; None: not measured
    labelled : set to measure on during training; None: not measured

    Returns
    -------
    The result of the last round; None where the last stage comes before mining.
    """
    config = session.config
    session.run.log_data(
        "images", digest=images.digest(), sources=config.images or ("rendered",), rows=len(images)
    )
    networks = feature_network, initial_network
    if not in_rounds(config):
        return learn_once(session, images, *networks, labels=labels, labelled=labelled)
    learned, trained, least = None, list[FineTunedNetwork](), 0.0
    described: LearningResult | None = None  # what the first round found among the images

    def attempt(name: str, mining: MiningConfig) -> LearningResult | None:
        """Run a round; return None if there is no time for it, or if a later one mines nothing."""
        nonlocal least
        left = session.time_left(config.budget)
        if left is not None and left < least:
            announce(f"{name}: no time is left of --budget {config.budget}")
            return None
        given = dataclasses.replace(config, mining=mining)
        most = f" of at most {config.rounds}" if config.rounds > 1 else ""
        within = name.replace(f"round {number}", f"round {number}{most}")
        plan = Plan(
            round_steps(given, session.chosen, first=described is None),
            within=", ".join(part for part in (session.plan.within, within) if part),
        )
        with nested(session, given, session.chosen, plan, name=name) as inner:
            try:
                near = None if described is None else described.near
                result = learn_once(
                    inner, images, *networks, labels=labels, labelled=labelled, near=near
                )
            except NothingMinedError as error:
                if learned is None:
                    raise
                announce(f"{name}: {error}")
                result = None
            finally:
                session.stages += inner.stages
        if result is not None and result.tuned is not None:
            least = _least_seconds(inner.stages, result.tuned)
        return result

    mining = config.mining
    for number in range(1, config.rounds + 1):
        name = f"round {number}"
        if trained and config.feature_network is None:
            announce(f"{name}: features come from the network of the previous round")
        latest = attempt(name, mining)
        if latest is None:
            break
        learned = latest
        if latest.tuned is None:
            break
        first = latest
        if not trained:
            rivals = [attempt(f"{name}, {_named(each)}", each) for each in _others(config, latest)]
            learned = latest = _best([latest, *(each for each in rivals if each is not None)])
        assert latest.tuned is not None, "all were trained"
        assert latest.mining is not None, "it was mined"
        trained.append(latest.tuned)
        described = described or latest
        if latest.tuned.epoch == 0:
            if number > 1:
                announce(f"{name} gained nothing: the network of the round before is kept")
            break  # another round would be the same
        if _sizes(latest) != _sizes(first):
            announce(f"{name} is the last: pools of larger sizes do not become purer with rounds")
            break
        # Sizes that were chosen stay: with those of its features, the second round mines less pure.
        tuned, mining = latest.tuned.network, latest.mining
        networks = (feature_network if config.feature_network else tuned), tuned
        if latest.near is not None and latest.near.left_out:
            images, labels = latest.images, latest.labels
    if learned is None or described is None:
        return learned
    if trained[-1].label != TUNED:
        session.run.log_labels(trained[-1].label)
    return dataclasses.replace(learned, trained=trained, extracted=described.extracted)


def _others(config: LearningConfig, tried: LearningResult) -> list[MiningConfig]:
    chosen, source, tuned = tried.mining, tried.source, tried.tuned
    if chosen is None or source is None or tuned is None or any(config.mining.sizes):
        return []
    return others(chosen, tuned.history, tuned.epoch, count=source.count)


def others(
    tried: MiningConfig, history: Sequence[Mapping[str, float]], epoch: int, *, count: int
) -> list[MiningConfig]:
    """Return what to try beside a first round whose sizes were chosen, if it gained little.

    Cyclic match, whose positives are fewer and purer, where the check rose by less than `LITTLE`;
    larger sizes where it did not rise, or the networks found other things than the graph has.

    Parameters
    ----------
    tried : settings of this round
    history : its metrics by epoch
    epoch : that it kept
    count : number of items
    """
    found = []
    if rise(history, epoch) < LITTLE and tried.positives == "manifold":
        found.append(dataclasses.replace(tried, positives="cyclic"))
    in_vain = epoch == 0 or departed(history)
    if in_vain and tried.chosen_sizes[0] < WIDER["graph_k"] and count > WIDER["positive_k"]:
        found.append(dataclasses.replace(tried, **WIDER))
    return found


def _best(results: list[LearningResult]) -> LearningResult:
    """Return the result whose network gained most by the check without labels."""
    if len(results) > 1:
        results = sorted(results, key=_gain, reverse=True)  # stable: the first of equal ones
        told = [f"{_named(each.mining)} ({_gain(each):+.3f})" for each in results]
        announce(f"the check without labels rose most with {told[0]}; {', '.join(told[1:])}")
    return results[0]


def _sizes(result: LearningResult) -> tuple[int | None, ...]:
    return () if result.mining is None else result.mining.sizes


def _named(mining: MiningConfig | None) -> str:
    if mining is None:
        return ""
    return f"graph-k {mining.graph_k}" if mining.positives == "manifold" else "cyclic positives"


def _gain(result: LearningResult) -> float:
    return 0.0 if result.tuned is None else rise(result.tuned.history, result.tuned.epoch)


def _least_seconds(stages: Sequence[StageFolder], trained: FineTunedNetwork) -> float:
    """Return how long a round with one epoch takes, from the stages of one with all epochs."""
    others = sum(stage.seconds for stage in stages if stage.name != "train")
    return others + max((epoch_seconds(metrics) for metrics in trained.history), default=0.0)
