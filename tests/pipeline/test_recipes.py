"""The recipe's rounds: each mines anew with the network of the one before (Sec. 3.4)."""

import dataclasses
import re
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

from mmray.config.bounds import seconds_in
from mmray.config.learning import FinegrainedConfig
from mmray.config.presets import DEMO
from mmray.config.sections import SIZES
from mmray.evaluation.candidates import EvaluatedNetwork
from mmray.images.collection import Collection, ImageFile
from mmray.mining.pool_lists import Pools
from mmray.pipeline.plan import Plan
from mmray.pipeline.recipes import finegrained, learning, retrieval, rounds
from mmray.pipeline.recipes.outcome import Inputs, UnlabelledImages
from mmray.pipeline.stages.minable import NothingMinedError
from mmray.pipeline.stages.mining import measure_purity
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.pipeline.stages.whitening import WhitenedNetworks
from mmray.system.errors import InputError

PHOTOS = Collection.of([ImageFile(uri="/photo.jpg", name="photo.jpg")])


@pytest.fixture
def calls(monkeypatch):
    """What the stages were called with, in order; the stages themselves do nothing."""
    made = []

    def note(name, result):
        def stage(session, *arguments, **options):
            made.append((name, arguments, options))
            return result(len([call for call in made if call[0] == name]))

        return stage

    images = SimpleNamespace(items=SimpleNamespace(table=None), stage="described")
    monkeypatch.setattr(learning, "extract_stage", note("extract", lambda n: images))
    near = SimpleNamespace(left_out=False)
    found = note("near-duplicates", lambda n: (images, near))
    monkeypatch.setattr(learning, "near_duplicates_stage", found)
    source = SimpleNamespace(count=100)
    monkeypatch.setattr(learning, "features_stage", note("features", lambda n: source))
    for name in ("graph", "mine", "check"):
        monkeypatch.setattr(learning, f"{name}_stage", note(name, lambda n, name=name: name))
    monkeypatch.setattr(learning, "neighbors_stages", chosen)
    initial, trained = (
        EvaluatedNetwork(label=label, network=None) for label in ("initial", "tuned")
    )
    whitened = WhitenedNetworks(
        model="model", candidates=[initial, trained], search=lambda descriptor: [descriptor]
    )
    monkeypatch.setattr(retrieval, "whiten_stage", note("whiten", lambda n: whitened))
    measured = SimpleNamespace(scores=["a score"], found=["before", "after"])
    monkeypatch.setattr(retrieval, "evaluate_stages", note("evaluate", lambda n: measured))
    epochs = iter([2, 3, 0, 1])
    monkeypatch.setattr(rounds, "nested", nested)
    monkeypatch.setattr(
        learning,
        "train_stage",
        note("train", lambda n: FineTunedNetwork(f"tuned {n}", next(epochs), "label", HISTORY)),
    )
    return made


SIZED = dataclasses.replace(DEMO.mining, graph_k=5, positive_k=8, negative_k=100)
SECONDS = {"extract": 30.0, "mine": 10.0, "train": 60.0}  # of the stages of a round
HISTORY = [{}, {"train_seconds": 12.0}, {"train_seconds": 8.0, "embed_seconds": 9.0}]


def chosen(session, source):
    """The stages of the neighbours, which choose sizes where there are none."""
    mining = session.config.mining
    if None in mining.sizes:
        given = zip(SIZES, mining.sizes, (4, 6, 50), strict=True)
        mining = dataclasses.replace(mining, **{name: size or other for name, size, other in given})
    config = dataclasses.replace(session.config, mining=mining)
    return SimpleNamespace(**{**vars(session), "config": config}), "neighbors"


PLANS = []  # of the rounds


@contextmanager
def nested(outer, config, chosen, plan, *, name):
    stages = [SimpleNamespace(name=key, seconds=value) for key, value in SECONDS.items()]
    PLANS.append(plan)
    yield session_of(config, chosen, name, stages=stages)


