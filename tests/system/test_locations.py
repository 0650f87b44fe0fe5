"""Files by path or URI: what they mean, how they are opened, what is tried again."""

import errno
import os
from pathlib import Path

import pyarrow as pa
import pytest

from mmray.system import locations
from mmray.system.errors import InputError
from mmray.system.locations import (
    error_line,
    is_uri,
    local_path,
    open_file,
    open_folder,
    read_bytes,
    resolve,
    uri_of,
    with_retries,
)

ODD_NAMES = [
    *("with space.jpg", "50%25.png", "a#b.JPG", "ü日.webp", "q?x=1&y.tif", "plus+[0].gif"),
    *("new\nline.jpg", "tab\t.png", "file:.jpg", "\u2028.jpg", " lead.jpg"),
]


def not_utf8(folder: Path) -> Path:
    path = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jpg"))
    try:
        path.write_bytes(b"latin")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return path


# What a path or URI means


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        *(("s3://b/x", True), ("file:///x", True), ("HTTPS://h", True), ("a+b-1.c://x", True)),
        *(("/a://b", False), ("a/b://c", False), ("c:/x", False), ("1s://x", False), ("", False)),
    ],
)
def test_a_uri_begins_with_a_scheme(text, expected):
    assert is_uri(text) is expected


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        *(("/a b/c%20.jpg", "/a b/c%20.jpg"), ("a.jpg", "a.jpg"), ("file:x", "file:x")),
        *(("file:///a%20b/%25.jpg", "/a b/%.jpg"), ("FILE:///a", "/a")),
        *(("file://localhost/a", "/a"), ("file:///a?x#y", "/a"), ("file:///a%0Ab", "/a\nb")),
        ("file:///ü", "/ü"),
    ],
)
def test_local_files_have_a_path(uri, path):
    assert local_path(uri) == Path(path)


@pytest.mark.parametrize("uri", ["s3://b/x", "file://host/x", "file://", "s3://[x"])
def test_remote_files_have_none(uri):
    assert local_path(uri) is None


def test_a_local_path_is_absolute_and_utf8_in_a_table(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert uri_of(Path("a b%.jpg")) == f"{tmp_path}/a b%.jpg"
    odd = Path(os.fsdecode(b"caf\xe9 1.jpg"))
    assert uri_of(odd) == f"{tmp_path.as_uri()}/caf%E9%201.jpg"
    assert local_path(uri_of(odd)) == tmp_path / odd


@pytest.mark.parametrize(
    ("uri", "name", "expected"),
    [
        ("/lists/l.txt", "a b%/c.jpg", "/lists/a b%/c.jpg"),
        ("/lists/l.txt", "./c.jpg", "/lists/c.jpg"),
        ("/lists/l.txt", "../c.jpg", "/lists/../c.jpg"),  # as ".." of a link is not of its path
        ("/lists/l.txt", "/c.jpg", "/c.jpg"),
        ("/lists/l.txt", "/x//y/./c.jpg", "/x/y/c.jpg"),
        ("/lists/l.txt", "s3://b/c.jpg", "s3://b/c.jpg"),
        ("s3://b/l.txt", "c.jpg", "s3://b/c.jpg"),
        ("s3://b/x%20y/l.txt?region=r", "a b#/c.jpg", "s3://b/x%20y/a%20b%23/c.jpg?region=r"),
        ("s3://b/x/l.txt", "./../y/c.jpg", "s3://b/y/c.jpg"),
        ("s3://b/x/l.txt", "/c.jpg", "/c.jpg"),
        # The options of the list are those of its bucket, and of no other.
        ("s3://k:s@b/l.txt?region=r", "S3://b/x/c.jpg", "s3://k:s@b/x/c.jpg?region=r"),
        ("s3://b/l.txt?scheme=http", "s3://b/c.jpg?region=x", "s3://b/c.jpg?region=x"),
        ("s3://k:s@b/l.txt?scheme=http", "s3://c/c.jpg", "s3://c/c.jpg"),
        ("s3://k:s@b/l.txt?scheme=http", "gs://b/c.jpg", "gs://b/c.jpg"),
        ("file:///caf%E9/l.txt", "a b.jpg", "file:///caf%E9/a%20b.jpg"),
    ],
)
def test_a_name_in_a_list_means_a_file_beside_it(uri, name, expected):
    assert resolve(uri, name) == expected


def test_a_name_beside_a_relative_list_is_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve("l.txt", "a.jpg") == f"{tmp_path}/a.jpg"


# Reading


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_are_read_by_path_and_by_uri(tmp_path, name):
    file = tmp_path / "my photos #1 100%41" / name
    file.parent.mkdir()
    file.write_bytes(name.encode())
    assert read_bytes(str(file)) == name.encode()
    assert read_bytes(uri_of(file)) == name.encode()
    assert read_bytes(file.as_uri()) == name.encode()


def test_a_name_that_is_not_utf8_is_read(tmp_path):
    assert read_bytes(uri_of(not_utf8(tmp_path))) == b"latin"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_of_remote_files_are_read(bucket, name):
    (bucket / name).write_bytes(name.encode())
    uri = resolve("s3://bucket/list.txt?region=x", f"./{name}")
    assert read_bytes(uri) == name.encode()


def test_an_opened_file_is_read_in_parts(bucket):
    (bucket / "a.bin").write_bytes(b"0123456789")
    for uri in (str(bucket / "a.bin"), "s3://bucket/a.bin"):
        with open_file(uri) as file:
            file.seek(4)
            assert file.read(3) == b"456"


@pytest.mark.parametrize("uri", ["{}/a.bin", "s3://bucket/a.bin"])
def test_the_limit_of_bytes_holds(bucket, uri):
    (bucket / "a.bin").write_bytes(b"12345")
    uri = uri.format(bucket)
    assert read_bytes(uri, limit=5) == b"12345"
    with pytest.raises(OSError, match="5 bytes, at most 4 are read") as caught:
        read_bytes(uri, limit=4)
    assert caught.value.errno == errno.EFBIG


@pytest.mark.parametrize(
    ("name", "number"),
    [("absent", errno.ENOENT), ("folder", errno.EISDIR), ("pipe", errno.EINVAL)],
)
def test_what_is_no_file_is_an_os_error_and_blocks_nothing(tmp_path, name, number):
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match=r"pipe|No such|Is a") as caught:
        read_bytes(str(tmp_path / name))
    assert caught.value.errno == number


