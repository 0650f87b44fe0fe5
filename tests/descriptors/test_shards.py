"""The shards of an extraction become features without gaps: bad and repeated images set aside."""

import numpy as np
import pyarrow as pa
import pytest

from mmray.descriptors.shards import finish_features, moments_table, read_features, read_moments
from mmray.descriptors.whitening import Moments
from mmray.pipeline.stage import StageFolder
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder
from tests.made import synthetic

POOLINGS = ("rmac", "mac")


@pytest.fixture
def stage(tmp_path):
    return StageFolder.of(Folder(str(tmp_path)), "extract", "inputs")


def write_shards(stage, *, bad=(), contents=None, count=10, size=4, d=3, only=None):
    """Image i has descriptors i + 0.5 (rmac) and -i (mac), and the content contents[i]."""
    for start in range(0, count, size):
        items = range(start, min(start + size, count))
        values = np.stack([np.stack([np.full(d, i + 0.5), np.full(d, -i)]) for i in items])
        table = synthetic.feature_shard(
            values,
            POOLINGS,
            items=items,
            errors={i: "truncated" for i in items if i in bad},
            digests=contents and [contents[i].encode() * 32 for i in items],
        )
        name = f"part-{start // size:06d}.parquet"
        if only is None or name in only:
            (stage.folder / "features").write_table(name, table)


def finish(stage, limit=0.5, *, total=10, **options):
    return finish_features(stage.folder, POOLINGS, total=total, max_bad_fraction=limit, **options)


def finished(stage):
    table = stage.folder.read_table("images.parquet")
    return table.to_pydict(), read_features(stage.folder, POOLINGS, "rmac").tolist()


def test_features_come_back_in_the_order_of_the_images(stage):
    write_shards(stage)
    assert finish(stage, 0) == {"images": 10, "quarantined": 0, "duplicates": 0}
    rmac = read_features(stage.folder, POOLINGS, "rmac")
    mac = read_features(stage.folder, POOLINGS, "mac")
    assert rmac.dtype == np.float32
    np.testing.assert_array_equal(rmac[:, 0], np.arange(10) + 0.5)
    np.testing.assert_array_equal(mac[:, 2], -np.arange(10))
    tensor = (stage.folder / "features").read_table("part-000001.parquet")["embedding"].type
    assert str(tensor) == "extension<arrow.fixed_shape_tensor[value_type=float, shape=[3]]>"


@pytest.mark.parametrize("bad", [(0,), (3, 4), (9,), (4, 5, 6, 7)])
def test_bad_images_are_set_aside_and_the_others_numbered_densely(stage, bad):
    write_shards(stage, bad=bad)
    counts = finish(stage)
    good = [i for i in range(10) if i not in bad]
    images, rows = finished(stage)
    assert counts == {"images": len(good), "quarantined": len(bad), "duplicates": 0}
    assert images["image_id"] == list(range(len(good)))
    assert images["item"] == good
    assert images["uri"] == [f"{i}.jpg" for i in good]
    assert [row[0] for row in rows] == [i + 0.5 for i in good]
    quarantine = stage.folder.read_table("quarantine.parquet").to_pydict()
    assert quarantine == {"uri": [f"{i}.jpg" for i in bad], "error": ["truncated"] * len(bad)}


def test_every_table_of_images_has_the_locations_that_tell_them_apart(stage):
    write_shards(stage, bad=(2,), contents="aabcdefghi")
    places = pa.chunked_array([[f"p#x (row {i})" for i in range(10)]], pa.large_string())
    finish(stage, deduplicate=True, locations=places)
    tables = {
        name: stage.folder.read_table(f"{name}.parquet")
        for name in ("images", "quarantine", "duplicates")
    }
    assert tables["images"]["uri"].to_pylist() == [f"p#x (row {i})" for i in (0, *range(3, 10))]
    assert tables["quarantine"]["uri"].to_pylist() == ["p#x (row 2)"]
    assert tables["duplicates"].to_pydict() == {"uri": ["p#x (row 1)"], "of": ["p#x (row 0)"]}
    assert {table.schema.field("uri").type for table in tables.values()} == {pa.string()}


def test_of_equal_contents_the_first_good_one_stays(stage):
    write_shards(stage, bad=(0, 6), contents="aabcbdacbb")
    counts = finish(stage, deduplicate=True)
    images, rows = finished(stage)
    assert counts == {"images": 4, "quarantined": 2, "duplicates": 4}
    assert images["item"] == [1, 2, 3, 5]
    assert images["image_id"] == [0, 1, 2, 3]
    assert [row[0] for row in rows] == [1.5, 2.5, 3.5, 5.5]
    duplicates = stage.folder.read_table("duplicates.parquet").to_pydict()
    assert duplicates == {
        "uri": ["4.jpg", "7.jpg", "8.jpg", "9.jpg"],
        "of": ["2.jpg", "3.jpg", "2.jpg", "2.jpg"],
    }
    assert finish(stage, deduplicate=True) == counts


