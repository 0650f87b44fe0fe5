"""Listing of the images inside tar and Parquet files, a file at a time."""

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mmray.images.collection import Collection
from mmray.images.containers import index
from mmray.pipeline.distributed.units import ITEMS, UNIT, ActorPool, run_units, shard_name
from mmray.system.folder import Folder
from mmray.system.locations import prefetch

_LEFT_OUT = b"left_out"  # metadata of a shard: counts as JSON


class Indexer:
    """Worker that lists the images of the file that a unit names, and counts what is left out."""

    def __init__(self, column: str | None) -> None:
        self.column = column

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        images, left_out = index(unit["uri"], column=self.column)
        return images.masked().table.replace_schema_metadata({_LEFT_OUT: json.dumps(left_out)})


def index_containers(
    uris: Sequence[str], *, column: str | None, output: Folder, pool: ActorPool
) -> list[tuple[Collection, Counter[str]]]:
    """List the images of each file, with a shard per file in `output`; existing shards are kept.

    Returns the images of each file, and the counts of what is left out there. Credentials in the
    URIs are not stored in the shards.

    Parameters
    ----------
    uris : of tar and Parquet files
    column : of images in Parquet files, see `images.containers.index`
    output : folder of the shards
    pool : the actors to run
    """
    if not uris:
        return []
    units = {UNIT: range(len(uris)), ITEMS: [1] * len(uris), "uri": list(uris)}
    run_units(pa.table(units), Indexer, (column,), output=output, pool=pool, label="list")
    names = [shard_name(unit) for unit in range(len(uris))]
    found = map(_contents, prefetch(output.read_table, names))
    return [
        (images.unmasked([uri]), counts) for (images, counts), uri in zip(found, uris, strict=True)
    ]


def _contents(shard: pa.Table) -> tuple[Collection, Counter[str]]:
    # Shards of earlier versions have no counts.
    counts = (shard.schema.metadata or {}).get(_LEFT_OUT, b"{}")
    return Collection(shard.replace_schema_metadata(None)), Counter(json.loads(counts))
