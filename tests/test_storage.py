"""Files of a storage folder are whole or absent; what cannot be used is said."""

import pickle
import threading
from pathlib import Path

import pyarrow as pa
import pytest

from mmray.errors import InputError
from mmray.storage import open_storage


@pytest.fixture
def folder(tmp_path):
    return open_storage(str(tmp_path / "a run"))


def test_what_is_written_is_read_back(folder):
    folder.write("deep/er/x.bin", b"123")
    assert folder.read("deep/er/x.bin") == b"123"
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    folder.write_table("t.parquet", table)
    assert folder.read_table("t.parquet").equals(table)
    assert folder.read_table("t.parquet", ["b"]).column_names == ["b"]


def test_a_file_is_not_seen_before_it_is_whole(folder):
    with folder.writing("x.bin") as sink:
        sink.write(b"12")
        assert folder.names() == []
        assert not folder.has("x.bin")
    assert folder.names() == ["x.bin"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(folder):
    folder.write("x.bin", b"old")

    def fail_halfway():
        with folder.writing("x.bin") as sink:
            sink.write(b"half of the new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert folder.read("x.bin") == b"old"
    assert [path.name for path in Path(folder.uri).iterdir()] == ["x.bin"]


def test_names_are_sorted_and_leave_folders_and_hidden_files_out(folder):
    for name in ("b", "a", ".hidden", "sub/c"):
        folder.write(name, b"")
    assert folder.names() == ["a", "b"]
    assert (folder / "sub").names() == ["c"]
    assert (folder / "absent").names() == []


def test_many_writers_of_one_file_leave_one_of_their_versions(folder):
    versions = [bytes([i]) * 100_000 for i in range(8)]
    threads = [threading.Thread(target=folder.write, args=("x", data)) for data in versions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert folder.read("x") in versions
    assert [path.name for path in Path(folder.uri).iterdir()] == ["x"]


def test_a_folder_survives_a_trip_to_a_worker(folder):
    folder.write("x", b"1")
    assert pickle.loads(pickle.dumps(folder)).read("x") == b"1"


def test_a_uri_of_another_file_system_works_alike(tmp_path):
    folder = open_storage((tmp_path / "r").as_uri())
    folder.write("x", b"1")
    assert (tmp_path / "r" / "x").read_bytes() == b"1"
    assert folder.local == tmp_path / "r"


def test_odd_names_are_taken_as_they_are(tmp_path):
    folder = open_storage(str(tmp_path / "100% #1 ü?"))
    folder.write("x y%20.bin", b"1")
    assert (tmp_path / "100% #1 ü?" / "x y%20.bin").read_bytes() == b"1"


def test_a_relative_folder_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = open_storage("runs")
    assert folder.uri == str(tmp_path / "runs")


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda path: str(path / "file" / "runs"), "Not a directory|not a directory"),
        (lambda path: "nosuchscheme://x/y", "nosuchscheme"),
        (lambda path: "/proc/nowhere", "/proc/nowhere"),
    ],
)
def test_an_unwritable_storage_is_said_with_its_reason(tmp_path, make, reason):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=f"--storage .*{reason}.*choose a folder"):
        open_storage(make(tmp_path))
