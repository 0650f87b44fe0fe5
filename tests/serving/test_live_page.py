"""The page of `mmray serve` in a browser, where Chromium and Playwright are."""

import re
import shutil

import pytest

from mmray.evaluation.benchmarks.labelled_set import labelled_set
from mmray.pipeline.recipes import serve
from mmray.system.folder import Folder
from tests.made.exported import model_folder, photos
from tests.made.live_index import make_index, write_files
from tests.serving.test_live import jpeg, served

playwright = pytest.importorskip("playwright.sync_api")
CHROMIUM = shutil.which("chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    files = {f"{i}.png": photo for i, photo in enumerate(photos())}
    files |= {"near.jpg": jpeg(30, quality=95), "nearer.jpg": jpeg(30, quality=94)}
    model = model_folder(tmp_path_factory.getbasetemp())
    write_files(place / "photos", files)
    make_index(Folder(str(place / "runs")), "mmray", place / "photos", model)
    (place / "asked.jpg").write_bytes(jpeg(31))
    return place


@pytest.fixture(scope="module")
def url(place):
    for port, _ in served(place):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture
def page(url):
    """The page on a telephone's width; a message in the console or an error fails the test."""
    with playwright.sync_playwright() as driver:
        options = {"executable_path": CHROMIUM, "args": ["--no-sandbox", "--disable-gpu"]}
        with driver.chromium.launch(**options) as browser:
            page = browser.new_page(viewport={"width": 390, "height": 844})
            told = []
            page.on("console", lambda message: told.append(message.text))
            page.on("pageerror", lambda error: told.append(str(error)))
            page.goto(url)
            yield page
            answers = "Failed to load resource"  # a status of 400 is one line there
            assert [each for each in told if answers not in each] == []


def test_a_photo_is_searched_with_and_its_results_are_labelled_by_keyboard(page, place):
    page.wait_for_selector(".hit")  # some of the index, to begin with
    page.set_input_files("#file", str(place / "asked.jpg"))
    page.wait_for_selector(".cosine")
    assert page.locator(".hit").count() == 7
    assert re.fullmatch(r"7 most similar photos, \d+ ms", page.locator("#state").inner_text())
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    unnamed = "[...document.querySelectorAll('.hit img')].filter((image) => !image.alt).length"
    assert page.evaluate(unnamed) == 0
    page.wait_for_selector(".mark >> text=≈")
    whole = page.locator(".hit .cosine").first.inner_text()

    page.focus("#canvas")
    for key in ("b", "ArrowLeft", "Shift+ArrowDown", "Enter"):
        page.keyboard.press(key)
    first = page.locator(".hit .cosine").first
    playwright.expect(first).not_to_have_text(whole, timeout=30_000)
    page.click("#label")
    page.focus(".hit a")
    for key in ("r", "ArrowRight", "w", "ArrowRight", "r", "r"):  # the last takes it back
        page.keyboard.press(key)
    assert page.locator(".hit.right").count() == page.locator(".hit.wrong").count() == 1
    page.click("#save")
    page.wait_for_selector("#saved >> text=Saved. The set has 1 query and 2 images")
    folder = place / "runs" / serve.LABELLED_SETS / "mmray"
    found = labelled_set(str(folder / "images"), str(folder / "gnd_mmray.pkl"))
    (query,) = found.queries
    left, top, right, bottom = query.box
    assert (left, top, right) == pytest.approx((33.6, 30, 113.6), abs=0.1)
    assert bottom == pytest.approx(94.8, abs=0.1)


def test_more_like_a_result_is_a_page_that_back_leaves(page, place):
    page.set_input_files("#file", str(place / "asked.jpg"))
    page.wait_for_selector(".cosine")
    page.locator(".hit .more").nth(3).click()
    first = page.locator(".hit .cosine").first
    playwright.expect(first).to_have_text("1.000", timeout=30_000)
    assert re.search(r"#photo-\d$", page.url)
    page.go_back()
    playwright.expect(first).not_to_have_text("1.000", timeout=30_000)
    assert page.locator("#query-name").inner_text() == "asked.jpg"


def test_what_cannot_be_searched_is_said(page, place):
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no"})
    page.wait_for_selector("#problem >> text=not an image of a known format")
    assert page.locator(".hit").count() == 0