def test_refused_files_are_closed(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0  # noqa: PTH208
    for _ in range(5):
        with pytest.raises(IsADirectoryError):
            open_file(str(tmp_path))
    after = len(os.listdir("/proc/self/fd")) if before else 0  # noqa: PTH208
    assert after == before


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("unknown://x/y", "only local files and files in buckets"),
        ("http://x/y.jpg", "only local files and files in buckets"),
        ("file://host/y", "a file:// URI is one of this machine"),
        ("s3:///y", "no bucket is named"),
        ("s3://[x/y", "Invalid IPv6"),
        ("/a\0b", "null byte"),
        ("file:///a%00b", "null byte"),
    ],
)
def test_what_no_file_can_be_is_an_os_error_at_once(monkeypatch, uri, message):
    monkeypatch.setattr(locations.time, "sleep", lambda seconds: pytest.fail("it was tried again"))
    with pytest.raises(OSError, match=message) as caught:
        read_bytes(uri)
    assert caught.value.errno == errno.EINVAL


def test_what_arrow_refuses_is_an_os_error(monkeypatch):
    class Refusing:
        def open_input_file(self, path: str) -> None:
            raise pa.ArrowInvalid(f"Empty path component in path {path}")

    monkeypatch.setattr(locations, "open_folder", lambda uri: (Refusing(), "b/a/"))
    with pytest.raises(OSError, match=r"Empty path component in path b/a//c\.jpg"):
        open_file("s3://b/a//c.jpg")


# File systems


@pytest.mark.parametrize(
    ("uri", "path"),
    [
        *(("s3://b", "b"), ("s3://b/", "b"), ("s3://b/x%20y/z/", "b/x y/z")),
        *(("s3://b/two words", "b/two words"), ("s3://key:secret@b/x", "b/x")),
    ],
)
def test_a_folder_of_a_bucket_is_a_path_in_its_file_system(monkeypatch, uri, path):
    opened = []

    def from_uri(uri: str) -> tuple[str, str]:
        opened.append(uri)
        return "file system", "b"

    monkeypatch.setattr(locations.fs, "FileSystem", type("", (), {"from_uri": from_uri}))
    locations._connect.cache_clear()
    assert open_folder(f"{uri}?region=r") == ("file system", path)
    assert opened == [f"s3://{uri[5:].partition('/')[0]}?region=r"]
    locations._connect.cache_clear()


def test_one_client_serves_all_folders_of_a_bucket_but_no_other():
    uri = "gs://anonymous@{}/{}?retry_limit_seconds={}"
    first = open_folder(uri.format("b", "x", 1))[0]
    assert open_folder(uri.format("b", "y/z", 1))[0] is first
    assert open_folder(uri.format("c", "x", 1))[0] is not first
    assert open_folder(uri.format("b", "x", 2))[0] is not first


