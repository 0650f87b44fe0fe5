"""Image embeddings learned without labels: Mining on Manifolds (Iscen et al., 2018) on Ray."""

from typing import TYPE_CHECKING

from mmray.system.lazy import lazy

if TYPE_CHECKING:
    from mmray.in_memory import evaluate as evaluate
    from mmray.in_memory import fine_tune as fine_tune
    from mmray.mining.in_memory import mine as mine
    from mmray.serving.encoder import ImageEncoder as ImageEncoder

__all__ = ["ImageEncoder", "evaluate", "fine_tune", "mine"]
__version__ = "0.1.0"  # here, since a job's copy of the clone is not installed

__getattr__ = lazy(
    __name__,
    {
        "mine": "mining.in_memory",
        "fine_tune": "in_memory",
        "evaluate": "in_memory",
        "ImageEncoder": "serving.encoder",
    },
)
