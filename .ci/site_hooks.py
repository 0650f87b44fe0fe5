"""Hooks of MkDocs: files outside docs/ that pages link, and the pages of the API.

Links in docs/ are relative, so that they hold on a code host too. What they name outside docs/
becomes a part of the site, below repository/: Markdown as pages, anything else as it is.
"""

import ast
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = "repository"
# Lines of code have up to 100 columns.
WIDE = ".md-grid { max-width: 76rem } .md-typeset pre > code { font-size: .75em }"
NAMED = ("CONTRIBUTING.md", "CHANGELOG.md")  # in the navigation, whoever links them
LINK = re.compile(r"(?<=\]\()([^)\s:#]+)(?=[)#])")
# What a browser fetches by itself; links wait for a click.
FETCHED = re.compile(
    r"<(?:script|img|iframe)\b[^>]*\bsrc=\W?(?:https?:)?//"
    r"|<link\b[^>]*\brel=\W?(?:stylesheet|icon|preconnect|preload)\b[^>]*\bhref=\W?(?:https?:)?//"
)


def place(path: Path) -> str:
    """Name a file of the repository within the site's sources."""
    inside = path.relative_to(ROOT)
    return str(inside.relative_to("docs") if inside.parts[0] == "docs" else OUTSIDE / inside)


def linked(path: Path) -> Iterator[tuple[str, Path]]:
    """Links of a page that lead to another file: as they stand, and the file."""
    for target in LINK.findall(path.read_text(encoding="utf-8")):
        file = (path.parent / target).resolve()
        if file.is_file() and file.is_relative_to(ROOT):
            yield target, file


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages of the API, and what pages link outside docs/."""
    for package in sorted((ROOT / "mmray").glob("*/__init__.py")):
        names = public_names(package)
        if names:
            name = package.parent.name
            text = f"# mmray.{name}\n\n{ast.get_docstring(ast.parse(package.read_text()))}\n\n"
            text += "".join(f"::: mmray.{name}.{each}\n\n" for each in names)
            files.append(File.generated(config, f"api/{name}.md", content=text))
    overview = "# API\n\nPublic names, by folder. None of them loads Ray or MLflow.\n\n"
    overview += "".join(
        f"- [mmray.{PurePosixPath(each.src_uri).stem}]({PurePosixPath(each.src_uri).name})\n"
        for each in files.documentation_pages()
        if each.src_uri.startswith("api/")
    )
    files.append(File.generated(config, "api/README.md", content=overview))
    files.append(File.generated(config, "wide.css", content=WIDE))
    todo = [ROOT / "docs" / each.src_uri for each in files.documentation_pages()]
    todo += [add(files, config, ROOT / name) for name in NAMED]
    for page in todo:  # it grows: a page that is added has links too
        for _, file in linked(page) if page.exists() else ():
            if files.get_file_from_path(place(file)) is None:
                added = add(files, config, file)
                todo += [added] if added.suffix == ".md" else []
    config.nav = list(expanded(config.nav, files))
    return files


def add(files: Files, config: MkDocsConfig, path: Path) -> Path:
    """Add a file of the repository to the site."""
    files.append(File.generated(config, place(path), abs_src_path=str(path)))
    return path


def public_names(package: Path) -> list[str]:
    """Return `__all__` of a package, without importing it."""
    for node in ast.parse(package.read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return list(ast.literal_eval(node.value))
    return []


def expanded(nav: Any, files: Files) -> Iterator[Any]:
    """Put the pages of a folder in place of each name that ends with a slash."""
    for entry in nav:
        if isinstance(entry, str):
            yield entry
            continue
        for title, value in entry.items():
            if isinstance(value, list):
                yield {title: list(expanded(value, files))}
            elif value.endswith("/"):
                pages = [f.src_uri for f in files.documentation_pages()]
                within = sorted(uri for uri in pages if uri.startswith(value))
                within.sort(key=lambda uri: not uri.endswith("README.md"))
                yield {title: within}
            else:
                yield {title: value}


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links that leave docs/ to where the site has the file."""
    source = page.file.abs_src_path
    if source is None or not Path(source).is_relative_to(ROOT):
        return markdown
    here = PurePosixPath(page.file.src_uri).parent
    # What is no file is left as it stands, for MkDocs to complain of.
    targets = {link: os.path.relpath(place(file), here) for link, file in linked(Path(source))}
    return LINK.sub(lambda found: targets.get(found[0], found[0]), markdown)


def on_post_page(output: str, page: Page, config: MkDocsConfig) -> None:
    """Refuse a page that a browser would complete from another host."""
    found = FETCHED.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri}: a browser would fetch {found[0]}...")
