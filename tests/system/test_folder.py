"""Files of a storage folder are whole or absent; what cannot be used is said."""

import errno
import os
import pickle
import resource
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mmray.system import formats
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder, open_storage


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


def test_a_table_may_be_laid_out_for_how_it_is_read(folder):
    table = pa.table({"a": [1, 2, 3]})
    folder.write_table("plain.parquet", table)
    folder.write_table("t.parquet", table, row_group_size=2, compression="none")
    assert folder.read_table("t.parquet").equals(table)
    groups = [pq.ParquetFile(Path(folder.uri) / name).metadata for name in folder.names()]
    assert [group.num_row_groups for group in groups] == [1, 2]
    assert groups[1].row_group(0).column(0).compression == "UNCOMPRESSED"


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


def test_a_full_disk_is_said_and_nothing_half_written_is_left(folder):
    def fill():
        with folder.writing("x.bin") as sink:
            sink.write(b"half of the new")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    folder.write("x.bin", b"old")
    with pytest.raises(InputError, match=r"x\.bin: cannot be written \(No space left on device\)"):
        fill()
    assert folder.read("x.bin") == b"old"
    assert [path.name for path in Path(folder.uri).iterdir()] == ["x.bin"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_table_that_finds_no_room_is_said(folder, monkeypatch):
    """The system itself refuses the bytes: /dev/full stands for the unfinished file."""
    opened = Path.open

    def full(path, mode="r", *args, **kwargs):
        if ".part-" not in path.name:
            return opened(path, mode, *args, **kwargs)
        return opened(Path("/dev/full"), mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match="No space left on device"):
        folder.write_table("t.parquet", pa.table({"a": list(range(100_000))}))
    assert folder.names() == []


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


def test_options_of_a_uri_stay_behind_the_names_of_its_files():
    folder = Folder("s3://b/runs/?region=r&scheme=http") / "train" / "epoch-1"
    assert folder.uri == "s3://b/runs/train/epoch-1?region=r&scheme=http"
    assert folder.location("x.bin") == "s3://b/runs/train/epoch-1/x.bin?region=r&scheme=http"
    assert Folder("s3://b/runs").location("x.bin") == "s3://b/runs/x.bin"
    assert Folder("/runs ?1").location("x.bin") == "/runs ?1/x.bin"


def test_a_bucket_with_options_is_read_and_written(s3):
    folder = open_storage(f"s3://options/runs{s3}&allow_bucket_creation=true") / "deep"
    folder.write("x y.bin", b"123")
    folder.write_table("t.parquet", pa.table({"a": [1]}))
    assert folder.read("x y.bin") == b"123"
    assert folder.names() == ["t.parquet", "x y.bin"]


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


def test_a_storage_whose_name_is_not_utf_8_is_refused_before_it_is_made(tmp_path):
    with pytest.raises(InputError, match=r"--storage .*; set PYTHONUTF8=1, or choose another name"):
        open_storage(f"{tmp_path}/L\udcc3\udca4ufe")
    assert not any(tmp_path.iterdir())


def test_a_reader_keeps_the_file_that_it_opened(tmp_path):
    """A file is replaced, not written over: who reads it meanwhile never meets half of each."""
    folder = Folder(str(tmp_path))
    folder.write("part.bin", b"old" * 1000)
    with (tmp_path / "part.bin").open("rb") as reader:
        folder.write("part.bin", b"new")
        assert reader.read() == b"old" * 1000
    assert folder.read("part.bin") == b"new"


@pytest.fixture
def small_disk():
    """The system refuses to write more than 64 kB to a file, as a full disk would."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65_536, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


_ROWS = np.zeros((1000, 100))


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: formats.write_array(folder, "x", _ROWS),
        lambda folder: folder.write("x", _ROWS.tobytes()),
        lambda folder: formats.write_json(folder, "x", [0] * 100_000),
        lambda folder: folder.write_table("x", pa.table({"a": np.random.rand(20_000)})),
    ],
    ids=["array", "bytes", "json", "table"],
)
def test_whatever_finds_no_room_is_said_in_one_sentence(folder, small_disk, write):
    with pytest.raises(InputError, match=r"cannot be written \(File too large\); make room, then"):
        write(folder)
    assert [*Path(folder.uri).iterdir()] == []


def test_a_folder_that_finds_no_room_is_said_too(folder, monkeypatch):
    def full(path, *args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises(InputError, match=r"sub/x: cannot be written \(No space left on device\)"):
        (folder / "sub").write("x", b"")


def test_a_disk_that_is_full_is_noticed_at_the_start(tmp_path, monkeypatch):
    opened = Path.open

    def full(path, mode="r", *args, **kwargs):
        return opened(Path("/dev/full") if "w" in mode else path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(InputError, match=r"No space left on device.*make room"):
        open_storage(str(tmp_path / "runs"))


def test_file_and_folder_are_synced_before_and_after_the_file_gets_its_name(folder, monkeypatch):
    steps = []
    fsync, replace = os.fsync, Path.replace

    def synced(handle):
        steps.append(Path(f"/proc/self/fd/{handle}").readlink().name.partition(".part")[0])
        fsync(handle)

    def renamed(path, target):
        steps.append("renamed")
        replace(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", renamed)
    folder.write("sub/x", b"1")
    assert steps == ["a run", ".x", "renamed", "sub"]


def header(text):
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(64)


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"\xff", b"[1, 2", b"[" * 100_000),
        *map(header, ("(((", "1" + "*1" * 3000, "{b'descr': '<f4', 'shape': ()}")),
        header("{'descr': '<f4', 'fortran_order': False, 'shape': (True, 4), }"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_named_as_damaged(folder, content):
    folder.write("x", content)
    for read in (formats.read_json, formats.read_array, Folder.read_table):
        with pytest.raises(DamagedFileError, match="x: this file is damaged"):
            read(folder, "x")


def test_an_array_that_was_cut_is_not_mapped(folder):
    formats.write_array(folder, "x", _ROWS)
    folder.write("x", folder.read("x")[:-1])
    with pytest.raises(DamagedFileError, match="x: this file is damaged"):
        formats.read_array(folder, "x")
