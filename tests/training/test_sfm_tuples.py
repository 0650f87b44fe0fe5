"""The published training tuples are read as they lie, and what is wrong with them is named."""

import pickle
import re
from pathlib import Path

import numpy as np
import pytest

from mmray.images.decoding import load_image
from mmray.system.errors import InputError
from mmray.training.supervised.sfm_tuples import read_sfm_tuples
from tests.made import sfm

CLUSTERS = [5, 5, 9, 9, 9, -1]
PAIRS = [(0, 1), (2, 3), (2, 4)]


@pytest.fixture
def published(tmp_path: Path) -> Path:
    """A folder with ims/, where the images are, and the file of tuples."""
    for row in [*range(6), 900, 901]:
        sfm.place(tmp_path / "ims", sfm.cid(row)).write_bytes(b"x" * (row + 1))
    content = {"train": sfm.part(CLUSTERS, PAIRS), "val": sfm.part([3, 4], [(1, 0)], 900)}
    sfm.save(tmp_path, content)
    return tmp_path


def read(folder: Path, split: str = "train"):
    return read_sfm_tuples(str(folder / "retrieval-SfM-tiny.pkl"), str(folder / "ims"), split)


def refused(folder: Path, **changes: object) -> str:
    """What is said of a file whose part has these changes; None: without it."""
    content = sfm.part(CLUSTERS, PAIRS) | changes
    sfm.save(folder, {"train": {k: v for k, v in content.items() if v is not None}})
    with pytest.raises(InputError) as error:
        read(folder)
    return str(error.value).removeprefix(str(folder))


def test_images_clusters_and_pairs_are_those_of_the_file(published):
    found = read(published)
    columns = (found.pairs.queries, found.pairs.positives, found.pairs.clusters)
    queries, positives, clusters = (ids.tolist() for ids in columns)
    assert clusters == CLUSTERS
    assert list(zip(queries, positives, strict=True)) == PAIRS
    assert {ids.dtype for ids in columns} == {np.dtype(np.int64)}
    assert [image.size for image in found.images] == [1, 2, 3, 4, 5, 6]
    name = sfm.cid(3)
    assert found.images[3].name == f"{name[-2:]}/{name[-4:-2]}/{name[-6:-4]}/{name}"
    assert found.images[3].uri == str(published / "ims" / found.images[3].name)
    assert found.file == str(published / "retrieval-SfM-tiny.pkl")


def test_the_other_part_can_be_read_too(published):
    found = read(published, "val")
    assert [image.size for image in found.images] == [901, 902]
    assert (found.pairs.queries.tolist(), found.pairs.positives.tolist()) == ([1], [0])


def test_arrays_are_read_as_lists(published):
    expected = read(published)
    content = {k: np.array(v) for k, v in sfm.part(CLUSTERS, PAIRS).items() if k != "cids"}
    content["cids"] = [sfm.cid(row) for row in range(6)]
    sfm.save(published, {"train": content})
    found = read(published)
    for name in ("clusters", "queries", "positives"):
        np.testing.assert_array_equal(getattr(found.pairs, name), getattr(expected.pairs, name))


def test_images_without_a_suffix_are_decoded(tmp_path):
    sfm.save_miniature(tmp_path, clusters=2, images=2)
    for image in read(tmp_path).images:
        assert load_image(image, longest_side=32).pixels.shape == (24, 32, 3)


def test_images_behind_a_uri_are_found(bucket, tmp_path):
    for row in range(6):
        sfm.place(bucket / "ims", sfm.cid(row)).write_bytes(b"x" * (row + 1))
    (bucket / "t.pkl").write_bytes(pickle.dumps({"train": sfm.part(CLUSTERS, PAIRS)}))
    found = read_sfm_tuples("s3://bucket/t.pkl", "s3://bucket/ims/")
    assert [image.size for image in found.images] == [1, 2, 3, 4, 5, 6]
    assert found.images[2].uri == f"s3://bucket/ims/{found.images[2].name}"


def test_missing_images_are_counted_and_the_first_is_named(published):
    for row in (4, 2):
        sfm.place(published / "ims", sfm.cid(row)).unlink()
    where = sfm.place(published / "ims", sfm.cid(2))
    message = f"{where}: missing, as are 2 of the 6 images of .*--images"
    with pytest.raises(InputError, match=message):
        read(published)
    assert len(read(published, "val").images) == 2  # which needs none of them