def session_of(config, chosen, run, stages=()):
    session = SimpleNamespace(
        config=config,
        chosen=chosen,
        run=run,
        plan=Plan(),
        stages=list(stages),
        ends_with=lambda stage: chosen[-1] == stage,
    )

    def time_left(budget):
        return (
            None if budget is None else seconds_in(budget) - sum(s.seconds for s in session.stages)
        )

    session.time_left = time_left
    return session


def run(number, last="evaluate", **changes):
    config = dataclasses.replace(DEMO, **{"rounds": number, "mining": SIZED} | changes)
    unlabelled = UnlabelledImages(images=PHOTOS)
    features = config.feature_network or "initial"
    networks = {"network": "initial", "feature_network": features}
    inputs = Inputs(unlabelled=unlabelled, sets=["a set"], **networks)
    told = SimpleNamespace(log_data=lambda *names, **values: None, labels=[])
    told.log_labels = told.labels.append
    session = session_of(config, ("extract", last), told)
    return retrieval.recipe(session, inputs), session


def of(calls, name):
    return [call for call in calls if call[0] == name]


@pytest.mark.usefixtures("calls")
def test_each_round_has_its_own_plan_and_says_of_at_most_how_many():
    PLANS.clear()
    run(2)
    first, last = PLANS
    assert [plan.within for plan in PLANS] == ["round 1 of at most 2", "round 2 of at most 2"]
    assert first.steps == ("extract", "near", "knn", "graph", "mine", "check", "train")
    assert last.steps == ("extract", "knn", "graph", "mine", "check", "train")


def test_each_round_describes_and_trains_the_network_of_the_round_before(calls):
    outcome, session = run(2)
    assert outcome.scores == ["a score"]
    assert session.run.labels == ["label"], "what learned from labels, as it is no TUNED"
    assert outcome.learned.tuned.network == "tuned 2"
    assert {arguments[1] for _, arguments, _ in of(calls, "extract")} == {PHOTOS}
    assert [arguments[0] for _, arguments, _ in of(calls, "extract")] == ["initial", "tuned 1"]
    assert [arguments[0] for _, arguments, _ in of(calls, "train")] == ["initial", "tuned 1"]
    assert [stage.name for stage in session.stages] == [*SECONDS, *SECONDS]
    assert [tuned.network for tuned in outcome.learned.trained] == ["tuned 1", "tuned 2"]
    ((_, arguments, _),) = of(calls, "whiten")
    assert arguments[-1] == {"initial": "initial", "fine-tuned": "tuned 2"}
    ((_, arguments, _),) = of(calls, "evaluate")
    assert [candidate.label for candidate in arguments[0]] == ["initial", "label"]
    assert (outcome.model, outcome.found) == ("model", ["before", "after"])


def test_a_frozen_network_is_mined_with_in_each_round(calls):
    run(2, feature_network="frozen")
    assert [arguments[0] for _, arguments, _ in of(calls, "extract")] == ["frozen", "frozen"]
    assert [arguments[0] for _, arguments, _ in of(calls, "train")] == ["initial", "tuned 1"]


@pytest.mark.parametrize("left_out", [False, True])
def test_near_duplicates_are_found_by_the_first_network_and_left_out_of_all_rounds(
    calls, monkeypatch, left_out
):
    near, fewer = SimpleNamespace(left_out=left_out), SimpleNamespace(table="fewer")

    def stage(session, described):
        calls.append(("near-duplicates", (), {}))
        return (SimpleNamespace(items=fewer, stage="first") if left_out else described), near

    monkeypatch.setattr(learning, "near_duplicates_stage", stage)
    outcome, _ = run(2)
    assert len(of(calls, "near-duplicates")) == 1
    described = [arguments[1] for _, arguments, _ in of(calls, "extract")]
    assert described == [PHOTOS, fewer if left_out else PHOTOS]
    assert outcome.learned.near is near
    assert outcome.learned.extracted == ("first" if left_out else "described"), "of all images"


def test_rounds_are_runs_within_the_run_and_a_single_one_is_not(calls, monkeypatch):
    opened = []
    monkeypatch.setattr(
        rounds, "nested", lambda *given, name: opened.append(name) or nested(*given, name=name)
    )
    run(1)
    assert opened == []
    run(2)
    assert opened == ["round 1", "round 2"]


