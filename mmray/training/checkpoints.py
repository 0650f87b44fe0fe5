"""Files of a training checkpoint, and reading of the parts that later stages need."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from mmray.descriptors import weights
from mmray.descriptors.network import EmbeddingNet
from mmray.system.arrays import Floats
from mmray.system.digests import damaged_files, digests_of
from mmray.system.errors import DamagedFileError
from mmray.system.folder import Folder
from mmray.system.formats import read_json, write_json
from mmray.training.job import History

DIGESTS = "digests.json"
OPTIMIZER, BASELINE, STATE = "optimizer.pt", "rival.pt", "state.json"
MEASURED, BEST = "measured", "best"
_RENAMED = {"health": "manifold_map", "ordered": "triplet_accuracy"}  # as earlier versions wrote


def save_networks(
    folder: Path, network: EmbeddingNet, measured: EmbeddingNet, best: EmbeddingNet
) -> None:
    """Write the network in training, the measured one if it is another, and the best so far."""
    weights.save(network, Folder(str(folder)))
    if measured is not network:
        weights.save(measured, Folder(str(folder / MEASURED)))
    weights.save(best, Folder(str(folder / BEST)))


def saved_network(folder: Path) -> EmbeddingNet:
    """Load a network of a checkpoint: the one in training, or that of a folder in it."""
    return weights.load(Folder(str(folder)))


def last_measured(folder: Path) -> EmbeddingNet:
    """Load the measured network of a checkpoint: the last one, or the mean of all so far."""
    mean = folder / MEASURED
    return saved_network(mean if mean.exists() else folder)


def save_history(folder: Path, history: History, initially: Floats, *, seed: int) -> None:
    """Write the training history, one entry for the initial network and one an epoch.

    `initially` (q,) is what the agreement of later networks is compared with.
    """
    state: dict[str, Any] = {"epoch": len(history) - 1, "seed": seed, "history": history}
    state["initially"] = initially.tolist()
    (folder / STATE).write_text(json.dumps(state, indent=1))


def saved_history(folder: Path) -> History:
    """Load the training history of a checkpoint."""
    return renamed_history(_state(folder)["history"])


def saved_agreement(folder: Path) -> Floats:
    """Load what the agreement of later networks is compared with, (q,) float64."""
    return np.array(_state(folder).get("initially", []), np.float64)


def _state(folder: Path) -> dict[str, Any]:
    state: dict[str, Any] = json.loads((folder / STATE).read_text())
    return state


def seal(folder: Path) -> None:
    """Record the digests of the files of a checkpoint, the last thing that is written to it."""
    files = Folder(str(folder))
    write_json(files, DIGESTS, digests_of(files, files.sizes()))


def sound_history(folder: Folder, *, sealed: bool) -> History | None:
    """Return the history of a checkpoint; None if its files are not as they were written.

    Parameters
    ----------
    folder : of the checkpoint
    sealed : whether it must have digests; those of earlier versions have none
    """
    try:
        checked = sealed or folder.has(DIGESTS)
        if checked and damaged_files(folder, read_json(folder, DIGESTS)):
            return None
        return list(read_json(folder, STATE)["history"])
    except (DamagedFileError, FileNotFoundError, LookupError, TypeError):
        return None


def renamed_history(history: History) -> History:
    """Rename the metrics of a stored history to their current names."""
    return [{_RENAMED.get(name, name): value for name, value in each.items()} for each in history]