@pytest.mark.parametrize(
    "uri",
    [
        *("abfs://c@account/x", "ABFSS://c@account/x", "hdfs://host/x", "viewfs://host/x"),
        *("mock:///a/b/", "https://host/x", "http://host/x", "ftp://host/x", "a+b://x"),
    ],
)
def test_no_other_file_system_is_opened(monkeypatch, uri):
    def from_uri(uri: str) -> None:
        pytest.fail(f"{uri} was opened")

    monkeypatch.setattr(locations.fs, "FileSystem", type("", (), {"from_uri": from_uri}))
    for opened in (open_folder, open_file, read_bytes, locations.open_remote):
        with pytest.raises(InputError, match=r"only local files and files in buckets \(s3"):
            opened(uri)


@pytest.mark.parametrize("scheme", ["file", "FILE", "File"])
def test_the_scheme_of_a_local_file_is_read_in_any_case(tmp_path, scheme):
    (tmp_path / "a b.jpg").write_bytes(b"x")
    uri = f"{scheme}://{tmp_path}/a%20b.jpg"
    assert read_bytes(uri) == b"x"
    filesystem, path = open_folder(f"{scheme}://{tmp_path}/")
    assert (filesystem.type_name, path) == ("local", str(tmp_path))


def test_the_scheme_of_a_bucket_is_read_in_any_case():
    uri = "gs://anonymous@b/x?retry_limit_seconds=1"
    assert open_folder(uri.replace("gs:", "GS:"))[0] is open_folder(uri)[0]
    assert locations.absolute("S3://Bucket/X") == "s3://Bucket/X"


# Patience


class Flaky:
    def __init__(self, *errors: Exception) -> None:
        self.errors, self.calls = list(errors), 0

    def __call__(self) -> str:
        self.calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "content"


@pytest.fixture
def pauses(monkeypatch):
    slept: list[float] = []
    monkeypatch.setattr(locations.time, "sleep", slept.append)
    return slept


def test_a_remote_file_is_tried_three_times_with_pauses(pauses):
    read = Flaky(OSError("reset"), TimeoutError("slow"))
    assert with_retries(read, "s3://b/x") == "content"
    assert pauses == list(locations.PAUSES)
    read = Flaky(*[OSError(f"reset {number}") for number in range(5)])
    with pytest.raises(OSError, match="reset 2"):
        with_retries(read, "s3://b/x")
    assert read.calls == 3


@pytest.mark.parametrize(
    "error",
    [
        *(FileNotFoundError("x"), PermissionError("x"), IsADirectoryError("x")),
        *(OSError(errno.EFBIG, "x"), OSError(errno.EINVAL, "x"), ValueError("x")),
    ],
)
def test_what_lasts_is_not_tried_again(pauses, error):
    read = Flaky(error)
    with pytest.raises(type(error)):
        with_retries(read, "s3://b/x")
    assert (read.calls, pauses) == (1, [])


def test_a_local_file_is_tried_once(pauses):
    read = Flaky(OSError("Input/output error"))
    with pytest.raises(OSError, match="Input/output"):
        with_retries(read, "/a.jpg")
    assert (read.calls, pauses) == (1, [])


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError(2, "No such file", "/a/b.jpg"), "FileNotFoundError: No such file"),
        (ValueError("two\n  lines"), "ValueError: two lines"),
        (OSError("plain"), "OSError: plain"),
    ],
)
def test_a_reason_is_one_line_without_the_name(error, text):
    assert error_line(error) == text


def test_a_name_is_opened_in_the_form_of_unicode_that_it_has_on_the_disk(tmp_path):
    composed, decomposed = "caf\u00e9", "cafe\u0301"
    file = tmp_path / composed / "u\u0308ber" / f"{decomposed}.jpg"  # as copied from a Mac
    file.parent.mkdir(parents=True)
    file.write_bytes(b"photo")
    if (tmp_path / decomposed).exists():
        pytest.skip("this file system takes both forms for one name")
    for name in (
        f"{composed}/\u00fcber/{composed}.jpg",
        f"{decomposed}/\u00fcber/{decomposed}.jpg",
    ):
        assert read_bytes(str(tmp_path / name)) == b"photo"
        assert read_bytes((tmp_path / name).as_uri()) == b"photo"
    with pytest.raises(FileNotFoundError, match="\u00e9\\.png"):
        read_bytes(str(tmp_path / f"{composed}.png"))
