"""A labelled set describes each image once, and is scored by its own rules."""

import dataclasses

import numpy as np
import pytest

from mmray.config.presets import EVALUATE
from mmray.evaluation.benchmarks.classes import ClassSet
from mmray.evaluation.benchmarks.labelled_set import LabelledSet, as_labelled, labelled_set
from mmray.evaluation.paper_table import paper_scores
from mmray.evaluation.ranking import (
    Query,
    mean_average_precision,
    mean_precision_at_k,
    rank,
)
from mmray.evaluation.recall import recall_at_k
from mmray.evaluation.scores import Score
from mmray.evaluation.scoring import figures
from mmray.images.collection import ImageFile
from mmray.system.errors import InputError
from tests.made.synthetic import clouds

LABELS = np.array(["a", "b", "a", "b", "b", "c"])


def image(name, box=None):
    return ImageFile(uri=f"/photos/{name}", name=name, box=box)


def classes():
    """Six images that all search for the others of their class."""
    images = [image(f"{i}.jpg") for i in range(6)]
    truth = [
        Query(
            "", "", None, np.flatnonzero((label == LABELS) & (np.arange(6) != i)), np.array([i]), i
        )
        for i, label in enumerate(LABELS)
    ]
    return LabelledSet(database=images, queries=images, ground_truth=truth, labels=LABELS.tolist())


def boxed(**changes):
    """Three images; two of them search, one by a part of it."""
    images = [image(name) for name in ("x", "y", "z")]
    queries = [image("y", box=(0, 0, 5, 5)), image("x")]
    truth = [Query("", "", None, np.array([2]), np.array([1])) for _ in queries]
    return LabelledSet(database=images, queries=queries, ground_truth=truth, **changes)


def test_an_image_that_searches_whole_is_described_once():
    assert len(classes().items) == 6
    assert [(i.name, i.box is None) for i in boxed().items] == [
        *(("x", True), ("y", True), ("z", True), ("y", False))
    ]
    assert len(boxed().without_boxes().items) == 3


def test_descriptors_go_to_the_database_and_to_the_queries():
    labelled, rows = boxed(), clouds(0, 4, 3)
    database, queries = labelled.split(rows)
    np.testing.assert_array_equal(database, rows[:3])
    np.testing.assert_array_equal(queries, rows[[3, 0]])
    wanted = mean_average_precision(rank(rows[:3], rows[[3, 0]]), labelled.ground_truth)[0]
    assert labelled.mean_average_precision(rows) == wanted


def test_own_rows_are_those_that_the_rules_ignore():
    assert classes().own.tolist() == list(range(6))
    assert boxed().own.tolist() == [-1, -1]


def test_the_fingerprint_shows_a_change_of_the_rules():
    one = boxed().digest()
    assert boxed().digest() == one
    for other in (
        boxed(name="other"),
        boxed(distractors=[image("d")]),
        boxed(protocols={"Hard": boxed().ground_truth}),
        boxed().without_boxes(),
        boxed(labels=["a", "a", "b"]),
    ):
        assert other.digest() != one


def in_classes(*labels):
    """An image of each label."""
    return ClassSet(
        source="data/birds/",
        images=tuple(image(f"{i}.jpg") for i in range(len(labels))),
        labels=labels,
        classes=tuple(dict.fromkeys(labels)),
    )


def test_images_in_classes_search_for_the_others_of_their_class():
    found, wanted = as_labelled(in_classes(*LABELS.tolist())), classes()
    assert (found.name, found.labels) == ("birds", tuple(LABELS.tolist()))
    assert found.items == found.database == found.queries == wanted.items
    assert found.own.tolist() == list(range(6))
    for one, two in zip(found.ground_truth, wanted.ground_truth, strict=True):
        assert (one.positives.tolist(), one.junk.tolist()) == (
            *(two.positives.tolist(), two.junk.tolist()),
        )
    assert as_labelled(in_classes("a", "a"), "half").name == "half"


def test_classes_of_one_image_each_are_no_labelled_set():
    with pytest.raises(InputError, match=r"^data/birds/: no two of 3 images in 3 classes .*; add"):
        as_labelled(in_classes("a", "b", "c"))


def test_a_folder_of_cub_is_a_labelled_set(tmp_path):
    root = tmp_path / "CUB_200_2011"
    (root / "images").mkdir(parents=True)
    for name in ("x", "y", "z", "w"):
        (root / "images" / f"{name}.jpg").write_bytes(b"an image")
    (root / "images.txt").write_text("1 z.jpg\n2 x.jpg\n3 y.jpg\n")
    (root / "image_class_labels.txt").write_text("1 2\n2 1\n3 2\n")
    found = labelled_set(str(root), None)
    assert (found.name, found.labels) == ("CUB_200_2011", ("2", "1", "2"))
    assert [i.name for i in found.items] == ["images/z.jpg", "images/x.jpg", "images/y.jpg"]
    assert [query.positives.tolist() for query in found.ground_truth] == [[2], [], [0]]


def test_classes_are_measured_by_map_and_recall():
    rows = clouds(1, 6, 3)
    found = figures(classes(), rank(rows, rows))
    assert list(found) == ["mAP", "R@1", "R@2", "R@4", "R@8"]
    assert found["mAP"] == classes().mean_average_precision(rows)
    wanted = recall_at_k(rows, LABELS)
    assert {int(name[2:]): value for name, value in found.items() if name != "mAP"} == wanted
    assert found["R@1"] < found["R@4"] < 1  # c is alone


def test_protocols_are_measured_each_by_map_and_precision():
    rows, ids = clouds(2, 3, 4), np.arange(3)
    rules = {
        name: [Query("", "", None, ids[positives], ids[:0]) for positives in both]
        for name, both in {"Easy": ([0], [1]), "Hard": ([1, 2], [2])}.items()
    }
    labelled = boxed(protocols=rules)
    ranks = rank(rows, clouds(3, 2, 4))
    found = figures(labelled, ranks)
    assert list(found) == ["mAP Easy", "mAP Hard", "mP@10 Easy", "mP@10 Hard"]
    for name, truth in rules.items():
        assert found[f"mAP {name}"] == mean_average_precision(ranks, truth)[0]
        assert found[f"mP@10 {name}"] == mean_precision_at_k(ranks, truth, 10)
    assert len(set(found.values())) > 2


def test_a_set_with_one_rule_is_measured_by_map():
    assert list(figures(boxed(), rank(clouds(4, 3), clouds(5, 2)))) == ["mAP"]


@pytest.mark.parametrize(
    ("changes", "network", "shown"),
    [
        ({}, "vgg16", True),
        ({"dims": 512}, "vgg16", True),
        ({"dims": 128}, "vgg16", False),
        ({"longest_side": 512}, "vgg16", False),
        ({"scales": (1.0, 0.5)}, "vgg16", False),
        ({"crop": False}, "vgg16", False),
        ({}, "resnet50", False),
    ],
)
def test_the_rows_of_the_paper_stand_only_beside_its_own_setting(changes, network, shown):
    measured = [
        Score("net", "mac", "none", 0.1, "paris6k"),
        Score("net", "mac", "none", 0.2, "own"),
    ]
    found = paper_scores(measured, dataclasses.replace(EVALUATE, **changes), [network])
    assert {score.benchmark for score in found} == ({"paris6k"} if shown else set())
    assert [score.network for score in found] == (
        ["paper: pre-trained", "paper: CNN from BoW", "paper: fine-tuned"] if shown else []
    )
