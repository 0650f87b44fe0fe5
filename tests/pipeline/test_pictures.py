"""Which searches a page shows: those that changed most, or the hardest, and others at random."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from mmray.evaluation.ranking import Query
from mmray.images.collection import Collection, ImageFile
from mmray.pipeline.recipes.search_pictures import searches
from mmray.pipeline.reports.thumbnails import Thumbnails
from mmray.pipeline.stages.evaluation import SearchExamples, unlabelled_examples

QUERIES, SHOWN = 12, 3
PICTURE = Thumbnails(16)


@pytest.fixture
def labelled(tmp_path):
    """Each query is to find the image of its own number; that of the next does not count."""
    images = []
    for number in range(QUERIES + 1):
        path = tmp_path / f"{number}.png"
        Image.new("RGB", (20, 12), (10 * number, 100, 50)).save(path)
        images.append(ImageFile(uri=str(path), name=path.name))
    none = np.empty(0, np.int64)
    truth = [Query("", "", None, np.array([n]), np.array([n + 1])) for n in range(QUERIES)]
    truth[-1] = Query("", "", None, none, none)
    return SimpleNamespace(
        queries=images[:QUERIES], database=images[:-1], distractors=images[-1:], ground_truth=truth
    )


def found(labelled, network, precision):
    """Every network finds the right image first, then that which does not count, then another."""
    rows = [np.array([n, n + 1, (n + 3) % QUERIES]) for n in range(QUERIES)]
    return SearchExamples(
        network=network, labelled=labelled, first=tuple(rows), precision=np.asarray(precision)
    )


BEFORE = [0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, np.nan]
AFTER = [0.6, 0.4, 0.9, 0.5, 0.8, 0.3, 0.7, 0.2, 0.5, 0.5, 0.5, np.nan]


def names(groups):
    return {group.heading: [each.query.name for each in group.queries] for group in groups}


def test_the_queries_that_changed_most_come_first_and_others_are_drawn(labelled):
    pair = [found(labelled, "initial", BEFORE), found(labelled, "tuned", AFTER)]
    groups = searches(pair, PICTURE, seed=0)
    shown = names(groups)
    assert shown["Most improved"] == ["2.png", "4.png", "6.png", "0.png"]
    assert shown["Most worsened"] == ["7.png", "5.png"]
    others = shown["Others, drawn at random"]
    assert len(others) == 4
    assert set(others) <= {"1.png", "3.png", "8.png", "9.png", "10.png"}
    assert names(searches(pair, PICTURE, seed=1))["Others, drawn at random"] != others
    first = groups[0].queries[0]
    assert [ranking.network for ranking in first.rankings] == ["initial", "tuned"]
    assert first.points == 40
    kinds = [picture.kind for picture in first.rankings[1].pictures]
    assert kinds == ["right", "unlabelled", "wrong"]
    assert [picture.name for picture in first.rankings[1].pictures] == ["2.png", "3.png", "5.png"]


def test_a_network_alone_shows_its_hardest_queries(labelled):
    groups = searches([found(labelled, "vgg16", AFTER)], PICTURE, seed=0)
    assert names(groups)["Hardest"] == ["7.png", "5.png", "1.png", "3.png"]
    assert all(each.points is None for group in groups for each in group.queries)


def test_the_first_and_the_last_of_several_networks_are_compared(labelled):
    middle = found(labelled, "middle", [0.0] * QUERIES)
    three = [found(labelled, "initial", BEFORE), middle, found(labelled, "tuned", AFTER)]
    groups = searches(three, PICTURE, seed=0)
    assert names(groups)["Most improved"] == ["2.png", "4.png", "6.png", "0.png"]
    assert {len(each.rankings) for group in groups for each in group.queries} == {3}


def test_without_labels_the_searches_whose_first_results_changed_most_are_shown(labelled):
    images = Collection.of(labelled.database)
    rng = np.random.default_rng(0)
    before = rng.normal(size=(QUERIES, 8)).astype(np.float32)
    before /= np.linalg.norm(before, axis=1, keepdims=True)
    after = before.copy()
    after[4] = -before[4]  # it finds what was farthest from it
    networks = {"initial": before, "tuned": after}
    examples = unlabelled_examples(networks, images, seed=0)
    few = [replace(each, first=tuple(rows[:3] for rows in each.first)) for each in examples]
    groups = searches(few, PICTURE, seed=0)
    shown = names(groups)
    (heading,) = [heading for heading, queries in shown.items() if queries]
    assert heading == f"The {len(shown[heading])} searches that changed most"
    assert shown[heading][0] == "4.png"
    assert len(shown[heading]) < QUERIES, "those that did not change are left out"
    changed = groups[0].queries[0]
    assert changed.points is None
    assert changed.caption == "3 of the first 3 are new"
    kinds = [{picture.kind for picture in ranked.pictures} for ranked in changed.rankings]
    assert kinds == [{"dropped"}, {"added"}]
    for each in groups[0].queries:
        first, last = ({p.name for p in ranked.pictures} for ranked in each.rankings)
        told = {p.name for ranked in each.rankings for p in ranked.pictures if p.kind == "plain"}
        assert told == first & last
    found = [[picture.name for picture in ranked.pictures] for ranked in changed.rankings]
    order = np.argsort(-(before @ before[4]), kind="stable")
    assert found[0] == [f"{row}.png" for row in order[order != 4][:3]]
    assert not set(found[0]) & set(found[1])


def test_nothing_changed_and_nothing_measured(labelled):
    same = [found(labelled, name, BEFORE) for name in ("initial", "tuned")]
    shown = names(searches(same, PICTURE, seed=0))
    assert (shown["Most improved"], shown["Most worsened"]) == ([], [])
    assert len(shown["Others, drawn at random"]) == 4
    assert searches([], PICTURE, seed=0) == ()
    unmeasured = [found(labelled, name, [np.nan] * QUERIES) for name in ("initial", "tuned")]
    assert not any(names(searches(unmeasured, PICTURE, seed=0)).values())
