"""Files of a training checkpoint, and reading of the parts that later stages need."""

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
    """Load the measured network of a checkpoint: the last one, or the mean of all so far."""
    mean = folder / MEASURED
    return weights.load(Folder(str(mean if mean.exists() else folder)))


def saved_history(folder: Path) -> History:
    """Load the training history of a checkpoint."""
    return renamed_history(json.loads((folder / STATE).read_text())["history"])


def renamed_history(history: History) -> History:
    """Rename the metrics of a stored history to their current names."""
    return [{_RENAMED.get(name, name): value for name, value in each.items()} for each in history]