def test_an_image_that_is_a_link_to_nowhere_says_so(published):
    where = sfm.place(published / "ims", sfm.cid(5))
    where.unlink()
    where.symlink_to("nowhere")
    with pytest.raises(InputError, match=f"{where}: FileNotFoundError.*, as are 1 of the 6"):
        read(published)


def test_a_folder_of_other_images_is_refused(published):
    file = str(published / "retrieval-SfM-tiny.pkl")
    with pytest.raises(InputError, match=r"missing, as are 6 of the 6 images.*`ims`"):
        read_sfm_tuples(file, str(published))
    with pytest.raises(InputError, match="elsewhere: no such file or folder"):
        read_sfm_tuples(file, str(published / "elsewhere"))
    with pytest.raises(InputError, match="this is a file; give the folder"):
        read_sfm_tuples(file, file)


def test_a_file_that_cannot_be_read_names_the_flag(tmp_path):
    for name, reason in (("none.pkl", "FileNotFoundError"), ("", "IsADirectoryError")):
        with pytest.raises(InputError, match=f"--tuples .*{name}: cannot be read .{reason}"):
            read_sfm_tuples(str(tmp_path / name), str(tmp_path))


def test_a_file_that_is_no_pickle_of_plain_data_is_refused(tmp_path):
    file = tmp_path / "t.pkl"
    whole = pickle.dumps({"train": sfm.part(CLUSTERS, PAIRS)})
    for data in (b"", b"no pickle", whole[: len(whole) // 2], pickle.dumps(re.compile("x"))):
        file.write_bytes(data)
        with pytest.raises(InputError, match=r"t\.pkl: not a pickle of plain containers"):
            read_sfm_tuples(str(file), str(tmp_path))


@pytest.mark.parametrize("content", [[], {}, {"val": {}}, {"train": []}, "train"])
def test_content_without_the_part_is_refused(tmp_path, content):
    sfm.save(tmp_path, content)
    with pytest.raises(InputError, match="no part 'train'; this is no file of retrieval-SfM tup"):
        read(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cids": None}, "no list 'cids'"),
        ({"cluster": {}}, "no list 'cluster'"),
        ({"pidxs": None}, "no list 'pidxs'"),
        ({"cids": [sfm.cid(0), 7]}, "cids[1] is 7, not the id of an image"),
        ({"cids": ["../../../../etc/passwd"]}, "cids[0] is '../../../../etc/passwd', not the id"),
        ({"cids": ["abcde"]}, "cids[0] is 'abcde', not the id of an image"),
        ({"cluster": [1, 2, 3]}, "3 cluster, but 6 cids"),
        ({"cluster": [1, 2, 3, None, 5, 6]}, "cluster[3] is None, not a number"),
        ({"cluster": [1, 2, 3, 10**30, 5, 6]}, "cluster[3] is 1000000000000000000000000000000,"),
        ({"qidxs": [0, 6, 2]}, "qidxs[1] is 6, not a number from 0 to 5"),
        ({"pidxs": [1, 3, -1]}, "pidxs[2] is -1, not a number from 0 to 5"),
        ({"pidxs": [1, 3, 2.0]}, "pidxs[2] is 2.0, not a number from 0 to 5"),
        ({"pidxs": [1, 3, True]}, "pidxs[2] is True, not a number from 0 to 5"),
        ({"pidxs": [1, 3]}, "2 pidxs, but 3 qidxs"),
        ({"qidxs": [], "pidxs": []}, "it needs a pair and images of two clusters at least"),
        ({"cluster": [4] * 6}, "it needs a pair and images of two clusters at least"),
        ({"cids": [], "cluster": [], "qidxs": [], "pidxs": []}, "it needs a pair and images of"),
    ],
)
def test_damage_is_named_by_its_place(published, changes, message):
    said = refused(published, **changes)
    assert said.startswith(f"/retrieval-SfM-tiny.pkl: train: {message}")
    assert said.endswith("this is no file of retrieval-SfM tuples, or a damaged one")
