"""The stage that lists the images of a run, and keeps the list for later runs."""

import dataclasses
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from mmray.config.run import ListingConfig
from mmray.images.collection import Collection, read_exclusions, sample, without
from mmray.images.sources import SourceListing, Stamp, find, unchanged
from mmray.pipeline.distributed.listing import index_containers
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder, fingerprint
from mmray.system.errors import InputError
from mmray.system.formats import read_json, write_json
from mmray.system.locations import absolute
from mmray.system.progress import announce
from mmray.system.uris import masked, unmasked

IMAGES, SOURCES = "list.parquet", "sources.json"


def read_exclusion_list(config: ListingConfig) -> frozenset[str]:
    """Read the names of --exclude."""
    return frozenset() if config.exclude is None else frozenset(read_exclusions(config.exclude))


def list_stage(
    session: Session[ListingConfig], sources: Sequence[str], excluded: AbstractSet[str]
) -> Collection:
    """Return the images of `listing_stage`."""
    return listing_stage(session, sources, excluded)[0]


def listing_stage(
    session: Session[ListingConfig], sources: Sequence[str], excluded: AbstractSet[str]
) -> tuple[Collection, list[Stamp]]:
    """List the images of the sources except excluded ones, or a sample of them.

    An image that is named more than once is listed once. Credentials are not stored: a rerun takes
    them from `sources`.

    A rerun uses the list of an earlier run, unless --relist is given, or a folder, list or archive
    on it has changed. Loose files in an object store are not checked for changes: that takes as
    long as listing them.

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
        named = _with_contained(session, stage, found, stamps)
        everything = named.distinct()
        if len(everything) < len(named):
            announce(
                f"list: {len(named) - len(everything):,} entries name an image that was named "
                f"before; each of the {len(everything):,} images is taken once"
            )
        listed = without(everything, excluded)
        if excluded:
            _tell_of_excluded(len(everything) - len(listed), excluded)
        images = listed if config.sample is None else sample(listed, config.sample, config.seed)
        if not len(images):
            raise InputError(
                f"--images {' '.join(sources)}: none of the images is left; look at --exclude"
            )
        for stamp in stamps:
            stamp["uri"] = masked(stamp["uri"])
        write_json(stage.folder, SOURCES, stamps)
        stage.folder.write_table(IMAGES, images.masked().table)
        return {"images": len(images), "listed": len(listed)}

    def stamps_of(stage: StageFolder) -> list[Stamp]:
        stamps = [Stamp(**stamp) for stamp in read_json(stage.folder, SOURCES)]
        return [dataclasses.replace(each, uri=unmasked(each.uri, sources)) for each in stamps]

    def stale(stage: StageFolder) -> bool:
        if "extract" not in session.chosen:
            return False  # the stages that are done have stored their images
        if config.relist or not unchanged(stamps_of(stage)):
            announce("list: made again, as --relist asks or as a source has changed")
            return True
        return False

    inputs = (
        [absolute(source) for source in sources],
        config.image_column,
        sorted(excluded),
        config.sample,
    )
    drawn = None if config.sample is None else config.seed
    stage = session.run_stage("list", *inputs, drawn, work=work, stage_flag="extract", stale=stale)
    return Collection(stage.folder.read_table(IMAGES)).unmasked(sources), stamps_of(stage)


def _tell_of_excluded(images: int, names: AbstractSet[str]) -> None:
    """Report the number of excluded images; InputError where no name fits an image."""
    if not images:
        raise InputError(
            f"--exclude: none of the {len(names)} names, such as {min(names)}, is that of an "
            "image: give paths below the folders, file names, or file names without their suffix"
        )
    announce(f"list: {images:,} images left out by the {len(names):,} names of --exclude")


def _with_contained(
    session: Session[ListingConfig],
    stage: StageFolder,
    found: list[SourceListing],
    stamps: list[dict[str, Any]],
) -> Collection:
    """Join the files of each source with the images in its archives."""
    containers = [uri for source in found for uri in source.containers]
    # Indexes of archives survive an interruption, but not a change of the archives.
    indexed = iter(
        index_containers(
            containers,
            column=session.config.image_column,
            output=stage.folder / f"containers-{fingerprint(containers, stamps)}",
            pool=session.pool,
        )
    )
    parts = []
    for source in found:
        parts += [source.images, *(next(indexed) for _ in source.containers)]
    return Collection.joined(parts)