def test_a_round_that_keeps_its_network_is_the_last(calls):
    run(5)
    assert len(of(calls, "train")) == 3  # the third kept what it began with


def trained(monkeypatch, *networks):
    """Let rounds train networks of (epoch kept, rise of the check, share of manifold_map kept)."""
    began, left = [], iter(networks)

    def train_stage(session, network, *rest):
        began.append(network)
        epoch, rise, share = next(left)
        history = [{"view_agreement": 0.5, "manifold_map": 0.6}]
        history.append({"view_agreement": 0.5 + rise, "manifold_map": 0.6 * share})
        return FineTunedNetwork(f"tuned {len(began)}", epoch, "label", history)

    monkeypatch.setattr(learning, "train_stage", train_stage)
    return began


@pytest.fixture
def mined(monkeypatch):
    """The sizes of each mining, in order, and its positives where they are not the manifold's."""
    settings = []

    def mine_stage(session, *rest):
        given = session.config.mining
        settings.append(given.sizes if given.positives == "manifold" else given.positives)

    monkeypatch.setattr(learning, "mine_stage", mine_stage)
    return settings


SUGGESTED, CYCLIC, LARGER = (4, 6, 50), "cyclic", (10, 20, 10_000)


def test_settings_that_the_collection_suggests_stay_where_they_help(calls, mined, monkeypatch):
    trained(monkeypatch, (1, 0.12, 1), (1, 0.02, 0.5), (0, 0, 1))
    outcome, _ = run(5, mining=DEMO.mining)
    assert mined == [SUGGESTED] * 3
    assert [tuned.network for tuned in outcome.learned.trained] == ["tuned 1", "tuned 2", "tuned 3"]


@pytest.mark.parametrize(
    ("rivals", "tried", "best"),
    [
        # Little gained: cyclic positives too.
        ([(1, 0.05, 1), (1, 0.06, 1)], [CYCLIC], 2),
        ([(1, 0.05, 1), (1, 0.05, 1)], [CYCLIC], 1),
        # The networks left the manifold: larger sizes too.
        ([(1, 0.12, 0.89), (1, 0.2, 1)], [LARGER], 2),
        ([(1, 0.12, 0.89), (1, 0.12, 1)], [LARGER], 1),
        ([(1, 0.12, 0.89), (0, 0.3, 1)], [LARGER], 1),
        # Both.
        ([(0, 0.02, 1), (1, 0.03, 1), (1, 0.04, 1)], [CYCLIC, LARGER], 3),
        ([(0, 0.02, 1), (1, 0.05, 1), (1, 0.04, 1)], [CYCLIC, LARGER], 2),
        ([(1, 0.06, 0.89), (1, 0.05, 1), (1, 0.04, 1)], [CYCLIC, LARGER], 1),
    ],
)
def test_others_are_tried_where_these_do_not_help_and_what_gained_most_goes_on(
    calls, mined, monkeypatch, capsys, rivals, tried, best
):
    opened = []
    monkeypatch.setattr(
        rounds, "nested", lambda *given, name: opened.append(name) or nested(*given, name=name)
    )
    began = trained(monkeypatch, *rivals, (1, 0.1, 1))
    outcome, session = run(2, mining=DEMO.mining)
    names = {CYCLIC: "round 1, cyclic positives", LARGER: "round 1, graph-k 10"}
    first, went_on = [SUGGESTED, *tried], [SUGGESTED, *tried][best - 1]
    last = went_on == LARGER
    assert mined == first + [went_on] * (not last)
    assert opened == ["round 1", *(names[each] for each in tried), "round 2"][: len(mined)]
    assert began == ["initial"] * len(rivals) + [f"tuned {best}"] * (not last)
    kept = [f"tuned {best}", f"tuned {len(rivals) + 1}"]
    assert [each.network for each in outcome.learned.trained] == kept[: 2 - last]
    assert len(session.stages) == len(mined) * len(SECONDS)
    said = capsys.readouterr().err
    named = {SUGGESTED: "graph-k 4", CYCLIC: "cyclic positives", LARGER: "graph-k 10"}[went_on]
    assert f"the check without labels rose most with {named} (+" in said


