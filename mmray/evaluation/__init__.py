"""Measures of retrieval, clustering and pool purity by labels."""

from typing import TYPE_CHECKING

from mmray.system.lazy import lazy

if TYPE_CHECKING:
    from mmray.evaluation.clustering import (
        normalized_mutual_information as normalized_mutual_information,
    )
    from mmray.evaluation.ranking import mean_average_precision as mean_average_precision
    from mmray.evaluation.recall import recall_at_k as recall_at_k

__all__ = ["mean_average_precision", "normalized_mutual_information", "recall_at_k"]

__getattr__ = lazy(
    __name__,
    {
        "mean_average_precision": "ranking",
        "recall_at_k": "recall",
        "normalized_mutual_information": "clustering",
    },
)
