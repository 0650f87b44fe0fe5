"""The stage that finds near-duplicates among the images that were described.

n items.
"""

import dataclasses
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from mmray.config.learning import LearningConfig
from mmray.descriptors.shards import HASH, HASHES
from mmray.images.collection import Collection
from mmray.mining.near_duplicates.groups import (
    COSINE,
    HAMMING,
    PRODUCTS,
    near_duplicate_groups,
    representatives,
)
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.extraction import ExtractedDescriptors
from mmray.pipeline.stages.minable import need_items
from mmray.system.arrays import Ids
from mmray.system.progress import announce

NAME, FILE = "near", "near_duplicates.parquet"


@dataclass(frozen=True, eq=False)
class NearDuplicates:
    """The near-duplicates among n items.

    Attributes
    ----------
    stage : the stage that found them
    items : all n of them, those that are left out too
    left_out : whether only one of each group goes on
    """

    stage: StageFolder
    items: Collection
    left_out: bool

    @property
    def summary(self) -> str:
        """Tell how many there are, and in how many groups."""
        count, groups = (self.stage.counts[name] for name in ("near_duplicates", "groups"))
        copies = f"{count:,} near-duplicate{'s' * (count != 1)}"
        return f"{copies} in {groups:,} group{'s' * (groups != 1)}"

    def table(self) -> pa.Table:
        """Read the file: a row for each item that another one represents."""
        return self.stage.folder.read_table(FILE)


def near_duplicates_stage(
    session: Session[LearningConfig], described: ExtractedDescriptors
) -> tuple[ExtractedDescriptors, NearDuplicates | None]:
    """Find groups of near-duplicates, and leave all but one of each out where settings say so.

    `near_duplicates.parquet` has a row for each item that is not the representative of its group,
    the one with the most pixels: its `image_id` and `uri`; `of_id` and `of`, those of the
    representative; and the `cosine` and the `hamming` distance of the two, which are beyond the
    limits where a chain of others connects them.

    Returns
    -------
    described : the descriptors that go on
    found : the near-duplicates; None where they were not looked for

    Raises
    ------
    InputError
        Too few images are left.
    """
    pooling = described.poolings[0]

    def work(stage: StageFolder) -> Counts:
        table = _hashes(described)
        n, known = len(table), table[HASH].is_valid().to_numpy()
        hashes = table[HASH].fill_null(0).to_numpy()
        features = described.features(pooling)
        groups, complete = near_duplicate_groups(features, hashes, known)
        pixels = table["width"].to_numpy().astype(np.int64) * table["height"].to_numpy()
        kept = representatives(groups, pixels)
        ids = np.flatnonzero(kept != np.arange(n))
        of, uris = kept[ids], table["uri"]
        cosines = np.einsum("ij,ij->i", features[ids], features[of], dtype=np.float64)
        found = {
            **{"image_id": ids, "uri": uris.take(ids), "of_id": of, "of": uris.take(of)},
            "cosine": pa.array(cosines, pa.float32()),
            "hamming": pa.array(np.bitwise_count(hashes[ids] ^ hashes[of]), pa.int32()),
        }
        stage.folder.write_table(FILE, pa.table(found))
        counts = {"images": n, "near_duplicates": len(ids), "groups": len(np.unique(of))}
        return counts | {"unhashed": int(n - known.sum()), "incomplete": int(not complete)}

    def stale(stage: StageFolder) -> str:
        hashed = stage.counts["unhashed"] and not _hashes(described)[HASH].null_count
        return "the images have perceptual hashes now" if hashed else ""

    leave_out = session.config.near_duplicates == "one"
    inputs = (described.stage.fingerprint, pooling, HAMMING, COSINE, PRODUCTS)
    skippable = not leave_out and "extract" not in session.chosen
    if skippable and not StageFolder.of(session.storage, NAME, *inputs).done:
        return described, None  # of a run that an earlier version began
    stage = session.run_stage(NAME, *inputs, work=work, stage_flag="extract", stale=stale)
    found = NearDuplicates(stage, described.items, leave_out)
    for sentence in _told(found):
        announce(f"extract: {sentence}")
    if found.left_out:
        described = _without(described, found)
        need_items(session.config.mining, len(described.items), "images, near-duplicates left out,")
    return described, found


def _hashes(described: ExtractedDescriptors) -> pa.Table:
    """Read the hash, place and size of each image; hashes are null if of an earlier version."""
    columns = ["uri", "width", "height"]
    return described.stage.folder.read_table("images.parquet", columns, HASHES)


def _told(found: NearDuplicates) -> list[str]:
    """Tell what was found, and what could not be."""
    told, counts = [], found.stage.counts
    if counts["near_duplicates"]:
        out = "left out" if found.left_out else "--near-duplicates one leaves them out"
        told.append(f"{found.summary}; see {FILE}; {out}")
    if counts["unhashed"]:
        told.append(
            f"near-duplicates are not looked for among {counts['unhashed']:,} of "
            f"{counts['images']:,} images, which an earlier version described without perceptual "
            "hashes; they are described anew where its folder extract-... is removed"
        )
    if counts["incomplete"]:
        told.append(
            "not all near-duplicates were found: too many images have nearly the same hash and "
            "different descriptors"
        )
    return told


def _without(described: ExtractedDescriptors, found: NearDuplicates) -> ExtractedDescriptors:
    """Leave out the items that others represent."""
    ids: Ids = found.stage.folder.read_table(FILE, ["image_id"])["image_id"].to_numpy()
    if not len(ids):
        return described
    rows = np.setdiff1d(np.arange(len(described.items)), ids)
    return dataclasses.replace(
        described,
        items=described.items.take(rows),
        places=described.places[rows],
        rows=rows,
    )
