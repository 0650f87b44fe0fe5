"""Artifacts are read back as they were written, numbered densely, and never mixed."""

import dataclasses
import json

import numpy as np
import pytest

from mmray import artifacts
from mmray.artifacts import Stage, features_table, fingerprint, finish_features
from mmray.errors import InputError
from mmray.graph import normalize_graph
from mmray.pools import Pools
from mmray.storage import Folder
from tests import synthetic

POOLINGS = ("rmac", "mac")


@pytest.fixture
def stage(tmp_path):
    return Stage.of(Folder(str(tmp_path)), "extract", "inputs")


def write_shards(stage, *, bad=(), count=10, size=4, d=3):
    """Shards as extraction leaves them: image i has descriptors i + 0.5 (rmac) and -i (mac)."""
    for start in range(0, count, size):
        ids = range(start, min(start + size, count))
        records = [
            {
                "image_id": i,
                "uri": f"{i}.jpg",
                "width": None if i in bad else 10 * i,
                "height": None if i in bad else 7,
                "error": "truncated" if i in bad else None,
            }
            for i in ids
        ]
        values = np.stack([np.stack([np.full(d, i + 0.5), np.full(d, -i)]) for i in ids])
        table = features_table(records, POOLINGS, values.astype(np.float32))
        (stage.folder / "features").write_table(f"part-{start // size:06d}.parquet", table)


def finished(stage):
    table = stage.folder.read_table("images.parquet")
    shards = stage.folder / "features"
    ids = [i for name in shards.names() for i in shards.read_table(name)["image_id"].to_pylist()]
    return table.to_pydict(), ids, artifacts.read_features(stage, POOLINGS, "rmac").tolist()


def test_features_come_back_in_the_order_of_the_images(stage):
    write_shards(stage)
    assert finish_features(stage, POOLINGS, max_bad_fraction=0) == {"images": 10, "quarantined": 0}
    rmac = artifacts.read_features(stage, POOLINGS, "rmac")
    mac = artifacts.read_features(stage, POOLINGS, "mac")
    assert rmac.dtype == np.float32
    np.testing.assert_array_equal(rmac[:, 0], np.arange(10) + 0.5)
    np.testing.assert_array_equal(mac[:, 2], -np.arange(10))
    tensor = (stage.folder / "features").read_table("part-000001.parquet")["embedding"].type
    assert str(tensor) == "extension<arrow.fixed_shape_tensor[value_type=float, shape=[3]]>"


@pytest.mark.parametrize("bad", [(0,), (3, 4), (9,), (4, 5, 6, 7)])
def test_bad_images_are_set_aside_and_the_others_numbered_densely(stage, bad):
    write_shards(stage, bad=bad)
    counts = finish_features(stage, POOLINGS, max_bad_fraction=0.5)
    good = [i for i in range(10) if i not in bad]
    images, ids, rows = finished(stage)
    assert counts == {"images": len(good), "quarantined": len(bad)}
    assert images["image_id"] == ids == list(range(len(good)))
    assert images["uri"] == [f"{i}.jpg" for i in good]
    assert [row[0] for row in rows] == [i + 0.5 for i in good]
    quarantine = stage.folder.read_table("quarantine.parquet").to_pydict()
    assert quarantine == {"uri": [f"{i}.jpg" for i in bad], "error": ["truncated"] * len(bad)}


@pytest.mark.parametrize("after", range(1, 8))
def test_finishing_again_after_a_kill_anywhere_gives_the_same(stage, monkeypatch, after):
    write_shards(stage, bad=(1, 6))
    whole = Stage.of(Folder(str(stage.folder.local.parent)), "extract", "uninterrupted")
    write_shards(whole, bad=(1, 6))
    finish_features(whole, POOLINGS, max_bad_fraction=0.5)
    writes, write = [0], Folder.writing

    def writing(folder, name):
        writes[0] += 1
        if writes[0] == after:
            raise KeyboardInterrupt
        return write(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "writing", writing)
        with pytest.raises(KeyboardInterrupt):
            finish_features(stage, POOLINGS, max_bad_fraction=0.5)
    finish_features(stage, POOLINGS, max_bad_fraction=0.5)
    assert finished(stage) == finished(whole)


def test_too_many_bad_images_are_an_error_that_keeps_the_list_and_lets_one_try_again(stage):
    write_shards(stage, bad=(1, 2, 3))
    with pytest.raises(InputError, match=r"3 of 10 images .*\(30.0% > .* 20.0%\).*quarantine"):
        finish_features(stage, POOLINGS, max_bad_fraction=0.2)
    assert len(stage.folder.read_table("quarantine.parquet")) == 3
    write_shards(stage, bad=())  # mended
    assert finish_features(stage, POOLINGS, max_bad_fraction=0.2)["images"] == 10


def test_no_readable_image_is_an_error_at_any_limit(stage):
    write_shards(stage, bad=range(10))
    with pytest.raises(InputError, match="10 of 10 images could not be read"):
        finish_features(stage, POOLINGS, max_bad_fraction=1.0)


def test_a_graph_comes_back_equal(tmp_path):
    graph = synthetic.random_graph(1, 40)
    folder, items = Folder(str(tmp_path)), np.arange(40) * 3
    normalized = normalize_graph(graph)
    artifacts.write_graph(folder, raw=graph, normalized=normalized, items=items)
    stored = artifacts.read_graph(folder)
    assert (stored.raw != graph).nnz == 0
    assert (stored.normalized != normalized).nnz == 0
    np.testing.assert_array_equal(stored.items, items)


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
    (folder / "pools").write_table("part-000000.parquet", artifacts.pools_table(pools))
    read = artifacts.read_pools(folder)
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
    again = Stage.of(Folder(str(stage.folder.local.parent)), "extract", "inputs")
    assert again.done
    assert again.counts == {"images": 3}
    record = json.loads((stage.folder.local / "_SUCCESS.json").read_text())
    assert record["versions"]["torch"].startswith("2.")
    assert not Stage.of(Folder(str(stage.folder.local.parent)), "extract", "other").done


def test_an_array_file_holding_objects_is_refused(tmp_path):
    np.save(tmp_path / "x.npy", np.array([{}], object))
    with pytest.raises(ValueError, match="Python objects"):
        artifacts.read_array(Folder(str(tmp_path)), "x.npy")
