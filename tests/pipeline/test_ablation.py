"""The rows of the comparison: one change each, as settings of the application's own job."""

from dataclasses import replace

import pytest

from mmray.config.learning import FinegrainedConfig, RetrievalConfig
from mmray.config.presets import (
    FINEGRAINED_ABLATIONS,
    FINEGRAINED_PRESETS,
    RETRIEVAL_ABLATIONS,
    preset,
)
from mmray.config.run import identity_of, settings
from mmray.config.validation import validate
from mmray.pipeline.recipes import ablation
from mmray.pipeline.recipes.ablation import rows_of
from mmray.pipeline.recipes.ablation_rows import ALL_ANCHORS, BASELINES, FEATURES, METHOD
from mmray.system.errors import InputError

BIRDS, PHOTOS = FINEGRAINED_ABLATIONS["demo"], RETRIEVAL_ABLATIONS["demo"]


def changes(config, row, seed=0, anchors=None):
    """What a row changes of the settings of its own job, by flag."""
    plain = FINEGRAINED_PRESETS["demo"] if config is BIRDS else preset("demo", "steady")
    found = ablation._row_config(config, row, seed, anchors or {})
    assert type(found) is type(plain)
    before, after = settings(plain), settings(found)
    return {key: value for key, value in after.items() if value != before[key]}


def named(config, name):
    (row,) = [row for row in rows_of(config) if row.name == name]
    return row


def test_each_application_has_its_rows_and_no_name_is_there_twice():
    of_birds, of_photos = rows_of(BIRDS), rows_of(PHOTOS)
    assert {row.name for row in of_photos} == {row.name for row in METHOD}
    rivals = {row.name for row in BASELINES}
    assert {row.name for row in of_birds} == {
        *({row.name for row in METHOD} - {row.name for row in ALL_ANCHORS}),
        *rivals,
    }
    for rows in (of_birds, of_photos, FEATURES):
        assert len({row.name for row in rows}) == len({row.label for row in rows}) == len(rows)


@pytest.mark.parametrize("config", [BIRDS, PHOTOS])
def test_a_row_changes_what_its_label_says_and_nothing_else(config):
    unweighted = {"training.weighted": False}
    random = {"mining.negatives": "random", "training.hard_negatives": 10**6}
    assert changes(config, named(config, "weighted")) == {}
    assert changes(config, named(config, "hard-hard")) == unweighted
    nearest = {"mining.positives": "euclidean"}
    assert changes(config, named(config, "nearest-random")) == unweighted | nearest | random
    assert changes(config, named(config, "hard-random")) == unweighted | random
    assert changes(config, named(config, "nearest-hard")) == unweighted | nearest
    assert changes(config, named(config, "cyclic")) == unweighted | {
        "mining.positives": "cyclic",
        "mining.negatives": "geodesic",
    }
    assert changes(config, named(config, "filter-both")) == {"oracle": "filter-both"}
    walk = {"mining.selection": "walk"}
    assert changes(config, named(config, "weighted-walk")) == walk
    found = changes(config, named(config, "nearest-random-walk"))
    assert found == unweighted | nearest | random | walk
    found = changes(config, named(config, "weighted-random"), 2, {"weighted-walk": 17})
    assert found == {"mining.selection": "random", "mining.anchors": 17, "seed": 2}


def test_rows_that_use_labels_say_so_and_no_other_does():
    for row in (*METHOD, *BASELINES, *FEATURES):
        uses = bool({"oracle", "baseline"} & set(row.changes))
        assert ("(uses labels)" in row.label) == uses, row


def test_every_row_is_possible():
    for config in (BIRDS, PHOTOS, replace(BIRDS, study="features")):
        for row in rows_of(config):
            followed = {} if row.anchors_of is None else {row.anchors_of: 3}
            validate(ablation._row_config(config, row, 1, followed))


def test_a_row_that_follows_another_brings_it_along():
    rows = rows_of(replace(BIRDS, rows=("hard-hard-random", "weighted")))
    assert [row.name for row in rows] == ["weighted", "hard-hard-walk", "hard-hard-random"]


def test_a_row_that_does_not_exist_is_named():
    with pytest.raises(InputError, match=r"--rows: no row 'w'; choose from nearest-random .* prox"):
        rows_of(replace(BIRDS, rows=("w",)))
    with pytest.raises(InputError, match=r"no row 'proxy-nca'"):
        rows_of(replace(PHOTOS, rows=("proxy-nca",)))


def test_the_settings_of_both_applications_are_those_of_their_jobs():
    assert isinstance(BIRDS, FinegrainedConfig)
    assert isinstance(PHOTOS, RetrievalConfig)
    for config, plain in ((BIRDS, FINEGRAINED_PRESETS["demo"]), (PHOTOS, preset("demo", "steady"))):
        own = settings(config)
        assert {key: own[key] for key in settings(plain)} == settings(plain)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 3}, "--seed 3: rows have several; name them with --seeds"),
        ({"seeds": ()}, "--seeds : name at least one"),
        ({"seeds": (1, 1)}, "--seeds 1 1: name at least one, each once"),
        ({"seeds": (0, -1)}, "--seeds 0 -1: .* from 0"),
        ({"stages": "extract,evaluate"}, "every row needs graph,mine too"),
    ],
)
def test_a_comparison_that_cannot_be_is_refused(changed, message):
    with pytest.raises(InputError, match=message):
        ablation.run(replace(BIRDS, **changed))


def test_more_rows_and_seeds_are_the_same_comparison():
    more = replace(BIRDS, rows=("weighted",), seeds=(0, 1, 2, 3), storage="elsewhere")
    assert identity_of(more) == identity_of(BIRDS)
    assert identity_of(replace(BIRDS, study="features")) != identity_of(BIRDS)
