"""Pages hold all they show, say it truthfully, and no name of a file can break them."""

import base64
import io
import math
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from mmray.pipeline.reports.charts import Chart, Series, bar_plot, plot
from mmray.pipeline.reports.examples import (
    Chosen,
    Copies,
    Copy,
    CopyGroup,
    MinedAnchor,
    QueryGroup,
    Ranked,
    Searched,
)
from mmray.pipeline.reports.run_page import (
    SECTIONS,
    Answer,
    Fact,
    GraphDrawing,
    LeftOut,
    Report,
    StageTime,
    Unreadable,
    duration,
    report_page,
)
from mmray.pipeline.reports.search_page import Result, Search, search_page
from mmray.pipeline.reports.tables import Table
from mmray.pipeline.reports.templating import cut
from mmray.pipeline.reports.thumbnails import FRAMES, MARKS, Picture, frame_kind, thumbnail

HOSTILE = "été à Paris/\"><script>alert('x')</script> & <b>copy</b> \u05d0 " + "x" * 200 + ".jpg"
VOID = {"meta", "link", "img", "wbr"}  # those of SVG end in "/>"


class Page(HTMLParser):
    """Elements of a page as (name, attributes), with the text of each; every tag is closed."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.texts, self.open = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")
        if tag not in VOID:
            self.open.append((tag, len(self.texts) - 1))

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        self.texts.append("")

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        for _, place in self.open:
            self.texts[place] += data

    def all(self, tag, kind=None):
        """Attributes of the elements of a name, and of a class."""
        return [
            attributes
            for name, attributes in self.elements
            if name == tag and (kind is None or kind in (attributes.get("class") or "").split())
        ]

    def text(self, tag, kind=None):
        """What is written in each of them, white space made single."""
        return [
            " ".join(text.split())
            for (name, attributes), text in zip(self.elements, self.texts, strict=True)
            if name == tag and (kind is None or kind in (attributes.get("class") or "").split())
        ]


def pixels(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition("base64,")[2])))


def picture(name="a.jpg", kind="plain", uri=None, href=None):
    return Picture(name=name, uri=uri or thumbnail(pixels(6, 8), 8), kind=kind, href=href)


def drawing(text="The graph has 4 items.", sentence="4 images, 3 edges."):
    bars = [("0", 1, "0: 1 image"), ("1", 3, "1: 3 images")]
    drawn = bar_plot("Edges of an image", bars, unit="images", across="edges", apart=0)
    return GraphDrawing(plots=((drawn, (sentence,)),), text=text)


@pytest.fixture
def report():
    """With something in every section."""
    chosen = Chosen(
        picture=picture("p.jpg", "right"),
        cosine=0.41234,
        cosine_rank=1087,
        manifold=0.25,
        manifold_rank=3,
    )
    searched = Searched(
        query=picture("q.jpg", "anchor"),
        rankings=(
            Ranked(
                network="initial", pictures=(picture("b.jpg", "wrong"),), average_precision=0.4312
            ),
            Ranked(
                network="fine-tuned",
                pictures=(picture("c.jpg", "right"),),
                average_precision=0.6101,
            ),
        ),
    )
    return Report(
        title="Paris",
        date="25 November 2026",
        verdict="Better: mAP 43.1% -> 61.0% (+17.9 points), MAC.",
        mood="better",
        answers=(Answer(question="What next?", answer="Search:", commands=("mmray search",)),),
        summary=("It rose.",),
        facts=(Fact(name="images", value="1,250", note="of two folders"),),
        results=Table(head=("network", "mAP"), rows=(("initial", "57.3"), ("tuned", "70.6"))),
        charts=(Chart(title="Loss", series=(Series(name="loss", points=((1, 0.4), (2, 0.3))),)),),
        graph=drawing(),
        anchors=(
            MinedAnchor(
                anchor=picture("a.jpg", "anchor"),
                caption="importance 0.1",
                positives=(chosen,),
                negatives=(replace(chosen, picture=picture("n.jpg", "right"), manifold=None),),
                nearest=(replace(chosen, cosine_rank=0, manifold=None, manifold_rank=None),),
            ),
        ),
        retrieval=(QueryGroup(heading="Most improved", queries=(searched,)),),
        copies=Copies(
            text="2 near-duplicates in 1 group.",
            groups=(
                (
                    "Largest groups",
                    (
                        CopyGroup(
                            representative=picture("whole.jpg"),
                            caption="and 2 like it",
                            copies=(Copy(picture=picture("small.jpg"), cosine=0.91, distance=4),),
                            more=1200,
                        ),
                    ),
                ),
            ),
        ),
        left_out=LeftOut(
            counts=(Fact(name=".mov", value="1,312", note="not an image, by its name"),),
            unreadable=(Unreadable(name="bad.jpg", reason="truncated"),),
        ),
        stages=(StageTime(name="train", seconds=151), StageTime(name="mine", seconds=15.1)),
        settings=(("--mining.alpha", "0.99"),),
        versions=(("mmray", "0.1"),),
    )


def test_near_duplicates_stand_beside_the_one_that_represents_them(report):
    page = Page(report_page(report))
    (section,) = [text for text in page.text("section") if text.startswith("Near-duplicates")]
    assert section == (
        "Near-duplicates 2 near-duplicates in 1 group. Largest groups whole.jpg and 2 like it "
        "small.jpg cosine 0.910 bits apart 4 1,200 more are not shown."
    )


def search_of(name="a.jpg", href="file:///a.jpg"):
    result = Result(picture=picture(name, href=href), similarity=0.98765)
    return Search(query=picture(name, "anchor"), results=(result,))


def test_a_thumbnail_fits_its_side_and_keeps_its_shape():
    image = decoded(thumbnail(pixels(300, 600), 96))
    assert (image.format, image.size) == ("JPEG", (96, 48))
    assert decoded(thumbnail(pixels(2, 900), 90)).size == (90, 1)


def test_a_small_image_is_not_enlarged():
    assert decoded(thumbnail(pixels(20, 30), 96)).size == (30, 20)


@pytest.mark.parametrize(
    ("array", "side", "message"),
    [
        (np.zeros((4, 4), np.uint8), 8, r"\(4, 4\) uint8"),
        (np.zeros((4, 4, 3), np.float32), 8, "float32"),
        (np.zeros((0, 4, 3), np.uint8), 8, r"\(0, 4, 3\)"),
        (np.zeros((4, 4, 3), np.uint8), 0, "side = 0"),
    ],
)
def test_what_is_no_image_is_refused(array, side, message):
    with pytest.raises(ValueError, match=message):
        thumbnail(array, side)


def test_a_picture_elsewhere_and_a_strange_kind_are_refused():
    with pytest.raises(ValueError, match=r"'https://example\.org/a.jpg' is not a data: URI"):
        Picture(name="a", uri="https://example.org/a.jpg")
    with pytest.raises(ValueError, match="kind 'good' is none of anchor, right"):
        Picture(name="a", uri=None, kind="good")


def test_every_image_is_inside_the_page_and_has_a_text(report):
    for html in (report_page(report), search_page([search_of(), search_of()])):
        page = Page(html)
        assert page.all("img")
        for image in page.all("img"):
            assert image["src"].startswith("data:image/")
            assert image["alt"]


def test_only_links_of_images_lead_out_of_a_page(report):
    for html, links in (
        (report_page(report), []),
        (search_page([search_of(), search_of()]), ["file:///a.jpg"] * 2),
    ):
        page = Page(html)
        assert not page.all("script")
        outside = [
            (name, attributes[key])
            for name, attributes in page.elements
            for key in ("src", "href", "srcset", "data", "action", "poster", "xlink:href")
            if key in attributes and not attributes[key].startswith(("data:", "#"))
        ]
        assert outside == [("a", link) for link in links]
        assert "@import" not in html
        assert "url(" not in html


def test_the_contents_name_every_section_once_and_in_order(report):
    page = Page(report_page(report))
    targets = [a["href"].removeprefix("#") for a in page.all("a")]
    assert targets == list(SECTIONS)
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert set(targets) <= set(ids)
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", SECTIONS)
def test_an_empty_section_is_absent(report, name):
    empty = replace(report, **{name: getattr(Report(title=""), name)})
    page = Page(report_page(empty))
    expected = [section for section in SECTIONS if section != name]
    assert [attributes["id"] for attributes in page.all("section")] == expected
    assert [a["href"] for a in page.all("a")] == [f"#{section}" for section in expected]


def test_a_table_without_rows_a_chart_without_points_and_a_group_without_queries_are_empty():
    page = Page(
        report_page(
            Report(
                title="nothing",
                results=Table(head=("network", "mAP"), rows=()),
                charts=(Chart(title="Loss", series=(Series(name="loss", points=()),)),),
                retrieval=(QueryGroup(heading="Most improved", queries=()),),
            )
        )
    )
    assert not page.all("section")
    assert not page.all("nav")
    assert not page.all("footer")


def test_hostile_names_are_only_text(report):
    hostile = replace(
        report,
        title=HOSTILE,
        summary=(HOSTILE,),
        facts=(Fact(name=HOSTILE, value=HOSTILE),),
        results=None,
        copies=None,
        charts=(Chart(title=HOSTILE, series=(Series(name=HOSTILE, points=((1, 1.0),)),) * 2),),
        graph=drawing(HOSTILE, HOSTILE),
        answers=(Answer(question=HOSTILE, answer=HOSTILE, commands=(HOSTILE,)),),
        verdict=HOSTILE,
        reasons={"results": HOSTILE, "copies": HOSTILE},
        anchors=(
            MinedAnchor(
                anchor=picture(HOSTILE, "anchor"),
                caption=HOSTILE,
                positives=(Chosen(picture=Picture(name=HOSTILE, uri=None)),),
            ),
        ),
        left_out=LeftOut(
            counts=(Fact(name=HOSTILE, value=HOSTILE),),
            unreadable=(Unreadable(name=HOSTILE, reason=HOSTILE),),
        ),
        stages=(StageTime(name=HOSTILE, seconds=1),),
        settings=((HOSTILE, HOSTILE),),
        versions=((HOSTILE, HOSTILE),),
    )
    page = Page(report_page(hostile))
    assert not page.all("script")
    assert HOSTILE in [image["alt"] for image in page.all("img")]
    assert HOSTILE in [
        element["aria-label"].partition(",")[0] for element in page.all("span", "missing")
    ]
    whole = " ".join(HOSTILE.split())
    assert page.text("h1") == [whole]
    assert " ".join(cut(HOSTILE).split()) in page.text("bdi", "name")
    assert HOSTILE in [name["title"] for name in page.all("bdi", "name")]

    page = Page(search_page([search_of(HOSTILE), search_of(HOSTILE)], title=HOSTILE))
    assert not page.all("script")
    assert page.text("bdi", "name") == [" ".join(cut(HOSTILE).split())] * 4


def test_a_name_that_is_no_text_does_not_keep_a_page_from_being_written():
    page = search_page([search_of("caf\udce9.jpg")])
    assert "caf?.jpg" in page.encode("utf-8").decode("utf-8")


def test_what_cannot_be_read_is_a_box_that_says_so():
    gone = Picture(name="gone.jpg", uri=None)
    page = Page(search_page([Search(query=gone, results=(Result(picture=gone, similarity=1.0),))]))
    assert not page.all("img")
    labels = [element["aria-label"] for element in page.all("span", "missing")]
    assert labels == ["gone.jpg, not readable"] * 2


def test_frames_have_their_colours(report):
    html = report_page(report)
    for kind, color in FRAMES.items():
        assert ".{} {{ --frame: #{:02x}{:02x}{:02x}; }}".format(kind, *color) in html
    tiles = [(tile["title"], tile["class"]) for tile in Page(html).all("span", "tile")]
    assert ("n.jpg", "tile right") in tiles
    assert ("c.jpg", "tile right") in tiles
    assert ("b.jpg", "tile wrong") in tiles


def test_the_legend_explains_only_frames_that_occur(report):
    legend = Page(report_page(replace(report, charts=()))).text("ul", "legend")
    assert legend == [
        "✓right: it shows what the query shows ✕wrong",
        "✓right by the labels: a positive of the anchor's label, a negative of another",
    ]


def test_right_and_wrong_are_told_by_a_sign_and_in_words_not_by_colour_alone(report):
    page = Page(report_page(report))
    names = [tile["title"] for tile in page.all("span", "tile")]
    told = dict(zip(names, page.text("span", "tile"), strict=True))
    assert told["c.jpg"] == "✓right"
    assert told["b.jpg"] == "✕wrong"
    assert told["q.jpg"] == ""
    assert set(MARKS) == set(FRAMES) - {"anchor", "plain"}
    assert len({sign for sign, _ in MARKS.values()}) == len(MARKS)


@pytest.mark.parametrize("kind", MARKS)
def test_a_white_sign_can_be_read_on_its_frame(kind):
    color = np.array(FRAMES[kind]) / 255
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    assert 1.05 / (luminance + 0.05) >= 4.5  # WCAG 2, AA


def test_every_image_leads_to_its_file_where_a_link_can_work(report):
    linked = QueryGroup(
        heading="all",
        queries=(
            Searched(
                query=picture("q.jpg", "anchor", href="file:///photos/q.jpg"),
                rankings=(
                    Ranked(network="n", pictures=(picture("s3.jpg", href="s3://bucket/a.jpg"),)),
                ),
            ),
        ),
    )
    page = Page(report_page(Report(title="t", retrieval=(linked,))))
    assert [a["href"] for a in page.all("a", "file")] == ["file:///photos/q.jpg"]


def test_a_long_name_is_cut_in_its_middle_and_whole_in_its_title():
    long = "2019 Summer holidays in Brittany/IMG_20190714_153000_edited_copy.jpg"
    assert cut("short.jpg") == "short.jpg"
    assert cut(long) == f"{long[:19]}…{long[-20:]}"
    assert len(cut(long)) == 40
    searched = Searched(query=picture(long), rankings=())
    group = QueryGroup(heading="h", queries=(searched,))
    page = Page(report_page(Report(title="t", retrieval=(group,))))
    assert page.text("bdi", "name") == [cut(long)]
    assert page.all("bdi", "name")[0]["title"] == long


def test_the_verdict_has_a_sign_and_comes_before_the_answers_and_these_before_all_else(report):
    html = report_page(report)
    page = Page(html)
    assert page.text("p", "verdict") == ["▲Better: mAP 43.1% -> 61.0% (+17.9 points), MAC."]
    assert page.text("dl", "answers") == ["What next?Search: mmray search"]
    places = [html.index(mark) for mark in ("<h1", 'class="verdict', 'class="answers"', "<section")]
    assert places == sorted(places)
    signs = {
        Page(report_page(replace(report, mood=mood))).text("span", "sign")[0]
        for mood in ("better", "worse", "unchanged", "unknown", "nothing")
    }
    assert len(signs) == 5


@pytest.mark.parametrize("name", SECTIONS)
def test_an_empty_section_says_why_where_there_is_a_reason(report, name):
    empty = {name: getattr(Report(title=""), name)}
    page = Page(report_page(replace(report, **empty, reasons={name: "Because. Give --flag."})))
    assert [attributes["id"] for attributes in page.all("section")] == list(SECTIONS)
    assert page.text("p", "reason") == ["Because. Give --flag."]
    filled = Page(report_page(replace(report, reasons={name: "Because. Give --flag."})))
    assert filled.text("p", "reason") == []


def test_drawings_follow_the_colours_of_the_page_and_have_no_pixels(report):
    html = report_page(replace(report, retrieval=(), anchors=(), copies=None))
    page = Page(html)
    assert not page.all("img")
    assert len(page.all("svg")) == 2
    for svg in re.findall("<svg.*?</svg>", html, re.DOTALL):
        assert not re.search("#[0-9a-f]{3}|rgb|fill=|stroke=", svg)
    assert page.text("rect") == ["0: 1 image", "1: 3 images"]
    assert "4 images, 3 edges." in page.text("p", "note")
    assert "The graph has 4 items." in page.text("p")


def test_what_was_left_out_is_counted_by_its_suffix(report):
    page = Page(report_page(report))
    (section,) = [text for text in page.text("section") if text.startswith("What was left out")]
    assert ".mov1,312not an image, by its name" in section
    assert "bad.jpgtruncated" in section


def test_the_best_number_of_every_column_is_emphasised():
    table = Table(
        head=("network", "mAP", "R@1", "P", "one", "equal"),
        rows=(
            ("99", "9.5", "70.0%", "1,250", "1", "5"),
            ("tuned", "57.3 ± 0.2", "70.0%", "\N{MINUS SIGN}3", "", "5"),
            ("paper", "", "nan", "n/a", "", "5"),
            ("b", "10.0", "12.0%", "3", "", "5"),
        ),
        numbers=5,
    )
    assert table.best == {(1, 1), (0, 2), (1, 2), (0, 3)}
    spread = replace(table, unranked=(table.head[2],))
    assert spread.best == {(1, 1), (0, 3)}
    page = Page(report_page(Report(title="t", results=table)))
    assert page.text("strong") == ["70.0%", "1,250", "57.3 ± 0.2", "70.0%"]
    assert len(page.all("td", "number")) == 20


def test_a_table_of_uneven_rows_is_refused():
    with pytest.raises(ValueError, match="row 1 has 1 cells, the head 2"):
        Table(head=("a", "b"), rows=(("1", "2"), ("3",)))
    with pytest.raises(ValueError, match="numbers = 3 of 2 columns"):
        Table(head=("a", "b"), rows=(), numbers=3)


def test_lines_go_through_their_points_and_the_kept_epoch_stands_among_them():
    series = Series(name="a", points=((2, 30.0), (0, 10.0), (1, 20.0)))
    drawn = plot(Chart(title="t", series=(series,), kept=1))
    xs, ys = zip(*((dot.x, dot.y) for dot in drawn.lines[0].dots), strict=True)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)
    assert (ys[0], ys[2]) == (drawn.bottom, drawn.top)  # 10 and 30 are the outer ticks
    assert [tick.text for tick in drawn.values] == ["10", "15", "20", "25", "30"]
    assert [tick.text for tick in drawn.columns] == ["0", "1", "2"]
    assert drawn.kept.x == xs[1]
    assert re.fullmatch(r"M\S+ \S+?L\S+ \S+?L\S+ \S+", drawn.lines[0].path)


@pytest.mark.parametrize("gap", [math.nan, math.inf, None])
def test_what_is_not_finite_interrupts_a_line(gap):
    points = ((0, 1.0), (1, 2.0), (2, gap), (3, 1.5), (5, 1.0))
    chart = Chart(title="t", series=(Series(name="a", points=points),), unit="loss", kept=3)
    line = plot(chart).lines[0]
    assert (line.path.count("M"), line.path.count("L"), len(line.dots)) == (2, 2, 4)
    html = report_page(Report(title="t", charts=(chart,)))
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert not re.search(r"nan|inf\b|None", svg)


def test_a_chart_without_a_finite_value_says_so():
    chart = Chart(title="t", series=(Series(name="a", points=((1, math.nan), (2, None))),), kept=1)
    page = Page(report_page(Report(title="t", charts=(chart,))))
    assert page.text("p", "nothing") == ["No finite values."]
    assert not page.all("svg")


@pytest.mark.parametrize("value", [0.3, 0.0, -4.0, 1e-300, 5e-324, 1e30])
def test_a_single_epoch_stands_in_the_middle(value):
    chart = Chart(title="t", series=(Series(name="a", points=((7, value),)),), kept=7)
    drawn = plot(chart)
    (dot,) = drawn.lines[0].dots
    assert dot.x == pytest.approx((drawn.left + drawn.right) / 2, abs=0.2)
    assert drawn.top < dot.y < drawn.bottom
    assert [tick.text for tick in drawn.columns] == ["7"]
    assert len(page_texts := [tick.text for tick in drawn.values]) == len(set(page_texts)) >= 2


@pytest.mark.parametrize("seed", range(20))
def test_every_mark_stands_inside_the_drawing(seed):
    rng = np.random.default_rng(seed)
    epochs = np.sort(rng.choice(200, rng.integers(1, 30), replace=False))
    values = rng.normal(size=len(epochs)) * 10.0 ** rng.integers(-8, 9)
    series = Series(name="a", points=tuple(zip(epochs.tolist(), values.tolist(), strict=True)))
    drawn = plot(Chart(title="t", series=(series,), kept=int(rng.integers(0, 250)), unit="u"))
    marks = [*drawn.lines[0].dots, *drawn.columns, *drawn.values, drawn.kept]
    assert all(drawn.left <= mark.x <= drawn.right for mark in marks)
    assert all(drawn.top <= mark.y <= drawn.bottom for mark in marks)
    assert 2 <= len(drawn.values) <= 8
    assert 1 <= len(drawn.columns) <= 11


def test_series_are_named_where_there_are_several():
    one, two = (Series(name=name, points=((0, 1.0), (1, 2.0))) for name in ("one", "two"))
    for series, legends in (((one,), []), ((one, two), ["one two"])):
        page = Page(report_page(Report(title="t", charts=(Chart(title="t", series=series),))))
        assert page.text("ul", "legend") == legends


def test_both_similarities_of_what_was_mined_are_named_with_their_places(report):
    page = Page(report_page(replace(report, copies=None)))
    assert page.text("dl", "ranks") == [
        "cosine 0.412 #1,087 manifold 0.250 #3",
        "cosine 0.412 #1,087 manifold #3",
        "cosine 0.412 far",
    ]


@pytest.mark.parametrize(
    ("before", "after", "text", "mood"),
    [
        (0.4312, 0.6101, "+17.9 points", "better"),
        (0.61, 0.6, "\N{MINUS SIGN}1.0 point", "worse"),
        (0.5, 0.50004, "unchanged", None),
        (None, 0.5, None, None),
    ],
)
def test_the_change_of_a_query_is_told_in_points(before, after, text, mood):
    searched = Searched(
        query=picture(),
        rankings=(
            Ranked(network="initial", pictures=(), average_precision=before),
            Ranked(network="tuned", pictures=(picture(),), average_precision=after),
        ),
    )
    group = QueryGroup(heading="as many at random", queries=(searched,))
    page = Page(report_page(Report(title="t", retrieval=(group,))))
    assert page.text("p", "change") == ([text] if text else [])
    assert page.text("h3", "group") == ["as many at random"]
    if mood:
        assert page.text("p", mood) == [text]
    shown = [f"average precision {100 * ap:.1f}%" for ap in (before, after) if ap is not None]
    assert [cell for cell in page.text("span") if cell.startswith("average")] == shown


def test_an_average_precision_in_percent_is_refused():
    with pytest.raises(ValueError, match=r"in \[0, 1\] or None, got 57"):
        Ranked(network="initial", pictures=(), average_precision=57)


def test_the_first_hundred_of_the_quarantine_are_listed_and_the_others_counted():
    bad = tuple(Unreadable(name=f"{i}.jpg", reason="truncated") for i in range(1203))
    page = Page(report_page(Report(title="t", left_out=LeftOut(unreadable=bad))))
    assert page.text("td", "path") == [f"{i}.jpg" for i in range(100)]
    assert page.text("p") == [
        "1,203 images could not be read and took no part. "
        "Here are the first 100; 1,103 more are not listed."
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.42, "0.4 s"),
        (9.97, "10 s"),
        (59.6, "1 min 0 s"),
        (151, "2 min 31 s"),
        (3599.7, "1 h 0 min"),
        (3911, "1 h 5 min"),
        (360000, "100 h 0 min"),
    ],
)
def test_durations_are_told_in_two_units_at_most(seconds, text):
    assert duration(seconds) == text


def test_bars_are_as_long_as_stages_took(report):
    page = Page(report_page(report))
    bars = [e["style"] for e in page.all("span") if "style" in e]
    assert bars == ["width: 100.0%", "width: 10.0%"]
    assert page.text("tfoot") == ["total 2 min 46 s"]
    assert page.text("td", "reason")[-2:] == ["made now"] * 2
    with pytest.raises(ValueError, match="stage 'a' took nan seconds"):
        StageTime(name="a", seconds=math.nan)


def test_stages_of_no_time_at_all_are_drawn():
    page = Page(report_page(Report(title="t", stages=(StageTime(name="a", seconds=0),))))
    assert page.all("td", "length")


def test_what_was_read_from_before_is_told_beside_its_time():
    stages = (
        StageTime(name="extract", seconds=100, times=2, read=1, seconds_read=40),
        StageTime(name="mine", seconds=20, read=1, seconds_read=20),
        StageTime(name="train", seconds=60),
    )
    page = Page(report_page(Report(title="t", stages=stages)))
    assert page.text("td", "reason") == ["1 of 2 read from before", "read from before", "made now"]
    assert page.text("tfoot") == ["total 3 min 0 s 1 min 0 s of it before"]


@pytest.mark.parametrize(
    ("href", "linked"),
    [
        ("file:///a%20b.jpg", True),
        ("HTTPS://example.org/?a=1&b=2", True),
        ("javascript:alert(1)", False),
        (" javascript:alert(1)", False),
        ("java\nscript:alert(1)", False),
        ("data:text/html,x", False),
        ("photos/a.jpg", False),
        ("", False),
        (None, False),
    ],
)
def test_only_files_and_web_pages_are_linked(href, linked):
    page = Page(search_page([search_of(href=href)]))
    assert [a["href"] for a in page.all("a")] == ([href] if linked else [])


def test_results_are_numbered_and_their_similarity_has_three_digits():
    results = tuple(Result(picture=picture(f"{i}.jpg"), similarity=0.98765) for i in range(3))
    page = Page(search_page([Search(query=picture("q.jpg"), results=results)]))
    assert page.text("span", "place") == ["1 0.988", "2 0.988", "3 0.988"]
    assert page.text("bdi", "name") == ["q.jpg", "0.jpg", "1.jpg", "2.jpg"]


def test_the_crop_is_drawn_where_it_is_in_the_image():
    searched = replace(search_of(), crop=(0.25, -0.5, 0.75, 0.5))
    (box,) = Page(search_page([searched])).all("span", "crop")
    assert box["style"] == "left: 25.00%; top: 0.00%; width: 50.00%; height: 50.00%"
    assert not Page(search_page([search_of()])).all("span", "crop")


@pytest.mark.parametrize("crop", [(0.5, 0, 0.5, 1), (2, 0, 3, 1), (math.nan, 0, 1, 1)])
def test_a_crop_outside_the_image_is_refused(crop):
    with pytest.raises(ValueError, match="has no part in the image"):
        replace(search_of(), crop=crop)


def test_several_queries_are_in_the_contents():
    page = Page(search_page([search_of("a_1.jpg"), search_of("b.jpg", href=None)]))
    links = [a["href"] for a in page.all("a") if a["href"].startswith("#")]
    assert links == [f"#{section['id']}" for section in page.all("section")]
    assert len(links) == 2
    assert page.text("p", "nothing") == []
    assert Page(search_page([])).text("p", "nothing") == ["No query was searched for."]


def test_a_page_of_many_pictures_stays_small():
    # As detailed as photos are, unlike noise: the same few waves, each image another part.
    wave = np.add.outer(np.sin(np.arange(128) / 3), np.sin(np.arange(96) / 5))
    noise = np.random.default_rng(0).normal(0, 12, (128, 96, 3))
    shot = np.clip(120 + 50 * wave[..., None] + noise, 0, 255).astype(np.uint8)
    uri = thumbnail(shot, 128)
    assert 4_000 < len(uri) < 12_000
    small = Picture(name="photos/of/something_000123.jpg", uri=uri, kind="right")
    chosen = Chosen(picture=small, cosine=0.5, cosine_rank=2, manifold_rank=1)
    mined = MinedAnchor(anchor=small, positives=(chosen,) * 5, negatives=(chosen,) * 5)
    ranked = Ranked(network="initial", pictures=(small,) * 10, average_precision=0.5)
    searched = Searched(query=small, rankings=(ranked, ranked))
    page = report_page(
        Report(
            title="t",
            anchors=(mined,) * 12,
            retrieval=(QueryGroup(heading="all", queries=(searched,) * 12),),
        )
    )
    pictures = 12 * 11 + 12 * 21
    assert page.count(uri) == pictures
    assert len(page) - pictures * len(uri) < 250_000
    assert len(page) < 3e6


@pytest.mark.parametrize(
    ("anchor", "item", "kind"),
    [
        (7, 7, "right"),
        (0, 0, "right"),
        (7, 0, "wrong"),
        (0.5, 0.5, "right"),
        ("01", "01", "right"),
        ("01", "1", "wrong"),
        ("owl", "", "unlabelled"),
        ("", "owl", "unlabelled"),
        ("-1", "-1", "unlabelled"),
        (-1, -1, "unlabelled"),
        (7, -1, "unlabelled"),
        (-1, 7, "unlabelled"),
        (np.nan, np.nan, "unlabelled"),
        (0.5, np.nan, "unlabelled"),
        (None, None, "unlabelled"),
        ("owl", None, "unlabelled"),
    ],
)
@pytest.mark.parametrize("dtype", [None, object])
def test_labels_of_every_kind_are_compared_and_those_of_none_are_unlabelled(
    anchor, item, kind, dtype
):
    labels = np.array([anchor, item], dtype)
    assert frame_kind(labels, 0, 1) == kind
    assert frame_kind(None, 0, 1) == "plain"
    # A negative is right where a positive is wrong.
    opposite = {"right": "wrong", "wrong": "right"}.get(kind, kind)
    assert frame_kind(labels, 0, 1, same=False) == opposite


def test_a_line_does_not_break_within_a_flag():
    said = Report(title="t", verdict="v", reasons={"results": "Give --evaluation.images FOLDER."})
    page = Page(report_page(said))
    assert page.text("p", "reason") == ["Give --evaluation.images FOLDER."]
    assert page.text("code") == ["--evaluation.images"]
