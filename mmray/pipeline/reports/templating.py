"""Rendering of the HTML templates of this package, in which every text is escaped."""

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmray.pipeline.reports.thumbnails import FRAMES, MARKS


def render(template: str, **context: object) -> str:
    """Render a template of mmray/pipeline/reports/templates as text that UTF-8 can encode."""
    page = _environment().get_template(template).render(context)
    # File names that are not UTF-8 contain lone surrogates, which UTF-8 cannot encode.
    return page.encode("utf-8", "replace").decode("utf-8")


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("mmray.pipeline.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["frames"] = {
        kind: f"#{red:02x}{green:02x}{blue:02x}" for kind, (red, green, blue) in FRAMES.items()
    }
    environment.globals["marks"] = MARKS
    environment.filters["parts"] = _parts
    environment.filters["cut"] = cut
    environment.filters["flags"] = _flags
    return environment


def _parts(name: str) -> list[str]:
    """Split a file name where its line may break: after underscores, slashes and backslashes."""
    return re.split(r"(?<=[_/\\])", name)


def _flags(text: str) -> list[tuple[bool, str]]:
    """Split a text into (whether it is a flag, part): a line should not break within a flag."""
    parts = re.split(r"(--[a-z][a-z.-]*[a-z])", text)
    return [(place % 2 == 1, part) for place, part in enumerate(parts) if part]


def cut(name: str, most: int = 40) -> str:
    """Cut a long name in its middle: where it begins and ends tells names of cameras apart."""
    if len(name) <= most:
        return name
    begin = most // 2 - 1
    return f"{name[:begin]}…{name[-(most - begin - 1) :]}"
