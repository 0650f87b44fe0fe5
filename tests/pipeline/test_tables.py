"""The table of results says what was measured, and the picture shows the report's numbers."""

import dataclasses
import io
import subprocess
import sys
from itertools import pairwise
from typing import get_args

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array

from mmray.config.choices import Descriptor
from mmray.evaluation.scores import Score
from mmray.mining.graph_statistics import graph_report
from mmray.pipeline.reports.graph_figure import _drawn, _short, graph_figure
from mmray.pipeline.reports.tables import DESCRIPTORS, results_table, table
from tests.made.synthetic import clouds, graph_of, random_graph


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


@pytest.fixture(scope="module")
def report():
    """Of 60 items, some isolated, in parts of several sizes."""
    return graph_report(random_graph(1, 60, 0.03), clouds(1, 60))


def values_of(axes):
    """What bars and lines show: (values, edges) of each set of bars, (x, y) of each line."""
    bars = [
        (list(bar.get_data().values), list(bar.get_data().edges))
        for bar in axes.patches  # in the order they were drawn
    ]
    return bars, [tuple(map(list, line.get_data())) for line in axes.lines]


def test_the_panels_show_degrees_components_and_importance(report):
    importance = np.random.default_rng(0).random(7)
    degrees, components, ranks = _drawn(report, importance).axes
    assert report.isolated > 0

    bars, _ = values_of(degrees)
    edges = [i - 0.5 for i in range(report.degree_max + 2)]
    assert bars[0] == (list(report.degree_histogram), edges)
    assert bars[1] == ([report.isolated], [-0.5, 0.5])

    _, [(sizes, counts)] = values_of(components)
    assert tuple(zip(sizes, counts, strict=True)) == report.component_histogram
    assert (components.get_xscale(), components.get_yscale()) == ("log", "log")

    _, [(places, values)] = values_of(ranks)
    assert places == [1, 2, 3, 4, 5, 6, 7]
    assert values == sorted(importance, reverse=True)


def test_titles_give_the_numbers():
    edges = [(0, 1, 0.5), (1, 2, 0.2), (4, 5, 0.1)]
    report = graph_report(graph_of(edges, 8), clouds(0, 8))
    figure = _drawn(report, np.array([0.125, 0.5, 0.25]))
    assert [axes.get_title().splitlines() for axes in figure.axes] == [
        ["8 items, 3 edges", "degree 0 to 2, median 1, mean 0.8", "isolated (red): 3 (37.5%)"],
        ["5 components", "largest: 3 items (37.5%)", "next: 2, 1, 1"],
        ["3 anchors", "π from 0.5 down to 0.12"],
    ]


def test_the_file_is_a_png_and_wider_with_importance(report):
    images = [
        Image.open(io.BytesIO(graph_figure(report, importance)))
        for importance in (None, np.array([0.5]))
    ]
    assert [image.format for image in images] == ["PNG", "PNG"]
    assert [image.size for image in images] == [(1104, 432), (1656, 432)]
    colors = [color[:3] for _, color in images[0].getcolors(1 << 20)]
    assert {(0x44, 0x77, 0xAA), (0xCC, 0x33, 0x11), (255, 255, 255)} <= set(colors)


def test_no_text_is_clipped_or_runs_into_another(report):
    large = 712_345_678
    huge = dataclasses.replace(
        report,
        items=1_000_000_000,
        edges=30_123_456_789,
        isolated=123_456_789,
        components=123_456_791,
        largest_components=(large, *[112_345_678] * 4),
        degree_max=12_345,
        degree_histogram=(123_456_789, *[70_000] * 12_345),
        component_histogram=((1, 123_456_789), (112_345_678, 4), (large, 1)),
    )
    figure = _drawn(huge, np.linspace(1e-12, 1e-11, 100_000))
    figure.draw_without_rendering()
    width, height = figure.bbox.width, figure.bbox.height
    boxes = []
    for axes in figure.axes:
        tight = axes.get_tightbbox()
        assert tight.x0 >= 0
        assert tight.y0 >= 0
        assert tight.x1 <= width
        assert tight.y1 <= height
        boxes.append((tight.x0, tight.x1))
        for axis in (axes.xaxis, axes.yaxis):
            labels = [label.get_window_extent() for label in axis.get_ticklabels()]
            assert not any(one.overlaps(other) for one, other in pairwise(labels))
    assert boxes[0][1] < boxes[1][0]
    assert boxes[1][1] < boxes[2][0]


@pytest.mark.parametrize("n", [1, 2, 12])
@pytest.mark.parametrize("anchors", [0, 1, 2])
def test_the_smallest_graphs_have_whole_numbers_at_their_axes(n, anchors):
    complete = csr_array(np.ones((n, n), np.float32) - np.eye(n, dtype=np.float32))
    figure = _drawn(graph_report(complete, clouds(0, n)), np.full(anchors, 1.0))
    figure.draw_without_rendering()
    degrees, components, ranks = figure.axes
    for axis in (degrees.xaxis, degrees.yaxis, components.xaxis, components.yaxis, ranks.xaxis):
        low, high = sorted(axis.get_view_interval())
        texts = [
            label.get_text()
            for place, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=True)
            if low <= place <= high
        ]
        assert len(texts) >= 2
        assert all(text.isdigit() for text in texts), texts


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0, "0"),
        (999, "999"),
        (1000, "1k"),
        (1750, "1.75k"),
        (2_000_000, "2M"),
        (30_000_000_000, "30G"),
    ],
)
def test_large_numbers_are_written_short(number, text):
    assert _short(number) == text


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1])
def test_an_importance_that_is_none_is_refused(report, value):
    with pytest.raises(ValueError, match="importance must be finite and not negative"):
        graph_figure(report, np.array([0.5, value]))


@pytest.mark.process
def test_matplotlib_comes_with_the_first_figure_and_without_pyplot():
    program = """
import sys
import numpy as np
from mmray.mining.graph_statistics import graph_report
from mmray.pipeline.reports.graph_figure import graph_figure
from scipy.sparse import csr_array
assert "matplotlib" not in sys.modules
ones = np.ones((2, 2), np.float32)
graph_figure(graph_report(csr_array(ones - np.eye(2)), ones))
assert "matplotlib.figure" in sys.modules
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_names_of_others_stay_in_their_cells_and_do_nothing_to_a_terminal():
    rows = [("a|b\\|c", "1"), ("x\ny\x1b[2J", "22"), ("\u202egpj", "3")]
    assert table(("im|age", "rank"), rows).splitlines() == [
        r"| im\x7cage    | rank |",
        r"| ------------ | ---: |",
        r"| a\x7cb\\x7cc |    1 |",
        r"| x\ny\x1b[2J  |   22 |",
        r"| \u202egpj    |    3 |",
    ]
