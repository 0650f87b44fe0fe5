"""Stage folders, named by a fingerprint of all that determines their content."""

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
from mmray.system.uris import masked_text

SUCCESS = "_SUCCESS.json"
PACKAGES = ("ray", "torch", "torchvision", "numpy", "scipy", "pyarrow")


def fingerprint(*parts: Any) -> str:
    """Hash JSON-like parts to twelve hex digits, without the credentials of URIs in them."""
    text = masked_text(json.dumps(parts, sort_keys=True, separators=(",", ":"), default=str))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@dataclass
class StageFolder:
    """The folder of a stage, named by a fingerprint of the inputs of the stage."""

    name: str
    fingerprint: str
    folder: Folder
    started: float = field(default_factory=time.monotonic)

    @classmethod
    def of(cls, storage: Folder, name: str, *inputs: Any) -> "StageFolder":
        """Return the folder `<storage>/<name>-<fingerprint of inputs>` of a stage."""
        mark = fingerprint(name, inputs)
        return cls(name, mark, storage / f"{name}-{mark}")

    @property
    def done(self) -> bool:
        """Tell whether the stage was finished."""
        return self.folder.has(SUCCESS)

    def finish(self, counts: Mapping[str, Any], *, nested_seconds: float = 0.0) -> None:
        """Mark the stage as done, and record its counts, its duration and versions of packages.

        Parameters
        ----------
        counts : JSON-like results to record
        nested_seconds : duration of the stages within this one, which is not counted
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
        """Return the counts that `finish` recorded."""
        return dict(read_json(self.folder, SUCCESS)["counts"])

    @property
    def seconds(self) -> float:
        """Return the duration in seconds that `finish` recorded."""
        return float(read_json(self.folder, SUCCESS)["seconds"])
