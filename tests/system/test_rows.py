"""Rows read in parts: of arrays, of local files and of remote ones."""

from types import SimpleNamespace

import numpy as np
import pytest

from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.rows import RemoteMatrix, Rows, StoredMatrix
from tests.made.synthetic import clouds


@pytest.fixture(params=["array", "local", "remote"])
def rows(request, tmp_path, monkeypatch):
    features = clouds(0, 500, 6)
    if request.param == "array":
        return Rows(lambda: features), features
    stored = Rows(lambda: features).stored(Folder(str(tmp_path)), "rows.npy")
    if request.param == "remote":
        monkeypatch.setattr(Folder, "local", None)
        assert isinstance(stored.open(), RemoteMatrix)
    return stored, features


def test_parts_and_chosen_rows_are_those_of_the_array(rows, monkeypatch):
    monkeypatch.setattr("mmray.system.rows._READ_AT_ONCE", 24 * 100)
    given, features = rows
    assert (given.shape, len(given)) == ((500, 6), 500)
    np.testing.assert_array_equal(given.read(), features)
    np.testing.assert_array_equal(given.read(17, 240), features[17:240])
    np.testing.assert_array_equal(given.read(490), features[490:])
    some = np.array([0, 3, 99, 100, 101, 350, 499])
    np.testing.assert_array_equal(given.take(some), features[some])
    kept = given.only(some)
    assert kept.shape == (7, 6)
    np.testing.assert_array_equal(kept.read(1, 4), features[some[1:4]])
    np.testing.assert_array_equal(kept.take(np.array([2, 6])), features[[99, 499]])
    np.testing.assert_array_equal(kept.only(np.array([4])).read(), features[[101]])
    assert kept.take(np.array([], np.int64)).shape == (0, 6)


def test_rows_that_are_stored_are_not_written_again(tmp_path):
    folder = Folder(str(tmp_path))
    stored = Rows(lambda: clouds(0, 9, 3)).stored(folder, "rows.npy")
    assert stored.stored(folder, "other.npy") is stored
    again = Rows(lambda: pytest.fail("written before")).stored(folder, "rows.npy")
    assert again.shape == (9, 3)
    assert folder.names() == ["rows.npy"]


@pytest.mark.parametrize("large", [False, True])
def test_all_rows_are_mapped_where_they_are_large(rows, large, monkeypatch, tmp_path):
    monkeypatch.setattr("mmray.system.rows._IN_MEMORY", 0 if large else 4 * 500 * 6)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    (given, features), some = rows, np.arange(1, 500, 3)
    for each, expected in ((given, features), (given.only(some), features[some])):
        found = each.mapped()
        np.testing.assert_array_equal(found, expected)
        copied = large and (each is not given or isinstance(given.open(), RemoteMatrix))
        if copied:
            assert isinstance(found, np.memmap)
            assert not found.flags.writeable
    assert not list((tmp_path / "temporary").iterdir())


def test_a_copy_without_room_is_refused(monkeypatch):
    monkeypatch.setattr("mmray.system.rows._IN_MEMORY", 0)
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=100))
    given = Rows(lambda: clouds(0, 9, 3)).only(np.arange(9))
    with pytest.raises(InputError, match=r"does not fit into the 0.0 GB that are free.*TMPDIR"):
        given.mapped()


def test_a_remote_file_of_something_else_is_refused(tmp_path):
    np.save(tmp_path / "ids.npy", np.arange(3))
    with pytest.raises(ValueError, match=r"ids.npy: not rows of float32"):
        RemoteMatrix(Folder(str(tmp_path)), "ids.npy")


def test_what_is_stored_can_be_opened_elsewhere(tmp_path):
    np.save(tmp_path / "rows.npy", clouds(0, 9, 3))
    opened = StoredMatrix(Folder(str(tmp_path)), "rows.npy")()
    assert isinstance(opened, np.memmap)
