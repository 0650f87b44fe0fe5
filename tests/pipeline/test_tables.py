"""The table of results says what was measured."""

from typing import get_args

from mmray.config.choices import Descriptor
from mmray.evaluation.scores import Score
from mmray.pipeline.reports.tables import DESCRIPTORS, results_table, table


def test_the_table_lists_mac_before_rmac_and_rounds_to_a_tenth_of_a_percent():
    scores = [
        Score("initial", "rmac", "none", 0.51249),
        Score("initial", "mac", "PCA", 1.0),
        Score("fine-tuned", "mac", "LDA", 0.0),
    ]
    assert results_table(scores).splitlines() == [
        "| descriptor | network    | whitening |   mAP |",
        "| ---------- | ---------- | --------- | ----: |",
        "| MAC        | initial    | PCA       | 100.0 |",
        "| MAC        | fine-tuned | LDA       |   0.0 |",
        "| R-MAC      | initial    | none      |  51.2 |",
    ]


def test_every_descriptor_has_a_name_in_tables():
    assert set(DESCRIPTORS) == set(get_args(Descriptor))


def test_benchmarks_are_columns_and_a_figure_that_was_not_measured_is_left_empty():
    scores = [
        Score("a", "mac", "none", 0.5, "oxford5k"),
        Score("a", "mac", "none", 0.25, "holidays", "mAP"),
        Score("a", "mac", "none", 0.125, "holidays", "mP@10"),
        Score("paper: a", "mac", "none", 0.585, "oxford5k"),
    ]
    assert results_table(scores).splitlines() == [
        "| descriptor | network  | whitening | oxford5k | holidays mAP | holidays mP@10 |",
        "| ---------- | -------- | --------- | -------: | -----------: | -------------: |",
        "| MAC        | a        | none      |     50.0 |         25.0 |           12.5 |",
        "| MAC        | paper: a | none      |     58.5 |              |                |",
    ]


def test_searches_are_rows_where_there_are_several():
    scores = [
        Score("a", "mac", "none", value, "mine", measure, search)
        for search, values in (("plain", (0.5, 0.6)), ("aqe", (0.7, 0.8)))
        for measure, value in zip(("mAP", "R@1"), values, strict=True)
    ]
    assert results_table(scores).splitlines() == [
        "| descriptor | network | whitening | search |  mAP |  R@1 |",
        "| ---------- | ------- | --------- | ------ | ---: | ---: |",
        "| MAC        | a       | none      | plain  | 50.0 | 60.0 |",
        "| MAC        | a       | none      | AQE    | 70.0 | 80.0 |",
    ]


def test_names_of_others_stay_in_their_cells_and_do_nothing_to_a_terminal():
    rows = [("a|b\\|c", "1"), ("x\ny\x1b[2J", "22"), ("\u202egpj", "3")]
    assert table(("im|age", "rank"), rows).splitlines() == [
        r"| im\x7cage    | rank |",
        r"| ------------ | ---: |",
        r"| a\x7cb\\x7cc |    1 |",
        r"| x\ny\x1b[2J  |   22 |",
        r"| \u202egpj    |    3 |",
    ]
