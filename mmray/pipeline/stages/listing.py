"""The stage that lists the images of a run, and keeps the list for later runs."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from contextlib import suppress
from typing import Any

import numpy as np

from mmray.config.run import ListingConfig
from mmray.images import left_out
from mmray.images.collection import Collection, named_images, read_exclusions, sample
from mmray.images.names import fit
from mmray.images.sources import SourceListing, Stamp, find, unchanged
from mmray.pipeline import distributed
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder, fingerprint
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.formats import read_json, write_json
from mmray.system.locations import absolute
from mmray.system.progress import announce
from mmray.system.uris import masked, unmasked

IMAGES, SOURCES = "list.parquet", "sources.json"
LEFT_OUT = "left_out"  # in the record of the stage: what is no image -> its number


def read_exclusion_list(config: ListingConfig) -> frozenset[str]:
    """Read the names of --exclude."""
    if config.exclude is None:
        return frozenset()
    names = frozenset(read_exclusions(config.exclude))
    if not names:
        announce(f"--exclude {config.exclude}: there is no name in it, nothing is left out")
    return names


def list_stage(
    session: Session[ListingConfig], sources: Sequence[str], excluded: AbstractSet[str]
) -> Collection:
    """Return the images of `listing_stage`."""
    return listing_stage(session, sources, excluded)[0]


def listing_stage(
    session: Session[ListingConfig],
    sources: Sequence[str],
    excluded: AbstractSet[str],
    *,
    must_fit: bool = True,
) -> tuple[Collection, list[Stamp]]:
    """List the images of the sources except excluded ones, or a sample of them.

    An image that is named more than once is listed once. Credentials are not stored: a rerun takes
    them from `sources`.

    A rerun uses the list of an earlier run, unless --relist is given, or a folder, list or archive
    on it has changed. Loose files in an object store are not checked for changes: that takes as
    long as listing them.

    Parameters
    ----------
    session : the run
    sources : folders, files and lists, see `find`
    excluded : names of images to leave out
    must_fit : whether one of these names must be that of an image here

    Returns
    -------
    (images, stamps) : the stamps are those of lists, archives and folders when they were listed.

    Raises
    ------
    InputError
        A source cannot be listed, no excluded name fits an image, or no image is left.
    """
    config = session.config

    def work(stage: StageFolder) -> Counts:
        found = [find(source, column=config.image_column) for source in sources]
        for source in found:
            announce(f"list: {source.summary}")
        stamps = [dataclasses.asdict(stamp) for source in found for stamp in source.watched]
        named, within = _with_contained(session, stage, found, stamps)
        if within:
            announce(f"list: left out of archives: {left_out.counted(within)}")
        if not len(named):
            raise InputError(
                f"--images {' '.join(sources)}: no images in these archives, only "
                f"{left_out.counted(within) or 'nothing'}; name others"
            )
        everything = named.distinct()
        if len(everything) < len(named):
            announce(
                f"list: {len(named) - len(everything):,} entries name an image that was named "
                f"before; each of the {len(everything):,} images is taken once"
            )
        listed, fitting = without_named(everything, excluded, must_fit=must_fit)
        images = listed if config.sample is None else sample(listed, config.sample, config.seed)
        if not len(images):
            raise InputError(
                f"--images {' '.join(sources)}: none of the images is left; look at --exclude"
            )
        for stamp in stamps:
            stamp["uri"] = masked(stamp["uri"])
        write_json(stage.folder, SOURCES, stamps)
        stage.folder.write_table(IMAGES, images.masked().table)
        passed = sum((source.left_out for source in found), within)
        counts = {"images": len(images), "listed": len(listed), "fitting": len(fitting)}
        return {**counts, LEFT_OUT: dict(passed)}

    def stamps_of(stage: StageFolder) -> list[Stamp]:
        stamps = [Stamp(**stamp) for stamp in read_json(stage.folder, SOURCES)]
        return [dataclasses.replace(each, uri=unmasked(each.uri, sources)) for each in stamps]

    def stale(stage: StageFolder) -> str:
        if "extract" not in session.chosen:
            return ""  # the stages that are done have stored their images
        if config.relist:
            return "--relist asks"
        with suppress(DamagedFileError, FileNotFoundError):  # found by its digest, and made anew
            return "" if unchanged(stamps_of(stage)) else "a source has changed"
        return ""

    inputs = (
        [absolute(source) for source in sources],
        config.image_column,
        sorted(excluded),
        config.sample,
    )
    drawn = None if config.sample is None else config.seed
    stage = session.run_stage(
        "list",
        *(*inputs, drawn),
        work=work,
        stage_flag="extract",
        stale=stale,
        internal=["containers-"],
    )
    return Collection(stage.folder.read_table(IMAGES)).unmasked(sources), stamps_of(stage)


def list_each(
    session: Session[ListingConfig], sources: Sequence[str], excluded: AbstractSet[str]
) -> list[tuple[Collection, list[Stamp]]]:
    """List the images of each source by itself; names of --exclude may fit images of any of them.

    Raises
    ------
    InputError
        As for `listing_stage`.
    """
    listed, fitting = [], 0
    for source in sources:
        listed.append(listing_stage(session, [source], excluded, must_fit=len(sources) == 1))
        # Lists of earlier versions do not tell; they are none unless a name fits.
        fitting += session.stages[-1].counts.get("fitting", 1)
    if excluded and not fitting:
        everything = Collection.joined([images for images, _ in listed])
        fit("--exclude", excluded, frozenset(), everything.table["name"][:1].to_pylist())
    return listed


def without_named(
    images: Collection, names: AbstractSet[str], *, must_fit: bool = True
) -> tuple[Collection, frozenset[str]]:
    """Leave out the images that names of --exclude mean, and say how many.

    Returns
    -------
    The other images, and those of the names that mean an image.

    Raises
    ------
    InputError
        No name means an image, though `must_fit`.
    """
    flags, fitting = named_images(images, names)
    if names and (fitting or must_fit):
        said = fit("--exclude", names, fitting, images.table["name"][:1].to_pylist())
        count = int(np.count_nonzero(flags))
        announce(f"list: {count:,} images left out by the {len(names):,} names of --exclude")
        if len(fitting) < len(names):
            announce(f"list: {said}")
    return images.take(np.flatnonzero(~flags)), fitting


def _with_contained(
    session: Session[ListingConfig],
    stage: StageFolder,
    found: list[SourceListing],
    stamps: list[dict[str, Any]],
) -> tuple[Collection, Counter[str]]:
    """Join the files of each source with the images in its archives; count what is left there."""
    containers = [uri for source in found for uri in source.containers]
    # Indexes of archives survive an interruption, but not a change of the archives.
    indexed = iter(
        distributed.index_containers(
            containers,
            column=session.config.image_column,
            output=stage.folder / f"containers-{fingerprint(containers, stamps)}",
            pool=session.pool,
        )
    )
    parts, passed = [], Counter[str]()
    for source in found:
        parts.append(source.images)
        for _ in source.containers:
            images, rest = next(indexed)
            parts.append(images)
            passed += rest
    return Collection.joined(parts), passed