@pytest.mark.parametrize("letters", ["abc", "abcdefghijklmnop"])
@pytest.mark.parametrize("begin", [0, 8, 31])
def test_contents_are_told_apart_wherever_their_digests_differ(stage, letters, begin):
    rng = np.random.default_rng(begin)
    chosen = rng.choice(list(letters), 60)
    digests = [b"x" * begin + letter.encode() * (32 - begin) for letter in chosen]
    table = synthetic.feature_shard(np.ones((60, 1, 2)), ["mac"], digests=digests)
    for part in (slice(0, 25), slice(25, 60)):
        name = f"part-{part.start:06d}.parquet"
        (stage.folder / "features").write_table(name, table[part])
    finish_features(stage.folder, ["mac"], total=60, max_bad_fraction=0, deduplicate=True)
    first = [digests.index(digest) for digest in digests]
    kept = [row for row in range(60) if first[row] == row]
    assert stage.folder.read_table("images.parquet")["item"].to_pylist() == kept
    assert stage.folder.read_table("duplicates.parquet").to_pydict() == {
        "uri": [f"{row}.jpg" for row in range(60) if first[row] != row],
        "of": [f"{first[row]}.jpg" for row in range(60) if first[row] != row],
    }


def test_equal_contents_all_stay_where_nothing_else_is_asked_for(stage):
    write_shards(stage, contents="aaaaaaaaaa")
    assert finish(stage) == {"images": 10, "quarantined": 0, "duplicates": 0}


@pytest.mark.parametrize("after", range(1, 7))
def test_finishing_again_after_a_kill_anywhere_gives_the_same(stage, monkeypatch, after):
    given = {"bad": (1, 6), "contents": "abcdefghcd"}
    write_shards(stage, **given)
    whole = StageFolder.of(Folder(str(stage.folder.local.parent)), "extract", "uninterrupted")
    write_shards(whole, **given)
    finish(whole, deduplicate=True)
    writes, write = [0], Folder.writing

    def writing(folder, name):
        writes[0] += 1
        if writes[0] == after:
            raise KeyboardInterrupt
        return write(folder, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "writing", writing)
        with pytest.raises(KeyboardInterrupt):
            finish(stage, deduplicate=True)
    finish(stage, deduplicate=True)
    assert finished(stage) == finished(whole)
    for name in ("quarantine.parquet", "duplicates.parquet"):
        assert stage.folder.read(name) == whole.folder.read(name)


def test_too_many_bad_images_are_an_error_that_keeps_what_is_good(stage):
    write_shards(stage, bad=(1, 2, 9))
    with pytest.raises(InputError, match=r"3 of 10 images .*\(30.0% > --most 20.0%\).*quarantine"):
        finish(stage, 0.2, flag="--most")
    assert len(stage.folder.read_table("quarantine.parquet")) == 3
    assert (stage.folder / "features").names() == ["part-000001.parquet"]
    write_shards(stage, bad=())  # mended
    assert finish(stage, 0.2)["images"] == 10


def test_an_extraction_that_ended_early_is_refused_by_what_it_saw(stage):
    write_shards(stage, bad=(1, 2, 3), count=8)
    with pytest.raises(InputError, match=r"3 of 10 images could not be read \(30.0% >"):
        finish(stage, 0.2)


def test_no_readable_image_is_an_error_at_any_limit(stage):
    write_shards(stage, bad=range(10))
    with pytest.raises(InputError, match=r"10 of 10 images could not be read \(none is left\)"):
        finish(stage, 1.0)


def test_where_all_are_needed_one_bad_image_is_too_many(stage):
    write_shards(stage, bad=(4,))
    with pytest.raises(InputError, match=r"1 of 10 images could not be read \(all are needed\)"):
        finish(stage, 0.0)


def test_shards_of_an_earlier_version_that_lack_rows_are_made_anew(stage):
    """It dropped the rows that it had set aside, and may have been killed while it did."""
    write_shards(stage, count=8)
    with pytest.raises(DamagedFileError, match=r"part-000001\.parquet.*rows are missing"):
        finish(stage)
    assert (stage.folder / "features").names() == ["part-000001.parquet"], "its reader removes it"


def test_moments_come_back_equal():
    moments = Moments.of(np.random.default_rng(0).standard_normal((7, 3)))
    read = read_moments(moments_table(moments))
    assert read.count == 7
    np.testing.assert_array_equal(read.mean, moments.mean)
    np.testing.assert_array_equal(read.scatter, moments.scatter)


@pytest.mark.parametrize("bad", [(), (0,), (3, 4), (4, 5, 6, 7), (9,)])
@pytest.mark.parametrize("file", ["images.parquet", "quarantine.parquet", "duplicates.parquet"])
def test_a_damaged_file_of_all_images_is_made_again_from_the_shards(stage, bad, file):
    write_shards(stage, bad=bad)
    counts = finish(stage)
    before = finished(stage)
    content = bytearray(stage.folder.read(file))
    content[len(content) // 2] ^= 255
    stage.folder.write(file, content)
    for _ in range(5):  # as a session does
        try:
            again = finish(stage)
        except DamagedFileError as error:
            name = error.location.removeprefix(stage.folder.uri + "/")
            stage.folder.delete(name)
            there = set((stage.folder / "features").names())
            write_shards(stage, bad=bad, only={f"part-{i:06d}.parquet" for i in range(3)} - there)
        else:
            break
    assert again == counts
    assert finished(stage) == before


def test_a_flipped_bit_in_a_shard_is_noticed_before_its_features_are_used(stage):
    write_shards(stage)
    name = "features/part-000001.parquet"
    content = stage.folder.read(name)
    for bit in np.random.default_rng(0).choice(8 * len(content), 200, replace=False).tolist():
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        stage.folder.write(name, flipped)
        with pytest.raises(DamagedFileError, match="part-000001"):
            finish(stage)
