"""Listing of the images inside tar and Parquet files, a file at a time."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from mmray.images.collection import Collection
from mmray.images.containers import index
from mmray.pipeline.distributed.units import ITEMS, UNIT, ActorPool, run_units, shard_name
from mmray.system.folder import Folder
from mmray.system.locations import prefetch


class Indexer:
    """Worker that lists the images of the file that a unit names."""

    def __init__(self, column: str | None) -> None:
        self.column = column

    def __call__(self, unit: dict[str, Any]) -> pa.Table:
        return index(unit["uri"], column=self.column).masked().table


def index_containers(
    uris: Sequence[str], *, column: str | None, output: Folder, pool: ActorPool
) -> list[Collection]:
    """List the images of each file, with a shard per file in `output`; existing shards are kept.

    Credentials in the URIs are not stored in the shards.

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
    tables = prefetch(output.read_table, names)
    return [Collection(table).unmasked([uri]) for table, uri in zip(tables, uris, strict=True)]
