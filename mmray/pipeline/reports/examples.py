"""Examples that the page of a run shows in pictures: pools, searches, near-duplicates."""

from dataclasses import dataclass

from mmray.pipeline.reports.thumbnails import Kind, Picture

# Meanings of the frames, by section of the page.
MEANINGS: dict[str, dict[Kind, str]] = {
    "anchors": {
        "right": "right by the labels: a positive of the anchor's label, a negative of another",
        "wrong": "wrong by the labels",
        "unlabelled": "no label",
    },
    "retrieval": {
        "right": "right: it shows what the query shows",
        "wrong": "wrong",
        "unlabelled": "does not count",
        "added": "found only after training",
        "dropped": "found only before",
    },
}


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """An image in a pool of an anchor, with both of its similarities to it as far as known.

    Attributes
    ----------
    cosine, manifold : similarity in feature space, and on the manifold
    cosine_rank, manifold_rank : its place among all images by each, from 1; a cosine rank of 0 is
        past all places that were compared
    """

    picture: Picture
    cosine: float | None = None
    cosine_rank: int | None = None
    manifold: float | None = None
    manifold_rank: int | None = None


@dataclass(frozen=True, kw_only=True)
class MinedAnchor:
    """An anchor with its pools, and its nearest neighbours, which the baseline would choose."""

    anchor: Picture
    caption: str = ""
    positives: tuple[Chosen, ...] = ()
    negatives: tuple[Chosen, ...] = ()
    nearest: tuple[Chosen, ...] = ()

    @property
    def pictures(self) -> list[Picture]:
        """List the images of all pools."""
        pools = self.positives, self.negatives, self.nearest
        return [chosen.picture for pool in pools for chosen in pool]


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """The first search results of a network for a query.

    Attributes
    ----------
    network : label of the network
    pictures : the results; a hit has the kind "right", a miss "wrong", junk "unlabelled"
    average_precision : of the whole ranking, in [0, 1]; None where it is undefined
    """

    network: str
    pictures: tuple[Picture, ...]
    average_precision: float | None = None

    def __post_init__(self) -> None:
        value = self.average_precision
        if value is not None and not 0 <= value <= 1:
            raise ValueError(f"average precision must be in [0, 1] or None, got {value}")


@dataclass(frozen=True, kw_only=True)
class Searched:
    """A query with the search results of the networks to compare, in their order.

    `caption` is a line below the query.
    """

    query: Picture
    rankings: tuple[Ranked, ...]
    caption: str = ""

    @property
    def points(self) -> float | None:
        """Return the gain in average precision from the first to the last network, in points."""
        if len(self.rankings) < 2:
            return None
        first, last = (self.rankings[place].average_precision for place in (0, -1))
        return None if first is None or last is None else round(100 * (last - first), 1)


@dataclass(frozen=True, kw_only=True)
class QueryGroup:
    """Queries with a heading that says how they were chosen, such as "Most improved"."""

    heading: str
    queries: tuple[Searched, ...]


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A near-duplicate beside the image that represents it: their cosine, and bits apart."""

    picture: Picture
    cosine: float
    distance: int


@dataclass(frozen=True, kw_only=True)
class CopyGroup:
    """A group of near-duplicates: its representative, with copies of it, `more` of them not shown.

    `caption` is a line below the representative.
    """

    representative: Picture
    caption: str
    copies: tuple[Copy, ...]
    more: int = 0


@dataclass(frozen=True, kw_only=True)
class Copies:
    """The near-duplicates of a run: a sentence, and groups by the heading that says which."""

    text: str
    groups: tuple[tuple[str, tuple[CopyGroup, ...]], ...]


def compared(groups: tuple[QueryGroup, ...]) -> tuple[str, str] | None:
    """Return the first and the last network of the searches, if their precision is compared."""
    for group in groups:
        for searched in group.queries:
            if searched.points is not None:
                return searched.rankings[0].network, searched.rankings[-1].network
    return None


def mined_kinds(anchors: tuple[MinedAnchor, ...]) -> dict[Kind, str]:
    """Return the meanings of the frames that occur among mined images."""
    return _occurring("anchors", [picture for mined in anchors for picture in mined.pictures])


def found_kinds(groups: tuple[QueryGroup, ...]) -> dict[Kind, str]:
    """Return the meanings of the frames that occur among search results."""
    rankings = [each for group in groups for found in group.queries for each in found.rankings]
    return _occurring("retrieval", [picture for each in rankings for picture in each.pictures])


def _occurring(section: str, pictures: list[Picture]) -> dict[Kind, str]:
    kinds = {picture.kind for picture in pictures}
    return {kind: word for kind, word in MEANINGS[section].items() if kind in kinds}
