"""Images mapped from Arrow files: each is compared with its digest, whatever was changed."""

import pickle
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from mmray.images.pixel_shards import PixelShards, arrow_file, pixel_table
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder

SHAPES = [(4, 6), (1, 1), (6, 4), (9, 2), (5, 5)]


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES]


@pytest.fixture
def stored(images, tmp_path):
    folder = Folder(str(tmp_path))
    folder.write("a.arrow", arrow_file(pixel_table(images[:3])))
    folder.write("b.arrow", arrow_file(pixel_table(images[3:])))
    return PixelShards(folder, {"a.arrow": 3, "b.arrow": 2})


def test_images_are_views_of_the_files_in_their_order(stored, images):
    for found in (stored, pickle.loads(pickle.dumps(stored))):
        assert len(found) == 5
        for one, other in zip(found, images, strict=True):
            np.testing.assert_array_equal(one, other, strict=True)
            assert not one.flags.writeable
        np.testing.assert_array_equal(found[-1], images[4])
        assert [image.shape for image in found[1:4]] == [image.shape for image in images[1:4]]
    with pytest.raises(IndexError):
        stored[5]


def read_all(stored):
    return list(PixelShards(stored.folder, stored.counts))


def test_no_changed_byte_goes_unnoticed(stored, images, tmp_path):
    """Change each byte of a file: reading fails, unless the byte lies between the data."""
    file, noticed = tmp_path / "b.arrow", 0
    content = file.read_bytes()
    pixels = [image.tobytes() for image in images]
    inside = [content.index(each) for each in pixels[3:]]
    for place in range(0, len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        try:
            found = read_all(stored)
        except DamagedFileError:
            noticed += 1
        else:
            assert [image.tobytes() for image in found] == pixels
            assert [image.shape for image in found] == [image.shape for image in images]
            assert not any(p <= place < p + len(q) for p, q in zip(inside, pixels[3:], strict=True))
    assert noticed > sum(map(len, pixels[3:]))


@pytest.mark.parametrize("size", [0, 7, 300, -1, -300])
def test_a_file_that_was_cut_is_damaged(stored, tmp_path, size):
    file = tmp_path / "a.arrow"
    file.write_bytes(file.read_bytes()[:size])
    with pytest.raises(DamagedFileError, match=r"a\.arrow: this file is damaged"):
        read_all(stored)


def test_a_file_that_is_gone_or_something_else_is_damaged(stored, tmp_path):
    (tmp_path / "a.arrow").unlink()
    with pytest.raises(DamagedFileError, match="No such file"):
        read_all(stored)
    stored.folder.write("a.arrow", arrow_file(pa.table({"pixels": [b"abc"]})))
    with pytest.raises(DamagedFileError, match="no shard of images"):
        read_all(stored)


def test_a_large_copy_is_said_before_it_begins(stored, images, tmp_path, monkeypatch, capsys):
    near = stored.copied(tmp_path / "near")
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("mmray.images.pixel_shards._SAID_FROM", 1)
    stored.copied(tmp_path / "near")  # nothing is left to copy
    assert capsys.readouterr().err == ""
    stored.copied(tmp_path / "other")
    assert capsys.readouterr().err.startswith("images: 0.0 GB for training are copied to ")
    for one, other in zip(near, images, strict=True):
        np.testing.assert_array_equal(one, other)


def test_what_is_damaged_in_a_copy_is_named_as_its_original_and_copied_again(
    stored, images, tmp_path
):
    near = stored.copied(tmp_path / "near")
    file = tmp_path / "near" / "b.arrow"
    file.write_bytes(file.read_bytes().replace(images[-1].tobytes(), bytes(images[-1].nbytes)))
    with pytest.raises(DamagedFileError) as caught:
        list(near)
    assert caught.value.location == str(tmp_path / "b.arrow")
    for one, other in zip(stored.copied(tmp_path / "near"), images, strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_copy_without_room_is_refused(stored, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    with pytest.raises(InputError, match=r"near: no room for a copy of 0.0 GB .* TMPDIR"):
        stored.copied(tmp_path / "near")
