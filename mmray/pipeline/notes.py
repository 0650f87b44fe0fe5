"""Notes of runs in the storage: the id of each in MLflow, and the stages that it used."""

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace

from mmray.system.errors import DamagedFileError
from mmray.system.folder import Folder
from mmray.system.formats import read_json, write_json

RUNS = "runs"  # below the storage: <identity>.json for each run


@dataclass(frozen=True)
class Note:
    """A note of a run in the storage.

    Attributes
    ----------
    run_id : in MLflow
    uri : of the tracking server, without credentials
    stages : names of the folders that it made or read; None: not noted, by an earlier version
    """

    run_id: str
    uri: str | None = None
    stages: tuple[str, ...] | None = None


def read_note(storage: Folder, identity: str) -> Note | None:
    """Return the note of a run; None where there is none that can be read."""
    try:
        found = read_json(storage / RUNS, f"{identity}.json")
        stages, uri = found.get("stages"), found.get("uri")
        known = None if stages is None else tuple(map(str, stages))
        return Note(str(found["run_id"]), None if uri is None else str(uri), known)
    except (FileNotFoundError, DamagedFileError, LookupError, TypeError, AttributeError):
        return None


def write_note(storage: Folder, identity: str, note: Note) -> None:
    """Write the note of a run."""
    write_json(storage / RUNS, f"{identity}.json", asdict(note))


def note_stages(storage: Folder, identity: str, stages: Iterable[str], *, whole: bool) -> None:
    """Note stages that a run used; `whole`: they are all of them, else those noted before stay."""
    note = read_note(storage, identity)
    if note is None:
        return
    if note.stages is None and not whole:
        return  # those of earlier jobs are not known
    before = () if whole else note.stages or ()
    used = tuple(sorted({*before, *stages}))
    if used != note.stages:
        write_note(storage, identity, replace(note, stages=used))


def notes(storage: Folder) -> Iterator[tuple[str, Note]]:
    """Yield the identity and the note of every run."""
    for name in (storage / RUNS).names():
        identity = name.removesuffix(".json")
        note = read_note(storage, identity)
        if note is not None:
            yield identity, note
