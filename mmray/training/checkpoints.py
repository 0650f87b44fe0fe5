"""Checkpoints of training: what is written after an epoch and restored."""

import json
from pathlib import Path

from mmray.descriptors import weights
from mmray.descriptors.network import EmbeddingNet
from mmray.system.folder import Folder
from mmray.training.job import History

OPTIMIZER, BASELINE, STATE = "optimizer.pt", "rival.pt", "state.json"
MEASURED, BEST = "measured", "best"
_RENAMED = {"health": "manifold_map", "ordered": "triplet_accuracy"}  # as earlier versions wrote


def last_measured(folder: Path) -> EmbeddingNet:
    """The network of a checkpoint, or the mean of those so far where that is measured."""
    mean = folder / MEASURED
    return weights.load(Folder(str(mean if mean.exists() else folder)))


def saved_history(folder: Path) -> History:
    """Load the training history of a checkpoint."""
    return renamed_history(json.loads((folder / STATE).read_text())["history"])


def renamed_history(history: History) -> History:
    """Give the metrics of a stored history the names that they have now."""
    return [{_RENAMED.get(name, name): value for name, value in each.items()} for each in history]
