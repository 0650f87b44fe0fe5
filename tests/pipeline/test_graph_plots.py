"""The drawings of a graph show the report's numbers, and the sentences beside them say them."""

import dataclasses

import numpy as np
import pytest
from scipy.sparse import csr_array

from mmray.mining.graph_statistics import graph_report
from mmray.pipeline.reports.charts import _short
from mmray.pipeline.reports.graph_plots import graph_plots
from tests.made.synthetic import clouds, graph_of, random_graph


@pytest.fixture(scope="module")
def report():
    """A graph of 60 items, some isolated, in parts of several sizes."""
    return graph_report(random_graph(1, 60, 0.03), clouds(1, 60))


def heights(plot):
    """Read the counts back from the bars, by the scale of the vertical axis."""
    low, high = plot.values[0], plot.values[-1]
    scale = float(high.text) / (low.y - high.y)
    return [round((plot.bottom - bar.y) * scale) for bar in plot.bars]


def test_the_bars_are_the_degrees_and_isolated_images_stand_apart(report):
    (degrees, _), *_ = graph_plots(report)
    assert report.isolated > 0
    assert heights(degrees) == list(report.degree_histogram)
    assert [bar.apart for bar in degrees.bars] == [True, *[False] * report.degree_max]
    assert degrees.bars[0].text == f"0: {report.isolated} images"


def test_the_images_are_counted_by_the_size_of_their_component(report):
    _, (components, _) = graph_plots(report)
    names = [bar.text.partition(":")[0].removeprefix("components of ") for bar in components.bars]
    expected = [0] * len(names)
    for size, count in report.component_histogram:
        expected[sum(size > most for most in (1, 2, 4, 8, 16, 32))] += size * count
    dash = "\N{EN DASH}"
    spans = ["1", "2", f"3{dash}4", f"5{dash}8", f"9{dash}16", f"17{dash}32", f"33{dash}64"]
    assert names == spans[: len(names)]
    assert heights(components) == expected


def test_the_importance_of_the_anchors_falls_from_the_largest(report):
    importance = np.random.default_rng(0).random(7)
    ranks, sentences = graph_plots(report, importance)[2]
    ys = [dot.y for dot in ranks.lines[0].dots]
    assert len(ys) == 7
    assert ys == sorted(ys)
    assert f"{importance.max():.2g} times" in sentences[1]


def test_the_sentences_give_the_numbers():
    edges = [(0, 1, 0.5), (1, 2, 0.2), (4, 5, 0.1)]
    report = graph_report(graph_of(edges, 8), clouds(0, 8))
    (_, degrees), (_, components), (_, anchors) = graph_plots(report, np.array([0.125, 0.5, 2.0]))
    assert degrees == (
        "8 images, 3 edges: an edge joins two images that are among the nearest of one another.",
        "0 to 2 edges an image, 1 in the median.",
        "Without an edge: 3 (37.5%), which nothing is learned from.",
    )
    assert components == (
        "5 components: parts that no edge joins.",
        "The largest holds 3 images (37.5%); then 2, 1, 1.",
    )
    assert anchors[0] == "3 anchors: the images that pools were mined for."


def test_a_graph_of_a_billion_images_has_as_few_marks_as_any(report):
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
    for plot, _ in graph_plots(huge, np.linspace(1e-12, 1e-11, 100_000)):
        assert len(plot.bars) <= 41
        assert all(len(line.dots) <= 60 for line in plot.lines)
        assert all(plot.left <= mark.x <= plot.right for mark in (*plot.bars, *plot.columns))
        assert all(plot.top <= mark.y <= plot.bottom for mark in (*plot.bars, *plot.values))
        wide = [7 * len(mark.text) for mark in plot.columns]
        places = [mark.x for mark in plot.columns]
        for place, after, width, other in zip(places, places[1:], wide, wide[1:], strict=False):
            assert after - place >= (width + other) / 2, "no label runs into the next"


@pytest.mark.parametrize("n", [1, 2, 12])
@pytest.mark.parametrize("anchors", [0, 1, 2])
def test_the_smallest_graphs_have_whole_numbers_at_their_axes(n, anchors):
    complete = csr_array(np.ones((n, n), np.float32) - np.eye(n, dtype=np.float32))
    plots = graph_plots(graph_report(complete, clouds(0, n)), np.full(anchors, 1.0))
    assert len(plots) == (3 if anchors else 2)
    for plot, _ in plots[:2]:
        assert len(plot.values) >= 2
        assert all(mark.text.isdigit() for mark in plot.values)


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
        graph_plots(report, np.array([0.5, value]))
