"""One row of a table of results."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mmray.config.choices import Descriptor, QuerySearch

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Score:
    """A figure, in [0, 1], of a network's descriptor on a labelled set.

    Attributes
    ----------
    network : its label in the table
    whitening : "none", "PCA" or "LDA"
    benchmark : the labelled set
    measure : mAP, mP@10 or R@1, perhaps of one of the set's protocols
    search : how the descriptors were searched with
    """

    network: str
    descriptor: Descriptor
    whitening: str
    value: float
    benchmark: str = ""
    measure: str = "mAP"
    search: QuerySearch = "plain"
