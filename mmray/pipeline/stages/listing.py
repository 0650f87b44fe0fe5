"""The stage that lists the images of a run, and keeps the list for later runs."""

import dataclasses
from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from typing import Any

from mmray.config.run import ListingConfig
from mmray.images import left_out
from mmray.images.collection import Collection, read_exclusions, sample, without
from mmray.images.sources import SourceListing, Stamp, find, unchanged
from mmray.pipeline.distributed.listing import index_containers
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder, fingerprint
from mmray.system.errors import InputError
from mmray.system.formats import read_json, write_json
from mmray.system.locations import absolute
from mmray.system.progress import announce

IMAGES, SOURCES = "list.parquet", "sources.json"
LEFT_OUT = "left_out"  # in the record of the stage: what is no image -> its number


def read_exclusion_list(config: ListingConfig) -> frozenset[str]:
    """Read the names of --exclude."""
    return frozenset() if config.exclude is None else frozenset(read_exclusions(config.exclude))


def list_stage(
    session: Session[ListingConfig], sources: Sequence[str], excluded: AbstractSet[str]
) -> Collection:
    """List the images of the sources except excluded ones, or a sample of them.

    A rerun uses the list of an earlier run, unless --relist is given, or a folder, list or archive
    on it has changed. Loose files in an object store are not checked for changes: that takes as
    long as listing them.

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
        everything, within = _with_contained(session, stage, found, stamps)
        if within:
            announce(f"list: left out of archives: {left_out.counted(within)}")
        if not len(everything):
            raise InputError(
                f"--images {' '.join(sources)}: no images in these archives, only "
                f"{left_out.counted(within) or 'nothing'}; name others"
            )
        listed = without(everything, excluded)
        if excluded:
            _tell_of_excluded(len(everything) - len(listed), excluded)
        images = listed if config.sample is None else sample(listed, config.sample, config.seed)
        if not len(images):
            raise InputError(
                f"--images {' '.join(sources)}: none of the images is left; look at --exclude"
            )
        write_json(stage.folder, SOURCES, stamps)
        stage.folder.write_table(IMAGES, images.table)
        passed = sum((source.left_out for source in found), within)
        return {"images": len(images), "listed": len(listed), LEFT_OUT: dict(passed)}

    def stale(stage: StageFolder) -> bool:
        if "extract" not in session.chosen:
            return False  # the stages that are done have stored their images
        stamps = [Stamp(**stamp) for stamp in read_json(stage.folder, SOURCES)]
        if config.relist or not unchanged(stamps):
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
    return Collection(stage.folder.read_table(IMAGES))


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
) -> tuple[Collection, Counter[str]]:
    """Join the files of each source with the images in its archives; count what is left there."""
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
    parts, passed = [], Counter[str]()
    for source in found:
        parts.append(source.images)
        for _ in source.containers:
            images, rest = next(indexed)
            parts.append(images)
            passed += rest
    return Collection.joined(parts), passed
