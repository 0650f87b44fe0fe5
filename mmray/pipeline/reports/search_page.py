"""The HTML page of a search: each query with the images most similar to it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mmray.pipeline.reports.templating import render
from mmray.pipeline.reports.thumbnails import Picture
from mmray.system.arrays import Box


@dataclass(frozen=True, kw_only=True)
class Result:
    """A search result: an image, and its cosine to the query."""

    picture: Picture
    similarity: float


@dataclass(frozen=True, kw_only=True)
class Search:
    """A query and its results, the most similar first.

    Attributes
    ----------
    crop : the part of the query image that was searched with; None: all of it
        Left, top, right and bottom as shares of the image's width and height. They are not pixels,
        as a thumbnail has fewer than the image. Parts outside the image are not drawn.
    note : a line below the query's name

    Raises
    ------
    ValueError
        The crop does not overlap the image.
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
        """Return left, top, width and height of the crop, clipped to the image, in percent."""
        assert self.crop is not None
        left, top, right, bottom = (100 * min(max(share, 0.0), 1.0) for share in self.crop)
        return left, top, right - left, bottom - top


def search_page(
    searches: Sequence[Search], *, title: str = "Search results", summary: Sequence[str] = ()
) -> str:
    """Render searches as one HTML page, which needs no other file except for its links.

    Parameters
    ----------
    searches : queries and their results
    title : heading of the page
    summary : sentences below it, each on a line of its own
    """
    names = {f"query-{place}": search.query.name for place, search in enumerate(searches, 1)}
    return render(
        "search.html",
        title=title,
        summary=summary,
        searches=searches,
        contents=names if len(names) > 1 else {},
    )
