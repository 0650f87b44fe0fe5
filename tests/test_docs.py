"""What the documents name exists: links, files, flags of the tree."""

import importlib.util
import re
from pathlib import Path

import griffe
import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".venv-next", ".git", "mmray-runs", ".trial", "build"}
    & {*path.relative_to(ROOT).parts}
)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def anchors(text: str) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    heads = re.findall(r"(?m)^#+ (.+)$", re.sub(r"(?ms)^```.*?^```", "", text))
    plain = (re.sub(r"[`*_]|\[|\]\([^)]*\)", "", head).lower() for head in heads)
    return {re.sub(r"[^\w\- ]", "", head).replace(" ", "-") for head in plain}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_link_leads_somewhere(document):
    for target in LINK.findall(document.read_text()):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in anchors(file.read_text()), target


def test_the_readme_is_short_and_the_overview_links_all_pages():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    assert "docs/README.md" in LINK.findall(readme)
    overview = (ROOT / "docs" / "README.md").read_text()
    linked = {target.partition("#")[0] for target in LINK.findall(overview)}
    assert {path.name for path in (ROOT / "docs").glob("*.md")} - linked == {"README.md"}


def test_the_architecture_has_a_line_for_every_file():
    text = (ROOT / "docs" / "architecture.md").read_text()
    files = [p for p in (ROOT / "mmray").rglob("*.py") if p.name != "__init__.py"]
    assert [p.name for p in files if not re.search(rf"(?<![\w]){re.escape(p.name)}", text)] == []
    named = set(re.findall(r"(?m)^\s+(\w+\.py)\s", text))
    assert named <= {p.name for p in (ROOT / "mmray").rglob("*.py")}, "gone, or renamed"


def test_no_document_names_what_is_gone():
    gone = re.compile(r"RESULTS\.md|\.pictures/|MINUTES_|<!-- CHECK|\bDescriber\b")
    for document in DOCUMENTS:
        if document.name != "CHANGELOG.md":
            assert not gone.search(document.read_text()), document


def test_no_module_is_too_long_to_read():
    lines = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for folder in ("mmray", "jobs")
        for path in (ROOT / folder).rglob("*.py")
    }
    assert {name: count for name, count in lines.items() if count > 300} == {}


@pytest.fixture(scope="module")
def site():
    """The hooks of the site, which `make check` builds."""
    found = importlib.util.spec_from_file_location("hooks", ROOT / ".ci" / "site_hooks.py")
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def test_the_site_has_the_public_names_of_the_folders(site):
    names = site.public_names(ROOT / "mmray" / "evaluation" / "__init__.py")
    assert names == ["mean_average_precision", "normalized_mutual_information", "recall_at_k"]


def test_sections_of_public_docstrings_read_as_numpy_has_them(site):
    package = griffe.load("mmray", search_paths=[ROOT], docstring_parser="numpy")
    public = [
        package[init.parent.name][name].final_target
        for init in (ROOT / "mmray").glob("*/__init__.py")
        for name in site.public_names(init)
    ]
    returned = {
        found.path: [each.annotation for each in section.value]
        for found in public
        for section in found.docstring.parse("numpy")
        if section.kind.value == "returns"
    }
    assert len(returned) > 10
    # A line that is not indented begins another item.
    assert {path: items for path, items in returned.items() if len(items) > 1} == {}


def test_a_link_out_of_the_documents_leads_to_the_file_within_the_site(site):
    page = ROOT / "docs" / "cluster.md"
    places = {link: site.place(file) for link, file in site.linked(page)}
    assert places["../cluster/aws.yaml"] == "repository/cluster/aws.yaml"
    assert places["results/interruptions.md"] == "results/interruptions.md"
    text = "[a](../cluster/aws.yaml), [b](https://a.example/cluster.md), [c](x.md#y) and [d](#z)"
    assert site.LINK.findall(text) == ["../cluster/aws.yaml", "x.md"]


@pytest.mark.parametrize(
    ("page", "fetched"),
    [
        ('<script src="https://cdn.example/a.js">', True),
        ('<img alt="" src=//a.example/b.png>', True),
        ('<link rel="stylesheet" href="https://fonts.example/c">', True),
        ('<link rel="preconnect" href=https://fonts.example crossorigin>', True),
        ('<a href="https://a.example">', False),
        ('<link rel="canonical" href="https://a.example">', False),
        ('<script src="assets/a.js"><img src="../pictures/b.png">', False),
    ],
)
def test_a_page_that_fetches_from_other_hosts_is_found(site, page, fetched):
    assert bool(site.FETCHED.search(page)) == fetched
