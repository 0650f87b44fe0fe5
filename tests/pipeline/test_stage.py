"""Artifacts are read back as they were written, and never mixed."""

import dataclasses
import json

import numpy as np
import pytest

from mmray.mining.files import pools_table, read_pools
from mmray.mining.pool_lists import Pools
from mmray.pipeline.stage import StageFolder, fingerprint
from mmray.system import locations
from mmray.system.folder import Folder
from mmray.system.formats import read_array


@pytest.fixture
def stage(tmp_path):
    return StageFolder.of(Folder(str(tmp_path)), "extract", "inputs")


def test_pools_come_back_equal_empty_lists_and_all(tmp_path):
    def ids(*rows):
        return tuple(np.array(row, np.int64) for row in rows)

    def numbers(*rows):
        return tuple(np.array(row, np.float32) for row in rows)

    pools = Pools(
        anchors=np.array([7, 2]),
        positives=ids([3, 1], []),
        positive_similarity=numbers([0.5, 0.25], []),
        positive_rank_e=ids([60, 71], []),
        negatives=ids([], [9]),
        negative_similarity=numbers([], [0.75]),
        negative_rank_m=ids([], [1000]),
        manifold_neighbors=ids([3, 1, 4], [5]),
        zero_positives=np.array([0, 2]),
        residual=np.array([1e-11, 0.5]),
        iterations=np.array([20, 3]),
    )
    folder = Folder(str(tmp_path))
    (folder / "pools").write_table("part-000000.parquet", pools_table(pools))
    read = read_pools(folder)
    for field in dataclasses.fields(Pools):
        wrote, found = getattr(pools, field.name), getattr(read, field.name)
        for left, right in zip(wrote, found, strict=True):
            np.testing.assert_array_equal(left, right)
            assert left.dtype == right.dtype


def test_a_fingerprint_changes_with_every_part_and_nothing_else():
    one = fingerprint("a", {"x": 1, "y": (1, 2)})
    assert one == fingerprint("a", {"y": [1, 2], "x": 1})
    assert len({one, fingerprint("b", {"x": 1}), fingerprint("a", {"x": 1}), fingerprint("a")}) == 4


def test_a_stage_is_done_when_it_says_so_and_keeps_its_counts(stage):
    assert not stage.done
    stage.finish({"images": 3})
    again = StageFolder.of(Folder(str(stage.folder.local.parent)), "extract", "inputs")
    assert again.done
    assert again.counts == {"images": 3}
    record = json.loads((stage.folder.local / "_SUCCESS.json").read_text())
    assert record["versions"]["torch"].startswith("2.")
    assert not StageFolder.of(Folder(str(stage.folder.local.parent)), "extract", "other").done


def test_an_array_file_holding_objects_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object))
    with pytest.raises(ValueError, match="Python objects"):
        read_array(Folder(str(tmp_path)), "x.npy")


def test_reading_ahead_keeps_the_order_and_does_not_run_far_ahead():
    begun = []

    def read(name):
        begun.append(name)
        return name.upper()

    letters = "abcdefghijklmnopqrstuvwxyz"
    for place, result in enumerate(locations.prefetch(read, list(letters), count=3)):
        assert result == letters[place].upper()
        assert len(begun) <= place + 5
    assert sorted(begun) == list(letters)


def test_reading_ahead_raises_what_reading_raised():
    def read(name):
        raise OSError(f"no {name}")

    with pytest.raises(OSError, match="no a"):
        list(locations.prefetch(read, ["a", "b"]))
