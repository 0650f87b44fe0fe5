"""The page of a search: each query, and below it the images that are most similar to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmray.pipeline.reports.templating import render
from mmray.pipeline.reports.thumbnails import Picture
from mmray.system.arrays import Box

LINKED = ("file", "http", "https")  # schemes: a link of another could run a script


@dataclass(frozen=True, kw_only=True)
class Result:
    """An image that was found.

    Attributes
    ----------
    similarity : cosine
    href : where the image itself is, a file:, http: or https: URI; others are not linked
    """

    picture: Picture
    similarity: float
    href: str | None = None

    @property
    def link(self) -> str | None:
        """The href where its scheme is one of `LINKED`."""
        if self.href is None or self.href.partition(":")[0].lower() not in LINKED:
            return None
        return self.href


@dataclass(frozen=True, kw_only=True)
class Search:
    """A query and its results, the most similar first.

    Attributes
    ----------
    crop : what part of the query was searched for, where not all of it
        Left, top, right and bottom as shares of the image's width and height, not in pixels as a
        thumbnail has others than the image. What lies outside the image is not drawn.
    note : a line below the query's name

    Raises
    ------
    ValueError
        The crop has no part in the image.
    """

    query: Picture
    results: tuple[Result, ...]
    crop: Box | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if self.crop is None:
            return
        left, top, width, height = self.drawn_crop
        if not (math.isfinite(left + top) and width > 0 and height > 0):
            raise ValueError(
                f"query {self.query.name!r}: crop {self.crop} has no part in the image; give left, "
                "top, right and bottom as shares of its width and height, in [0, 1]"
            )

    @property
    def drawn_crop(self) -> Box:
        """Left, top, width and height of the crop, clipped to the image, in percent."""
        assert self.crop is not None
        left, top, right, bottom = (100 * min(max(share, 0.0), 1.0) for share in self.crop)
        return left, top, right - left, bottom - top


def search_page(
    searches: Sequence[Search], *, title: str = "Search results", summary: Sequence[str] = ()
) -> str:
    """Searches as one HTML page, which needs no other file; only its links lead out of it.

    Parameters
    ----------
    title : above all
    summary : sentences below it, a line each
    """
    names = {f"query-{place}": search.query.name for place, search in enumerate(searches, 1)}
    return render(
        "search.html",
        title=title,
        summary=summary,
        searches=searches,
        contents=names if len(names) > 1 else {},
    )
