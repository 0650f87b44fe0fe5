"""One row of a table of results."""

from dataclasses import dataclass

from mmray.config.choices import Descriptor, QuerySearch


@dataclass(frozen=True)
class Score:
    """A value of a measure, in [0, 1], for a network's descriptor on a labelled set.

    Attributes
    ----------
    network : label of the network in the table
    whitening : "none", "PCA", "LDA" or "own"
    benchmark : the labelled set
    measure : mAP, mP@10 or R@1, with the protocol where the set has several
    search : method of the search, as `plain` or `diffusion`
    """

    network: str
    descriptor: Descriptor
    whitening: str
    value: float
    benchmark: str = ""
    measure: str = "mAP"
    search: QuerySearch = "plain"