def test_sizes_that_were_given_are_no_reason_to_end_whatever_they_are(calls, mined, monkeypatch):
    """`--recipe steady` gives the larger ones."""
    trained(monkeypatch, (1, 0.02, 0.5), (1, 0.02, 1))
    sizes = dict(zip(SIZES, LARGER, strict=True))
    run(2, mining=dataclasses.replace(DEMO.mining, **sizes))
    assert mined == [LARGER, LARGER]


def test_sizes_that_were_chosen_are_no_reason_to_end_whatever_they_are(calls, mined, monkeypatch):
    """In a million photos they are the larger ones, here with cyclic positives."""

    def of_a_million(session, source):
        session, neighbors = chosen(session, source)
        sizes = dict(zip(SIZES, LARGER, strict=True))
        mining = dataclasses.replace(session.config.mining, **sizes)
        session.config = dataclasses.replace(session.config, mining=mining)
        return session, neighbors

    monkeypatch.setattr(learning, "neighbors_stages", of_a_million)
    trained(monkeypatch, (1, 0.02, 0.5), (1, 0.03, 1), (1, 0.03, 1))
    run(2, mining=DEMO.mining)
    assert mined == [LARGER, CYCLIC, CYCLIC]


@pytest.mark.parametrize(
    ("count", "given"),
    [
        (20, {}),  # too few images for 20 neighbours
        (100, {"graph_k": 5}),
        (100, {"positive_k": 8}),
        (100, {"negative_k": 100}),
    ],
)
def test_larger_sizes_are_not_tried_where_they_cannot_be_or_one_is_given(
    calls, mined, monkeypatch, count, given
):
    source = SimpleNamespace(count=count)
    monkeypatch.setattr(learning, "features_stage", lambda *arguments: source)
    trained(monkeypatch, (1, 0.2, 0.5))
    run(1, mining=dataclasses.replace(DEMO.mining, **given))
    assert len(mined) == 1


def test_larger_sizes_that_mine_nothing_are_no_error(calls, monkeypatch, capsys):
    def mine_stage(session, *rest):
        if session.config.mining.graph_k == 10:
            raise NothingMinedError("no anchor has a positive", "choose another value")
        return "mined"

    monkeypatch.setattr(learning, "mine_stage", mine_stage)
    trained(monkeypatch, (1, 0.2, 0.5))
    outcome, _ = run(1, mining=DEMO.mining)
    assert [tuned.network for tuned in outcome.learned.trained] == ["tuned 1"]
    said = capsys.readouterr().err
    assert "round 1, graph-k 10: no anchor has a positive: choose another value" in said


def test_a_round_that_mines_nothing_is_the_last_and_the_first_is_an_error(calls, monkeypatch):
    at, asked = [2], []

    def mine_stage(*arguments):
        asked.append(arguments)
        if len(asked) == at[0]:
            raise NothingMinedError("no anchor has a positive", "choose another value")
        return f"mine {len(asked)}"

    monkeypatch.setattr(learning, "mine_stage", mine_stage)
    outcome, session = run(3)
    assert [tuned.network for tuned in outcome.learned.trained] == ["tuned 1"]
    assert outcome.learned.mined == "mine 1"
    assert len(session.stages) == 2 * len(SECONDS)
    asked.clear()
    at[0] = 1
    with pytest.raises(NothingMinedError, match="no anchor has a positive"):
        run(3)


@pytest.mark.parametrize(
    ("budget", "times"),
    [
        (None, 3),
        ("10m", 3),
        ("157s", 2),
        ("156s", 1),
        ("1s", 1),
    ],  # 100 s, then 40 and an epoch's 17
)
def test_a_round_begins_if_an_epoch_of_it_ends_within_the_budget(calls, capsys, budget, times):
    outcome, _ = run(5, budget=budget)
    assert len(outcome.learned.trained) == times
    assert (f"no time is left of --budget {budget}" in capsys.readouterr().err) == (times < 3)


