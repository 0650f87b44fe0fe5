"""The current index of each name: which of the folders of indexes a name stands for."""

import re
from typing import Any

from mmray.pipeline.stage import StageFolder
from mmray.system.folder import Folder
from mmray.system.foreign import JsonObject
from mmray.system.formats import write_json

INDEXES = "indexes"  # folder below the storage with the current stage of each named index


def current_index(storage: Folder, name: str) -> StageFolder | None:
    """Return the stage folder of the current index of a name; None if there is none."""
    if not (storage / INDEXES).has(f"{name}.json"):
        return None
    file = f"{name}.json"
    remedy = "remove it and make the index anew by `jobs/search.py index`"
    current = JsonObject.read(storage / INDEXES, file, "not the place of an index", remedy)
    mark = current.value("index", _is_mark, "the twelve hex digits of its folder")
    return StageFolder("index", mark, storage / f"index-{mark}")


def _is_mark(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{12}", value) is not None


def set_current_index(storage: Folder, name: str, stage: StageFolder) -> None:
    """Make a stage the current index of a name."""
    write_json(storage / INDEXES, f"{name}.json", {"index": stage.fingerprint})
