"""Table 3 of the paper: mAP of VGG16, shown below results that were measured in the same setting.

Iscen, Tolias, Avrithis, Chum, "Mining on Manifolds", CVPR 2018: descriptors of 512 dimensions,
whitened (PCA for the pre-trained network, Lw for the others), images of 1024 pixels, one scale.
"""

from collections.abc import Sequence

from mmray.config.choices import BenchmarkName, Network, Pooling
from mmray.config.sections import LabelledSetsConfig
from mmray.evaluation.scores import Score

_COLUMNS: tuple[BenchmarkName, ...] = (
    *("oxford5k", "oxford105k", "paris6k", "paris106k", "holidays", "instre"),
)
_PRE_TRAINED, _FROM_BOW, _OURS = "paper: pre-trained", "paper: CNN from BoW", "paper: fine-tuned"
_ROWS: tuple[tuple[str, Pooling, str, tuple[float, ...]], ...] = (
    (_PRE_TRAINED, "mac", "PCA", (58.5, 50.3, 73.0, 59.0, 79.4, 48.5)),
    (_FROM_BOW, "mac", "LDA", (79.7, 73.9, 82.4, 74.6, 81.4, 48.5)),
    (_OURS, "mac", "LDA", (78.7, 74.3, 83.1, 75.6, 82.6, 55.5)),
    (_PRE_TRAINED, "rmac", "PCA", (68.0, 61.0, 76.6, 72.1, 87.0, 55.6)),
    (_FROM_BOW, "rmac", "LDA", (77.8, 70.1, 84.1, 76.8, 84.4, 47.7)),
    (_OURS, "rmac", "LDA", (78.2, 72.6, 85.1, 78.0, 87.5, 57.7)),
)


def paper_scores(
    scores: Sequence[Score], config: LabelledSetsConfig, networks: Sequence[Network]
) -> list[Score]:
    """Return the rows of Table 3 for the benchmarks and descriptors among the scores.

    Parameters
    ----------
    networks : the backbones that were measured

    Returns
    -------
    An empty list where no network is VGG16, or the setting differs from the paper's.
    """
    same = config.longest_side == 1024 and config.scales == (1.0,) and config.crop
    if not (same and "vgg16" in networks and config.dims in (None, 512)):
        return []
    measured = {(score.benchmark, score.descriptor) for score in scores}
    return [
        Score(label, pooling, whitening, value / 100, benchmark)
        for label, pooling, whitening, values in _ROWS
        for benchmark, value in zip(_COLUMNS, values, strict=True)
        if (benchmark, pooling) in measured
    ]
