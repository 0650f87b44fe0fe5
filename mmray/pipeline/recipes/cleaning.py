"""The recipe of `mmray clean`: free what no run needs any more."""

import re
from collections import Counter, defaultdict

from mmray.config.tools import CleanConfig
from mmray.pipeline.named_indexes import INDEXES, current_index
from mmray.pipeline.notes import RUNS, Note, notes
from mmray.pipeline.stage import SUCCESS
from mmray.pipeline.stages.extraction import DESCRIBED
from mmray.pipeline.tracking import default_uri
from mmray.pipeline.tracking_server import deleted_runs
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import absolute
from mmray.system.uris import masked

_STAGE = re.compile(r"(\w+)-[0-9a-f]{12}")
HEAD = ("stage", "folders", "MB")


def run(config: CleanConfig) -> tuple[list[list[str]], str]:
    """Remove the folders of stages that no run in MLflow used and no index is.

    Runs that were deleted in MLflow do not count; those that MLflow does not know do. A stage that
    is being made stays.

    Returns
    -------
    (rows, summary) : a row for each kind of stage; what was removed in a sentence

    Raises
    ------
    InputError
        There is no storage, MLflow does not answer, or it is not known what a run used.
    """
    storage = Folder(absolute(config.storage))
    noted = dict(notes(storage))
    if not noted:
        raise InputError(f"--storage {config.storage}: no run is noted there; name another folder")
    deleted = _deleted(noted, config.tracking_uri or default_uri(storage))
    indexes = _indexes(storage)
    kept = {f"index-{mark}" for mark in indexes}
    unknown = []
    for identity, note in noted.items():
        if identity in deleted:
            continue
        if note.stages is None:
            unknown.append(note.run_id)
        kept.update(note.stages or ())
    if unknown:
        raise InputError(
            f"it is not known which stages {len(unknown)} runs used (MLflow's run {unknown[0]}): "
            "an earlier version made them; type their commands again, which notes it, or delete "
            "the runs in MLflow"
        )
    sizes = Counter[str]()
    for name, size in storage.sizes().items():
        sizes[name.partition("/")[0]] += size
    unused = [
        name
        for name in sizes
        if _STAGE.fullmatch(name) and name not in kept and not (storage / "leases" / name).names()
    ]
    if not config.dry_run:
        for name in unused:
            _remove(storage, name)
        for identity in deleted:
            (storage / RUNS).delete(f"{identity}.json")
    of_kinds = defaultdict(list)
    for name in unused:
        of_kinds[name.rpartition("-")[0]].append(sizes[name])
    rows = [
        [kind, str(len(each)), f"{sum(each) / 1e6:.1f}"] for kind, each in sorted(of_kinds.items())
    ]
    done = "would be removed" if config.dry_run else "removed"
    return rows, (
        f"{len(unused)} folders, {sum(sizes[name] for name in unused) / 1e6:.1f} MB {done}; "
        f"{len(noted) - len(deleted)} runs and {len(indexes)} indexes keep "
        f"{sum(sizes[name] for name in kept) / 1e6:.1f} MB"
    )


def _deleted(noted: dict[str, Note], uri: str) -> set[str]:
    """Return the identities of runs on this server that were deleted there."""
    server = (masked(uri), None)  # as it is noted; by an earlier version it was not
    here = {identity: note.run_id for identity, note in noted.items() if note.uri in server}
    gone = deleted_runs(uri, here.values())
    return {identity for identity, run_id in here.items() if run_id in gone}


def _indexes(storage: Folder) -> list[str]:
    """Return the fingerprints of the indexes that searches use."""
    names = [name.removesuffix(".json") for name in (storage / INDEXES).names()]
    found = [current_index(storage, name) for name in names]
    return [stage.fingerprint for stage in found if stage is not None]


def _remove(storage: Folder, name: str) -> None:
    """Remove a stage: its record first, so that no job takes what is left for the whole."""
    if (storage / name).has(SUCCESS):
        (storage / name).delete(SUCCESS)
    (storage / name).remove()
    kind, _, mark = name.rpartition("-")
    if kind == "extract":
        for way in (storage / DESCRIBED).folders():
            if (storage / DESCRIBED / way).has(mark):
                (storage / DESCRIBED / way).delete(mark)