def test_stages_end_where_they_were_asked_to(calls):
    outcome, _ = run(2, last="mine")
    before = ["extract", "near-duplicates", "features"]
    assert [name for name, _, _ in calls] == [*before, "graph", "mine"]
    assert (outcome.scores, outcome.learned.mined, outcome.learned.tuned) == ([], "mine", None)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (["a", "a", "b"], "pools: 50.0% of the positives show the anchor's label, not measured of"),
        (
            ["a", "b", "c"],
            "pools: their purity is not measured, as no two items have the same label",
        ),
        (["a", "a", ""], "50.0% of the positives show .* (2 of their 3 items have a label)"),
        (["", "-1", ""], "pools: their purity is not measured, as none of their items has a label"),
    ],
)
def test_a_purity_without_labels_is_not_0(labels, said, capsys):
    logged = {}
    session = SimpleNamespace(run=SimpleNamespace(log_metrics=logged.update))
    pools = dataclasses.replace(
        Pools.empty(np.array([0])), positives=(np.array([1, 2]),), negatives=(np.array([], int),)
    )
    purity = measure_purity(session, SimpleNamespace(pools=pools), np.array(labels))
    assert re.search(said.replace("(", r"\(").replace(")", r"\)"), capsys.readouterr().err)
    known = labels[1] == "a"
    assert logged == ({"pool_true_positives": 0.5} if known else {})
    assert (purity.positives == 0.5) == known


def test_labels_of_a_file_are_those_of_the_images_that_could_be_read(capsys):
    images = Collection.of([ImageFile(uri=f"/{i}.jpg", name=f"{i}.jpg") for i in range(3)])
    unlabelled = UnlabelledImages(labels={"2": "b", "x": "c"}, labels_source="--pool-labels f.csv")
    assert unlabelled.labels_of(images).tolist() == ["", "", "b"]
    said = "labels: 1 of the 2 names of --pool-labels f.csv fit an image; 'x' fits none\n"
    assert capsys.readouterr().err == said
    with pytest.raises(
        InputError, match=r"--pool-labels f\.csv: none of the 2 names, such as 2, is"
    ):
        unlabelled.labels_of(PHOTOS)
    assert UnlabelledImages().labels_of(images) is None
    names = ["a/cafe\u0301.jpg", "a/caf\u00e9.jpg"]  # the labels are those of folders
    images = Collection.of([ImageFile(uri=name, name=name) for name in names])
    of_folders = UnlabelledImages(labels=dict.fromkeys(names, "a"))
    assert of_folders.labels_of(images).tolist() == ["a", "a"]
    assert capsys.readouterr().err == ""


def test_excluded_names_may_be_of_classes_that_test(tmp_path, capsys):
    for name in ("a/1.jpg", "b/2.jpg", "b/3.jpg", "c/4.jpg", "d/5.jpg", "d/6.jpg"):
        (tmp_path / "birds" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "birds" / name).touch()

    def trained_on(*names):
        (tmp_path / "names.txt").write_text("\n".join(names))
        config = FinegrainedConfig(
            images=(str(tmp_path / "birds"),), exclude=str(tmp_path / "names.txt")
        )
        unlabelled, tests = finegrained._halves(config)
        assert [image.name for image in tests.database] == ["c/4.jpg", "d/5.jpg", "d/6.jpg"]
        return [image.name for image in unlabelled.images]

    assert trained_on("2", "5") == ["a/1.jpg", "b/3.jpg"]
    assert "1 images left out by the 2 names" in capsys.readouterr().err
    assert trained_on("5") == ["a/1.jpg", "b/2.jpg", "b/3.jpg"]
    assert "list: 1 of the 1 names of --exclude fit an image; all" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--exclude: none of the 1 names, such as 7, .*a/1\.jpg"):
        trained_on("7")
    with pytest.raises(InputError, match="none of the images to train on is left; name fewer"):
        trained_on("1", "2", "3")
