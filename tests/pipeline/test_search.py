"""A query reads an index that is being updated once more, and says what is missing of one."""

import shutil

import pytest

from mmray.config.tools import QueryConfig
from mmray.pipeline.named_indexes import set_current_index
from mmray.pipeline.recipes import search
from mmray.pipeline.stage import StageFolder
from mmray.system.errors import InputError
from mmray.system.folder import Folder


def index_of(storage, mark):
    stage = StageFolder.of(storage, "index", mark)
    stage.folder.write("vectors.npy", mark.encode())
    stage.finish({})
    return stage


@pytest.fixture
def storage(tmp_path):
    return Folder(str(tmp_path))


def opened(storage, monkeypatch, between):
    """Open an index for a query; something happens between finding the index and reading it."""
    read = []

    def reading(stage, config):
        if not read:
            between()
        read.append(stage.fingerprint)
        return stage.folder.read("vectors.npy"), None

    monkeypatch.setattr(search, "_read", reading)
    config = QueryConfig(query=("x",), storage=storage.uri, name="images")
    return search.opened_index(storage, config)[0], read


def test_an_index_that_was_updated_meanwhile_is_read_once_more(storage, monkeypatch):
    old, new = index_of(storage, "old"), index_of(storage, "new")
    set_current_index(storage, "images", old)

    def update():
        set_current_index(storage, "images", new)
        old.folder.remove()

    found, read = opened(storage, monkeypatch, update)
    assert (found, read) == (b"new", [old.fingerprint, new.fingerprint])


def test_an_index_whose_files_are_gone_is_said_to_be_without_them(storage, monkeypatch):
    old = index_of(storage, "old")
    set_current_index(storage, "images", old)
    with pytest.raises(InputError, match=r"--name images: files are missing .*makes them anew"):
        opened(storage, monkeypatch, lambda: shutil.rmtree(old.folder.local))
