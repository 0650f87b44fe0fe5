"""Networks to measure, with their whitenings."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from mmray.config.choices import Descriptor
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.whitening import Whitening

PLAIN, PCA, LDA = "none", "PCA", "LDA"  # whitenings, as the table calls them
OWN = "own"  # the one in the file of a published network


@dataclass(frozen=True, kw_only=True)
class EvaluatedNetwork:
    """A network to measure.

    Attributes
    ----------
    label : name of the row in the table of results
    whitenings : (name, descriptor) -> whitening, the name being PCA, LDA or OWN; the descriptor
        without whitening is always measured too
    """

    label: str
    network: EmbeddingNet
    whitenings: Mapping[tuple[str, Descriptor], Whitening] = field(default_factory=dict)

    def variants(self, pooling: Descriptor) -> list[tuple[str, Whitening | None]]:
        """Return the whitenings to measure a descriptor with, by name; first none at all."""
        learned = [(name, w) for (name, of), w in self.whitenings.items() if of == pooling]
        return [(PLAIN, None), *learned]


INITIAL = "initial"  # label of the network that training starts from

TUNED = "fine-tuned"
