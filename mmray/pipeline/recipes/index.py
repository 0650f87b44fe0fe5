"""The recipe of `jobs/search.py index`: build a search index or update it."""

from collections.abc import Sequence
from dataclasses import replace
from reprlib import repr as shorten
from typing import Any

import numpy as np
from joblib import cpu_count

from mmray.config.tools import IndexConfig
from mmray.descriptors.settings import DescriptorSettings
from mmray.images.collection import Collection
from mmray.images.sources import Stamp, probe
from mmray.pipeline import distributed
from mmray.pipeline.lease import lease
from mmray.pipeline.named_indexes import current_index, set_current_index
from mmray.pipeline.opening import running, usable_storage
from mmray.pipeline.recipes.left_out import left_out_of
from mmray.pipeline.recipes.publishing import write_report
from mmray.pipeline.recipes.result import JobResult, places_of, rows_of
from mmray.pipeline.recipes.steps import index_steps
from mmray.pipeline.registry import model_folder, newest_model
from mmray.pipeline.reports.run_page import LeftOut, Report, Unreadable
from mmray.pipeline.reports.tables import Cells, Table, table
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.extraction import extract_descriptors
from mmray.pipeline.stages.listing import list_each, read_exclusion_list
from mmray.serving.catalog import FRESH, Catalog
from mmray.serving.compressed_index import FEWEST
from mmray.serving.encoder import TrainedModel
from mmray.serving.search_index import (
    ABOUT,
    CONTAINERS,
    DIGEST,
    IMAGES,
    MODEL,
    VECTORS,
    read_about,
    read_catalog,
    read_vectors,
    write_codes,
    write_vectors,
)
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError, first_names
from mmray.system.folder import Folder
from mmray.system.formats import read_array, read_json, write_json
from mmray.system.locations import absolute
from mmray.system.progress import announce
from mmray.system.uris import masked

STAGES = ("extract", "index")
LARGE = 1_000_000  # number of images from which "auto" compresses an index


def update(config: IndexConfig) -> JobResult:
    """Build an index, or update it to the current images.

    Returns
    -------
    A table of the contents of the index.

    Raises
    ------
    InputError
        A setting, an input or the cluster cannot be used. Stages that are done are kept.
    """
    storage = usable_storage(config)
    for source in config.images:
        probe(source, column=config.image_column)
    excluded = read_exclusion_list(config)
    uri = config.tracking_uri
    named = config.model or newest_model(storage, uri=uri, experiment=config.experiment)
    # The run is one of this model and this index, whatever is newest later.
    config = replace(config, model=named, name=config.index_name)
    with model_folder(named, storage=storage, uri=uri) as folder:
        model = TrainedModel.read(folder)
        with running(config, storage, STAGES, index_steps(config)) as session:
            sources = [absolute(source) for source in config.images]
            listings = list_each(session, sources, excluded)
            listed = [
                (masked(source), images)
                for source, (images, _) in zip(sources, listings, strict=True)
            ]
            stamps = [stamp for _, stamps in listings for stamp in stamps]
            # Another job that updates this index would remove what this one builds upon.
            with lease(storage, f"index-{config.index_name}", done=lambda: False):
                before = current_index(storage, config.index_name)
                known = before if before is not None and _is_whole(before) else None
                stage = _index_stage(session, folder, model, listed, stamps, known)
                set_current_index(storage, config.index_name, stage)
                if before is not None and before.fingerprint != stage.fingerprint:
                    before.folder.remove()
            write_report(session, _report(config, stage, session.stages))
    head, rows, numbers = _cells(config, stage)
    return JobResult(
        text=table(head, rows, numbers=numbers),
        values={"table": rows_of(head, rows), "index": stage.folder.uri, **places_of(session)},
    )


def _is_whole(index: StageFolder) -> bool:
    """Tell whether an index can be updated, and not only be made anew."""
    damaged = index.damaged() if index.done else ["_SUCCESS.json"]
    if damaged:
        announce(f"index: {first_names(damaged, 3)} damaged or missing: the index is made anew")
    return not damaged


