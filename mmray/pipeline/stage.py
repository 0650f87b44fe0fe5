"""The folder of a stage, named by all that determines its content."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from mmray import __version__
from mmray.system.folder import Folder
from mmray.system.formats import read_json, write_json

SUCCESS = "_SUCCESS.json"
PACKAGES = ("ray", "torch", "torchvision", "numpy", "scipy", "pyarrow")


def fingerprint(*parts: Any) -> str:
    """Twelve hex digits that change whenever one of the JSON-like parts does."""
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class StageFolder:
    """A stage's own folder, named by what determines its content."""

    name: str
    fingerprint: str
    folder: Folder
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, storage: Folder, name: str, *inputs: Any) -> "StageFolder":
        """The folder `<storage>/<name>-<fingerprint of inputs>`."""
        mark = fingerprint(name, inputs)
        return cls(name, mark, storage / f"{name}-{mark}")

    @property
    def done(self) -> bool:
        return self.folder.has(SUCCESS)

    def finish(self, counts: Mapping[str, Any], *, nested_seconds: float = 0.0) -> None:
        """Mark the stage as done; what it counted, how long this process took, and versions.

        Parameters
        ----------
        within : seconds that stages within this one took, which are theirs
        """
        record = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "seconds": round(time.monotonic() - self.started - nested_seconds, 3),
            "counts": dict(counts),
            "versions": {"mmray": __version__} | {name: version(name) for name in PACKAGES},
        }
        write_json(self.folder, SUCCESS, record)

    @property
    def counts(self) -> dict[str, Any]:
        """What `finish` was given."""
        return dict(read_json(self.folder, SUCCESS)["counts"])

    @property
    def seconds(self) -> float:
        """How long the process took that finished it."""
        return float(read_json(self.folder, SUCCESS)["seconds"])
