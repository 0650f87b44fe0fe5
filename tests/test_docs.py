"""What the documents name exists: links, files, flags of the tree."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not {".venv", ".venv-next", ".git", "mmray-runs", ".trial"} & {*path.relative_to(ROOT).parts}
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


def test_the_readme_is_short_and_links_the_documents():
    readme = (ROOT / "README.md").read_text()
    assert len(readme.splitlines()) <= 200
    linked = {(ROOT / target.partition("#")[0]).resolve() for target in LINK.findall(readme)}
    missing = [path.name for path in (ROOT / "docs").glob("*.md") if path.resolve() not in linked]
    assert missing == [] or missing == ["README.md"]


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