def _index_stage(
    session: Session[IndexConfig],
    folder: Folder,
    model: TrainedModel,
    listed: Sequence[tuple[str, Collection]],
    stamps: Sequence[Stamp],
    before: StageFolder | None,
) -> StageFolder:
    """Describe new images with the model of a folder, and write an index of new and known ones."""
    config = session.config
    own = model.preprocessing
    preprocessing = replace(own, longest_side=config.longest_side or own.longest_side)
    settings = DescriptorSettings.of(config, preprocessing, ("embedding",))
    about = {
        "model": model.digest(),
        **preprocessing.stored(),
        "precision": config.precision,
    }
    known = _known(config, before, about)
    was = {} if before is None else _containers(before)
    inside = {uri for _, images in listed for uri in images.containers()}
    now = {each.uri: [each.size, each.modified] for each in stamps if each.uri in inside}
    changed = {uri: mark for uri, mark in now.items() if was.get(masked(uri), mark) != mark}
    containers = was | {masked(uri): mark for uri, mark in now.items()}
    wanted = known.merged(listed, retry=config.relist, changed=changed.keys())
    fresh = wanted.images.take(np.flatnonzero(wanted.rows == FRESH))
    same_kind = before is None or config.kind in ("auto", before.counts["kind"])
    if before is not None and same_kind and not len(fresh) and len(wanted) == len(known):
        if containers != was:  # of an earlier version, that did not keep them
            write_json(before.folder, CONTAINERS, containers)
        announce(f"index: up to date, {before.folder.uri}")
        return before

    def work(stage: StageFolder) -> Counts:
        read, why, new = _described(session, model, fresh, settings, sorted(changed.items()))
        catalog, origins = wanted.with_descriptors(read, why)
        if not len(origins):
            raise InputError(
                f"--images {' '.join(config.images)}: none of the {len(wanted):,} images can be "
                f"read, the first of them {fresh[0].location}: {why[0]}"
            )
        nothing = np.empty((0, model.network.dim), np.float32)
        old = nothing if before is None else read_vectors(before.folder, known)
        write_vectors(stage.folder, origins, old=old, new=new, whiten=model.whiten)
        stage.folder.write_table(IMAGES, catalog.masked().table)
        write_json(stage.folder, CONTAINERS, containers)
        kind, digest = _compress(session, stage)
        for name in folder.names():
            (stage.folder / MODEL).write(name, folder.read(name))
        write_json(stage.folder, ABOUT, about | digest)
        return {
            "images": len(origins),
            "new": len(read),
            "gone": len(known) - int(np.count_nonzero(wanted.rows != FRESH)),
            "unreadable": len(catalog) - len(origins),
            "dims": old.shape[1],
            "kind": kind,
        }

    # The name too: when an index changes, the folder of its previous state is removed.
    inputs = (wanted.images.digest(), wanted.rows.tolist(), about, config.kind, config.index_name)
    # Where rows of a Parquet file have changed, nothing else shows it.
    again = [sorted(changed.items())] if changed else []
    return session.run_stage("index", *inputs, *again, work=work)


def _containers(before: StageFolder) -> dict[str, list[int]]:
    """Read the size and time that each tar and Parquet file had when its images were described.

    An index of an earlier version has none: the files count as unchanged.
    """
    found: dict[str, list[int]] = {}
    if before.folder.has(CONTAINERS):
        found = read_json(before.folder, CONTAINERS)
    return found


def _known(config: IndexConfig, before: StageFolder | None, about: dict[str, Any]) -> Catalog:
    """Read the catalog of the index so far; InputError where its settings differ."""
    if before is None:
        return Catalog.empty()
    there = read_about(before.folder).values
    for key in about:
        if there.get(key) != about[key]:
            raise InputError(
                f"--name {config.index_name}: this index was made with another "
                f"{key.replace('_', ' ')} ({shorten(there.get(key))}, not {about[key]}); choose "
                "another --name for a new index"
            )
    return read_catalog(before.folder).masked()


def _described(
    session: Session[IndexConfig],
    model: TrainedModel,
    fresh: Collection,
    settings: DescriptorSettings,
    changed: Sequence[Any],
) -> tuple[Ids, list[str | None], Features]:
    """Describe fresh images: places of the readable ones, all errors, and descriptors (r, d)."""
    if not len(fresh):
        return np.empty(0, np.int64), [], np.empty((0, model.network.dim), np.float32)
    described = extract_descriptors(
        session,
        fresh,
        model.network,
        settings=settings,
        settings_fingerprint=changed or None,  # for the content, which `fresh` does not show
        stage_flag="extract",
        max_bad_fraction=None,
    )
    folder = described.stage.folder
    read: Ids = folder.read_table("images.parquet", ["item"])["item"].to_numpy()
    why: list[str | None] = [None] * len(fresh)
    errors = folder.read_table("quarantine.parquet", ["error"])["error"].to_pylist()
    for place, error in zip(np.setdiff1d(np.arange(len(fresh)), read), errors, strict=True):
        why[place] = error
    return read, why, described.features("embedding")


def _compress(session: Session[IndexConfig], stage: StageFolder) -> tuple[str, dict[str, str]]:
    """Choose the kind of the index; write its compressed form if it has one, with its checksum."""
    count = len(read_array(stage.folder, VECTORS))
    kind, config = session.config.kind, session.config
    if kind == "auto":
        kind = "ivf-pq" if count >= LARGE else "flat"
    if kind == "ivf-pq":
        if count < FEWEST:
            raise InputError(
                f"--kind ivf-pq: {count:,} images are too few to learn codes from "
                f"({FEWEST:,}); flat compares so few at once"
            )
        pool, device = distributed.faiss_pool(session.pool, "index")
        announce(
            f"index: cells and codes of {count:,} vectors{' on a GPU' if device == 'cuda' else ''}"
        )
        what = (stage.folder, config.seed, device)
        if device == "cuda":  # the job's own machine may have none
            digest = distributed.run_once(write_codes, *what, pool.cpus, pool=pool, label="index")
        else:
            digest = write_codes(*what, cpu_count())
        return kind, {DIGEST: digest}
    return kind, {}


def _cells(config: IndexConfig, stage: StageFolder) -> Cells:
    counts = stage.counts
    head = ("index", "kind", "images", "unreadable", "dimensions")
    numbers = [f"{counts[key]:,}" for key in ("images", "unreadable", "dims")]
    return head, [(config.index_name, counts["kind"], *numbers)], len(numbers)


def _report(config: IndexConfig, stage: StageFolder, stages: Sequence[StageFolder]) -> Report:
    head, rows, _ = _cells(config, stage)
    bad = Catalog(stage.folder.read_table(IMAGES)).unreadable()
    return Report(
        title=f"The index {config.index_name!r}",
        summary=(f"Images of {', '.join(config.images)}",),
        results=Table(head=head, rows=tuple(rows), numbers=0),
        left_out=LeftOut(
            counts=left_out_of(stages).counts,
            unreadable=tuple(Unreadable(name=place, reason=why) for place, why in bad),
        ),
    )
