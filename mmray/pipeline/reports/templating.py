"""From data to HTML: the templates of this package, in which every text is escaped."""

import re
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from mmray.pipeline.reports.thumbnails import FRAMES


def render(template: str, **context: object) -> str:
    """A page of a template in mmray/pages/templates, as text that can be written as UTF-8."""
    page = _environment().get_template(template).render(context)
    # Names of files that are not UTF-8 hold lone surrogates, with which a page cannot be written.
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
    environment.filters["parts"] = _parts
    return environment


def _parts(name: str) -> list[str]:
    """Where a reader would break a name's line: browsers would do so before its last letter."""
    return re.split(r"(?<=[_/\\])", name)
