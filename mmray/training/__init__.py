"""Fine-tuning on mined tuples: Sec. 3.4, eqs. (7) and (8)."""

from typing import TYPE_CHECKING

from mmray.system.lazy import lazy

if TYPE_CHECKING:
    from mmray.training.losses import contrastive_loss as contrastive_loss
    from mmray.training.losses import triplet_loss as triplet_loss

__all__ = ["contrastive_loss", "triplet_loss"]

__getattr__ = lazy(
    __name__,
    {
        "contrastive_loss": "losses",
        "triplet_loss": "losses",
    },
)
