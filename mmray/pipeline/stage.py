"""Stage folders, named by a fingerprint of all that determines their content."""

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from mmray import __version__
from mmray.system.digests import Digest, damaged_files, digests_of
from mmray.system.errors import DamagedFileError
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
    _record: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, storage: Folder, name: str, *inputs: Any) -> "StageFolder":
        """Return the folder `<storage>/<name>-<fingerprint of inputs>` of a stage."""
        mark = fingerprint(name, inputs)
        return cls(name, mark, storage / f"{name}-{mark}")

    @property
    def label(self) -> str:
        """Return the name of the folder, below the storage."""
        return f"{self.name}-{self.fingerprint}"

    @property
    def done(self) -> bool:
        """Tell whether the stage was finished; a record that cannot be read counts as none."""
        try:
            self._record = self._read_record()
        except (FileNotFoundError, DamagedFileError):
            return False
        return True

    def finish(
        self,
        counts: Mapping[str, Any],
        *,
        nested_seconds: float = 0.0,
        internal: Sequence[str] = (),
        read_by_part: Sequence[str] = (),
    ) -> None:
        """Mark the stage as done: record counts, duration, versions, and digests of its files.

        Parameters
        ----------
        counts : JSON-like results to record
        nested_seconds : duration of the stages within this one, which is not counted
        internal, read_by_part : beginnings of the names of files, see `Session.run_stage`
        """
        sizes = self.folder.sizes()
        sizes.pop(SUCCESS, None)
        kept = [name for name in sizes if not name.startswith(tuple(internal))]
        whole = [name for name in kept if not name.startswith(tuple(read_by_part))]
        files: dict[str, Digest] = {name: (sizes[name], None) for name in kept}
        record: dict[str, Any] = {
            "stage": self.name,
            "fingerprint": self.fingerprint,
            "seconds": round(time.monotonic() - self.started - nested_seconds, 3),
            "counts": dict(counts),
            "versions": {"mmray": __version__} | {name: version(name) for name in PACKAGES},
            "files": files | digests_of(self.folder, whole),
        }
        record = json.loads(json.dumps(record))  # as it is read: keys are strings, tuples lists
        write_json(self.folder, SUCCESS, record | {"digest": _digest(record)})
        self._record = record

    def _read_record(self) -> dict[str, Any]:
        """Read what `finish` wrote; DamagedFileError if it is another."""
        record = read_json(self.folder, SUCCESS)
        if not isinstance(record, dict) or not {"counts", "seconds"} <= record.keys():
            raise DamagedFileError(self.folder.location(SUCCESS), "it is not the record of a stage")
        digest = record.pop("digest", None)  # none: the record of an earlier version
        if digest is not None and digest != _digest(record):
            raise DamagedFileError(self.folder.location(SUCCESS), "its digest differs")
        return record

    def damaged(self, unread: Sequence[str] = ()) -> list[str]:
        """List files of a finished stage that are missing or not as written, but `unread` ones."""
        recorded = self._read_record().get("files", {})
        read = {name: digest for name, digest in recorded.items() if name not in unread}
        return damaged_files(self.folder, read)

    def reopen(self, damaged: Sequence[str]) -> None:
        """Delete damaged files and the record, so that running the stage makes them anew."""
        for name in [*damaged, SUCCESS]:  # in this order: a kill in between leaves them missing
            if self.folder.has(name):
                self.folder.delete(name)

    @property
    def counts(self) -> dict[str, Any]:
        """Return the counts that `finish` recorded."""
        return dict((self._record or self._read_record())["counts"])

    @property
    def seconds(self) -> float:
        """Return the duration in seconds that `finish` recorded."""
        return float((self._record or self._read_record())["seconds"])


def _digest(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
