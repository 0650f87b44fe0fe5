"""Checkpoints of training: what is written after an epoch and restored."""

import json
from pathlib import Path

from mmray.descriptors import weights
from mmray.descriptors.network import EmbeddingNet
from mmray.system.folder import Folder
from mmray.training.job import History

OPTIMIZER, RIVAL, STATE = "optimizer.pt", "rival.pt", "state.json"
MEASURED, BEST = "measured", "best"


def last_measured(folder: Path) -> EmbeddingNet:
    """The network of a checkpoint, or the mean of those so far where that is measured."""
    mean = folder / MEASURED
    return weights.load(Folder(str(mean if mean.exists() else folder)))


def saved_history(folder: Path) -> History:
    """That of a checkpoint."""
    history: History = json.loads((folder / STATE).read_text())["history"]
    return history
