"""What is given as images: folders, single files and lists, local and remote, and their changes."""

import dataclasses
import errno
import inspect
import json
import os
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import fs

from mmray.images import folders, sources
from mmray.images.collection import ImageFile
from mmray.images.sources import SourceListing, Stamp, find, list_images, probe, unchanged
from mmray.system import locations
from mmray.system.errors import InputError
from mmray.system.locations import read_bytes

ODD_NAMES = [
    *("with space.jpg", "50%25.png", "a#b.JPG", "ü/é日本.webp", "q?x=1&y.tif", "plus+[0].gif"),
    *("new\nline.jpg", "x/ .bmp", "a\u2028b.jpeg"),
]


def touch(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def write_table(file: Path, /, **columns: object) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


def write_list(path: Path, *lines: str) -> Path:
    return touch(path, "\n".join(lines).encode())


def names(found: SourceListing) -> list[str]:
    return [image.name for image in found.images]


def refusal(source: object, column: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        find(str(source), column=column)
    return str(caught.value)


def probed(source: object, column: str | None = None) -> str:
    with pytest.raises(InputError) as caught:
        probe(str(source), column=column)
    return str(caught.value)


def refused_alike(source: object, column: str | None = None) -> str:
    """What both `find` and `probe` say."""
    assert probed(source, column) == refusal(source, column)
    return refusal(source, column)


# Folders


def test_a_folder_is_listed_recursively_sorted_and_with_sizes(tmp_path):
    for name in ["b/z.jpeg", "b/a.PNG", "a.txt", "c.bmp", "B.tiff", "b.jpg", "jpg", "x.jpg.zip"]:
        touch(tmp_path / name)
    touch(tmp_path / "a.webp", b"four")
    touch(tmp_path / "folder.jpg" / "d.gif")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = find(str(tmp_path))
    expected = ["B.tiff", "a.webp", "b.jpg", "b/a.PNG", "b/z.jpeg", "c.bmp", "folder.jpg/d.gif"]
    assert names(found) == expected
    assert [image.size for image in found.images] == [1, 4, 1, 1, 1, 1, 1]
    assert [image.uri for image in found.images] == [str(tmp_path / name) for name in expected]
    assert found.containers == ()
    left = "1 .txt, 1 .zip, 1 special file, 1 without suffix"
    assert found.summary == f"{tmp_path}: 7 image files; left out: {left}"


def test_more_files_than_are_held_at_a_time_stay_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_BLOCK", 7)
    for number in range(23):
        touch(tmp_path / str(number % 3) / f"{number:02}.jpg")
    found = find(str(tmp_path))
    assert len(found.images) == 23
    assert names(found) == sorted(names(found))


def test_names_sort_as_python_sorts_them(tmp_path):
    listed = [
        "Z.jpg",
        "a.jpg",
        "a/b.jpg",
        "a b.jpg",
        "é.jpg",
        "日.jpg",
        "\U0001f600.jpg",
        "\uff5e.jpg",
    ]
    for name in listed:
        touch(tmp_path / name)
    assert names(find(str(tmp_path))) == sorted(listed)


def test_hidden_files_and_folders_are_skipped(tmp_path):
    for name in ["a.jpg", ".b.jpg", "._c.jpg", ".cache/d.jpg", "e/.f/g.jpg", ".h.tar"]:
        touch(tmp_path / name)
    found = find(str(tmp_path))
    assert names(found) == ["a.jpg"]
    assert found.containers == ()
    assert found.left_out == {"hidden file": 3, "hidden folder": 2}


LEFT = {
    ".mov": ["a.mov", "b/c.MOV", "b/d.Mov"],
    ".cr2": ["a.CR2", "b/x.y.cr2"],
    ".zip": ["more.zip"],
    ".db": ["Thumbs.db"],
    "without suffix": ["README", "b/Mr. Smith at the sea", "b/ends.", "b/x.jpg\n"],
    "hidden file": [".DS_Store", "b/._a.jpg"],
    "hidden folder": [".git/a.jpg", ".git/b/c.jpg", "b/.thumbs/a.jpg"],
    "@eaDir folder": ["@eaDir/a.jpg/SYNOPHOTO_THUMB_M.jpg", "b/@eaDir/b.jpg/x.jpg", "@EADIR/c"],
    "__MACOSX folder": ["__MACOSX/b/._a.jpg", "__MACOSX/c.jpg"],
}
LEFT_COUNTS = {kind: len(files) for kind, files in LEFT.items()}
LEFT_COUNTS |= {"hidden folder": 2, "__MACOSX folder": 1}  # a folder counts once
PHOTOS = ["a.jfif", "b/b.JPE", "b/c.Mpo", "c.avif", "d.HEIC", "e.heif", "f.hif", "g.jpg"]


def test_what_is_left_out_of_a_folder_is_counted_by_suffix(tmp_path, bucket):
    for root in (tmp_path / "photos", bucket / "photos"):
        for group in (*LEFT.values(), PHOTOS):
            for name in group:
                touch(root / name)
    for source in (str(tmp_path / "photos"), "s3://bucket/photos"):
        found = find(source)
        assert names(found) == PHOTOS
        assert found.left_out == LEFT_COUNTS
        assert found.summary == (
            f"{source}: 8 image files; left out: 4 without suffix, 3 .mov, 3 @eaDir folders, "
            "2 .cr2, 2 hidden files, 2 hidden folders, 1 .db, 1 .zip, 1 __MACOSX folder"
        )


def test_parquet_beside_images_is_in_the_counts(tmp_path):
    for name in ("a.jpg", "labels.parquet", "b.mov"):
        touch(tmp_path / name)
    found = find(str(tmp_path))
    assert found.left_out == {".parquet": 1, ".mov": 1}
    assert found.summary.endswith(
        ": 1 image file, 1 Parquet file beside them, left out; left out: 1 .mov"
    )


def test_a_folder_of_other_files_alone_is_refused_with_what_it_holds(tmp_path):
    for name in ("a.cr2", "b.cr2", ".c.jpg"):
        touch(tmp_path / name)
    assert refused_alike(tmp_path).endswith(" .tar, .parquet; it holds 2 .cr2, 1 hidden file)")


def test_the_parts_of_a_set_are_in_the_order_of_their_numbers(tmp_path, bucket):
    parts = [f"x/part.{number}.{kind}" for number in (0, 1, 2, 9, 10, 11) for kind in ("tar",)]
    parts = ["part.10.b.tar", *parts, "x/part.011.tar", "x/part.x.tar"]
    for root in (tmp_path / "set", bucket / "set"):
        for part in reversed(parts):
            touch(root / part)
    order = [parts[0], *parts[1:6], "x/part.011.tar", "x/part.11.tar", "x/part.x.tar"]
    assert find(str(tmp_path / "set")).containers == tuple(f"{tmp_path}/set/{p}" for p in order)
    assert find("s3://bucket/set").containers == tuple(f"s3://bucket/set/{p}" for p in order)
    # Photos are by their names as they have always been, or their ids would change.
    for name in ("2.jpg", "10.jpg"):
        touch(tmp_path / "photos" / name)
    assert names(find(str(tmp_path / "photos"))) == ["10.jpg", "2.jpg"]


def test_a_listed_folder_may_itself_be_hidden(tmp_path):
    touch(tmp_path / ".photos" / "a.jpg")
    assert names(find(f"{tmp_path}/.photos/")) == ["a.jpg"]


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "elsewhere" / "a.jpg", b"data")
    root = tmp_path / "root"
    touch(root / "sub" / "b.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "c.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (root / "sub" / "up").symlink_to(root)
    found = find(str(root))
    assert names(found) == ["c.jpg", "linked/a.jpg", "sub/b.jpg"]
    assert [image.size for image in found.images] == [4, 4, 1]


def test_links_to_nowhere_are_kept_as_errors(tmp_path):
    touch(tmp_path / "a.jpg")
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    (tmp_path / "shard.tar").symlink_to("nowhere.tar")
    (tmp_path / "notes.txt").symlink_to("nowhere.txt")
    found = find(str(tmp_path))
    assert names(found) == ["a.jpg", "broken.jpg", "shard.tar"]
    errors = [image.error for image in found.images]
    assert errors == [None, *2 * ["FileNotFoundError: No such file or directory"]]
    assert found.containers == ()
    assert found.summary == f"{tmp_path}: 1 image file, 2 that cannot be read; left out: 1 .txt"
    assert found.images[1].uri == str(tmp_path / "broken.jpg")


def test_a_file_that_vanishes_while_it_is_listed_is_kept_as_an_error(tmp_path, monkeypatch):
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "b.jpg")
    (tmp_path / "sub").mkdir()
    scan = os.scandir

    def scan_and_lose(folder):
        found = list(scan(folder))
        (tmp_path / "b.jpg").unlink(missing_ok=True)
        if (tmp_path / "sub").exists():
            (tmp_path / "sub").rmdir()

        class Entries(list):
            def __enter__(self):
                return self

            def __exit__(self, *error):
                pass

        return Entries(found)

    monkeypatch.setattr(folders.os, "scandir", scan_and_lose)
    found = find(str(tmp_path))
    assert names(found) == ["a.jpg", "b.jpg", "sub"]
    assert found.images[1].error == "FileNotFoundError: No such file or directory"
    assert found.images[2].error == (
        "this folder cannot be listed (FileNotFoundError: No such file or directory)"
    )


def deny(monkeypatch, folder: Path) -> None:
    scan = os.scandir

    def scandir(path):
        if Path(path) == folder:
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(folders.os, "scandir", scandir)


def test_a_folder_below_that_cannot_be_listed_is_one_error(tmp_path, monkeypatch):
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "sub" / "closed" / "b.jpg")
    touch(tmp_path / "sub" / "zc.jpg")
    deny(monkeypatch, tmp_path / "sub" / "closed")
    found = find(str(tmp_path))
    text = "this folder cannot be listed (PermissionError: Permission denied)"
    uri = str(tmp_path / "sub" / "closed")
    assert found.images[1] == ImageFile(uri=uri, name="sub/closed", error=text)
    assert names(found) == ["a.jpg", "sub/closed", "sub/zc.jpg"]
    assert found.summary == f"{tmp_path}: 2 image files, 1 that cannot be read"
    assert not unchanged(found.watched)  # or it would still be an error once it is opened


def test_a_folder_that_cannot_be_listed_itself_is_refused(tmp_path, monkeypatch):
    deny(monkeypatch, tmp_path)
    message = f"{tmp_path}: cannot be listed (PermissionError: Permission denied)"
    assert refused_alike(tmp_path) == message


def test_a_folder_of_nothing_but_errors_is_refused_with_the_first(tmp_path):
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    assert refused_alike(tmp_path).endswith(
        " .hif, .tar, .parquet); 1 cannot be read, as broken.jpg: FileNotFoundError: No such file "
        "or directory"
    )


def test_folders_deeper_than_python_may_recurse_are_listed(tmp_path):
    name = f"{'d/' * 100}a.jpg"
    touch(tmp_path / name)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + 60)
    try:
        assert names(find(str(tmp_path))) == [name]
    finally:
        sys.setrecursionlimit(limit)


def test_odd_names_are_listed_and_read_back(tmp_path):
    folder = tmp_path / "my photos #1 100%41"
    for name in ODD_NAMES:
        touch(folder / name, name.encode())
    for source in (str(folder), folder.as_uri()):
        found = find(source)
        assert names(found) == sorted(ODD_NAMES)
        assert all(read_bytes(image.uri) == image.name.encode() for image in found.images)
        assert unchanged(found.watched)


def test_names_that_are_not_utf8_are_percent_encoded_and_read_back(tmp_path):
    root = os.fsencode(tmp_path)
    try:
        Path(os.fsdecode(root + b"/s\xe9")).mkdir()
        touch(Path(os.fsdecode(root + b"/s\xe9/a b.jpg")), b"1")
        touch(Path(os.fsdecode(root + b"/caf\xe9.tar")), b"2")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    touch(tmp_path / "é.jpg", b"3")
    found = find(str(tmp_path))
    assert names(found) == ["s%E9/a%20b.jpg", "é.jpg"]
    assert found.images[0].uri == f"{tmp_path.as_uri()}/s%E9/a%20b.jpg"
    assert found.containers == (f"{tmp_path.as_uri()}/caf%E9.tar",)
    assert [read_bytes(image.uri) for image in found.images] == [b"1", b"3"]
    assert unchanged(found.watched)
    json.dumps([dataclasses.asdict(stamp) for stamp in found.watched]).encode()
    inner = find(os.fsdecode(root + b"/s\xe9"))
    assert names(inner) == ["a b.jpg"]
    assert inner.images[0].uri == found.images[0].uri
    (single,) = find(os.fsdecode(root + b"/s\xe9/a b.jpg")).images
    assert single.uri == found.images[0].uri


def test_a_relative_folder_gives_absolute_uris(tmp_path, monkeypatch):
    touch(tmp_path / "photos" / "a.jpg", b"data")
    monkeypatch.chdir(tmp_path)
    found = find("photos")
    assert found.summary == "photos: 1 image file"
    monkeypatch.chdir("/")
    assert read_bytes(found.images[0].uri) == b"data"
    assert unchanged(found.watched)


def test_tar_files_of_a_folder_are_containers_beside_images(tmp_path):
    for name in ["b.jpg", "z.TAR", "sub/a.tar", "c.tar.gz", "d.zip"]:
        touch(tmp_path / name)
    found = find(str(tmp_path))
    assert names(found) == ["b.jpg"]
    assert found.containers == (str(tmp_path / "sub/a.tar"), str(tmp_path / "z.TAR"))
    assert found.summary == f"{tmp_path}: 1 image file, 2 tar files; left out: 1 .gz, 1 .zip"


@pytest.mark.parametrize("other", ["a.jpg", "a.tar"])
def test_parquet_beside_images_or_tars_is_left_out_and_said(tmp_path, other):
    touch(tmp_path / "sub" / other)
    touch(tmp_path / "labels.parquet")
    found = find(str(tmp_path))
    assert not any(uri.endswith(".parquet") for uri in found.containers)
    assert len(found.images) + len(found.containers) == 1
    assert found.summary.endswith(" file, 1 Parquet file beside them, left out")


def test_parquet_files_alone_are_containers(tmp_path):
    for name in ["b.parquet", "a/c.Parquet", "notes.txt"]:
        touch(tmp_path / name)
    found = find(str(tmp_path))
    assert found.containers == (str(tmp_path / "a/c.Parquet"), str(tmp_path / "b.parquet"))
    assert len(found.images) == 0
    assert found.summary == f"{tmp_path}: 2 Parquet files; left out: 1 .txt"


def test_the_summary_writes_thousands(tmp_path):
    lists = write_list(tmp_path / "l.txt", *["a.jpg"] * 12_345, "b.tar")
    assert find(str(lists)).summary == f"{lists}: 12,345 image files, 1 tar file"


# Remote folders


@pytest.mark.parametrize("uri", ["s3://bucket/my%20photos", "s3://bucket/my%20photos/?region=x"])
def test_a_remote_folder_is_listed_and_read_back(bucket, uri):
    for name in [*ODD_NAMES, ".hidden/a.jpg", "notes.txt", "x/y z.tar", "m.parquet"]:
        touch(bucket / "my photos" / name, name.encode())
    found = find(uri)
    query = "?region=x" if "?" in uri else ""
    assert names(found) == sorted(ODD_NAMES)
    assert all(image.uri.startswith("s3://bucket/my%20photos/") for image in found.images)
    assert all(image.uri.endswith(query) for image in found.images)
    assert all(read_bytes(image.uri) == image.name.encode() for image in found.images)
    assert [image.size for image in found.images] == [len(name.encode()) for name in names(found)]
    assert found.containers == (f"s3://bucket/my%20photos/x/y%20z.tar{query}",)
    probe(uri)


def test_a_whole_bucket_is_listed(bucket):
    touch(bucket / "a.jpg", b"data")
    (image,) = find("s3://bucket").images
    assert (image.uri, read_bytes(image.uri)) == ("s3://bucket/a.jpg", b"data")


def test_markers_of_folders_are_no_images(monkeypatch):
    class Store:
        def get_file_info(self, asked):
            if isinstance(asked, str):
                return fs.FileInfo(asked, fs.FileType.Directory)
            return [
                fs.FileInfo("b/p/x.jpg/", fs.FileType.File, size=0),
                fs.FileInfo("b/p/y.jpg", fs.FileType.Directory),
                fs.FileInfo("b/p/x.jpg/a.jpg", fs.FileType.File, size=5),
            ]

    monkeypatch.setattr(locations, "open_folder", lambda uri: (Store(), "b/p"))
    assert names(find("s3://b/p")) == ["x.jpg/a.jpg"]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("absent", "no such file or folder"),
        ("a.zip", "images are not read from such a file; unpack it"),
    ],
)
def test_remote_sources_are_refused(bucket, path, message):
    touch(bucket / "a.zip")
    assert refused_alike(f"s3://bucket/{path}") == f"s3://bucket/{path}: {message}"


def test_of_a_remote_folder_no_more_is_probed_than_that_it_is_there(bucket, monkeypatch):
    monkeypatch.setattr(folders, "remote_files", lambda uri: pytest.fail("it was listed"))
    probe("s3://bucket")
    monkeypatch.undo()


def test_a_remote_folder_without_images_is_refused(bucket):
    touch(bucket / "notes.txt")
    assert "s3://bucket: no images in this folder (looked for .jpg " in refusal("s3://bucket")


def test_a_listing_that_fails_is_tried_again_and_then_refused(monkeypatch):
    class Store:
        calls = 0

        def get_file_info(self, asked):
            if isinstance(asked, str):
                return fs.FileInfo(asked, fs.FileType.Directory)
            self.calls += 1
            raise OSError("connection reset")

    store = Store()
    monkeypatch.setattr(locations, "open_folder", lambda uri: (store, "b"))
    monkeypatch.setattr(locations, "PAUSES", (0.0, 0.0))
    assert refusal("s3://b") == "s3://b: cannot be listed (OSError: connection reset)"
    assert store.calls == 3


# Sources that are refused, and single files


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{root}/absent", "absent: no such file or folder"),
        ("{root}/a.csv/b.jpg", "b.jpg: no such file or folder"),
        ("", ": no such file or folder"),
        ("{root}", "no images in this folder (looked for .jpg .jpeg .png .webp .bmp .tif .tiff "),
        ("file://{root}/absent", "absent: no such file or folder"),
        (
            "unknown://x/y",
            "unknown://x/y: only local files and files in buckets (s3:// and gs://) are read",
        ),
        ("s3://[x", "s3://[x: cannot be reached (OSError: Invalid IPv6"),
        (
            "https://x/a.jpg",
            "https://x/a.jpg: only local files and files in buckets (s3:// and gs://)",
        ),
        ("{root}/pipe.jpg", "pipe.jpg: neither a file nor a folder; give a folder, an image (.jp"),
        ("{root}/a.csv", "a.csv: images are not read from such a file; give a folder, an image ("),
        ("{root}/noname", "or a list with one path or URI a line (.txt .lst .list)"),
        ("{root}/a.tar.gz", "a.tar.gz: images are not read from such a file; unpack it"),
        ("{root}/a.TGZ", "a.TGZ: images are not read from such a file; unpack it"),
        ("{root}/a.zip", "a.zip: images are not read from such a file; unpack it"),
    ],
)
def test_other_sources_are_refused_with_what_can_be_given(tmp_path, source, message):
    for name in ["a.csv", "noname", "a.tar.gz", "a.TGZ", "a.zip"]:
        touch(tmp_path / name)
    os.mkfifo(tmp_path / "pipe.jpg")
    assert message in refused_alike(source.format(root=tmp_path))


def test_an_unreachable_local_file_is_refused(tmp_path):
    (tmp_path / "loop").symlink_to("loop")
    assert "loop: cannot be reached (OSError: Too many levels" in refused_alike(tmp_path / "loop")


@pytest.mark.parametrize("name", ["a.jpg", "my photo #1.JPEG", "50%41.png"])
@pytest.mark.parametrize("source", ["{path}", "{uri}", "s3://bucket/{quoted}?region=x"])
def test_a_single_image_is_one_item(bucket, source, name):
    path = touch(bucket / name, b"four")
    quoted = path.as_uri().rpartition("/")[2]
    given = source.format(path=path, uri=path.as_uri(), quoted=quoted)
    found = find(given)
    (image,) = found.images
    assert (image.name, image.size, read_bytes(image.uri)) == (name, 4, b"four")
    assert found.summary == f"{given}: 1 image file"
    assert unchanged(found.watched)
    probe(given)
    touch(path, b"other")
    assert not unchanged(found.watched)


@pytest.mark.parametrize("source", ["{}/a.tar", "file://{}/a.tar", "s3://bucket/a.tar"])
def test_a_single_tar_file_is_a_container(bucket, source):
    touch(bucket / "a.tar")
    given = source.format(bucket)
    found = find(given)
    assert found.containers == (given.removeprefix("file://"),)
    assert len(found.images) == 0
    assert len(found.watched) == 1
    probe(given)


def test_a_parquet_file_of_images_is_a_container(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(
        sources.containers, "holds_images", lambda uri, column: asked.append((uri, column)) or True
    )
    file = write_table(tmp_path / "a.parquet", image=[b"\xff\xd8"], path=["a.jpg"])
    assert find(str(file), column="photo").containers == (str(file),)
    probe(file.as_uri(), column="photo")
    assert asked == [(str(file), "photo")] * 2


def test_parquet_files_tell_what_they_hold(tmp_path):
    images = write_table(tmp_path / "images.parquet", image=[b"\xff\xd8"], path=["a.jpg"])
    paths = write_table(tmp_path / "paths.parquet", path=["a.jpg"], label=[1])
    assert find(str(images)).containers == (str(images),)
    assert names(find(str(paths))) == ["a.jpg"]
    # Of a file with both, the column decides.
    assert names(find(str(images), column="path")) == ["a.jpg"]


# Lists


def test_the_entries_of_a_list_are_paths_uris_and_names_beside_it(tmp_path):
    entries = ["b c%20.jpg", "/abs/a.png", "s3://b/x%20y?region=r", "../up.gif", "./dot", "ü#.jpg"]
    file = write_list(tmp_path / "lists" / "l.txt", *entries)
    found = find(str(file))
    folder = tmp_path / "lists"
    assert [image.uri for image in found.images] == [
        *(f"{folder}/b c%20.jpg", "/abs/a.png", "s3://b/x%20y?region=r"),
        *(f"{folder}/../up.gif", f"{folder}/dot", f"{folder}/ü#.jpg"),
    ]
    assert names(found) == entries
    assert {image.size for image in found.images} == {-1}
    assert {image.error for image in found.images} == {None}


@pytest.mark.parametrize("suffix", ["txt", "lst", "list", "TXT"])
def test_lists_are_known_by_their_suffix(tmp_path, suffix):
    file = write_list(tmp_path / f"l.{suffix}", "a.jpg")
    assert names(find(str(file))) == ["a.jpg"]
    probe(str(file))


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_stripped_and_blank_ones_skipped(tmp_path, end):
    lines = ["\ufeffa.jpg", "", "  b c.jpg\t", "   ", "d\u2028e.jpg", "a.jpg", ""]
    file = touch(tmp_path / "l.txt", end.join(lines).encode())
    assert names(find(str(file))) == ["a.jpg", "b c.jpg", "d\u2028e.jpg", "a.jpg"]


def test_odd_names_are_read_through_a_list(tmp_path):
    listed = [name for name in ODD_NAMES if "\n" not in name]
    for name in listed:
        touch(tmp_path / name, name.encode())
    found = find(str(write_list(tmp_path / "l.txt", *listed)))
    assert [read_bytes(image.uri).decode() for image in found.images] == listed


def test_a_parquet_list_may_name_files_with_line_ends(tmp_path):
    touch(tmp_path / "new\nline.jpg", b"data")
    found = find(str(write_table(tmp_path / "l.parquet", path=["new\nline.jpg"])))
    assert read_bytes(found.images[0].uri) == b"data"


def test_entries_of_a_remote_list_are_beside_it(bucket):
    touch(bucket / "sub" / "a b#.jpg", b"data")
    write_list(bucket / "sub" / "l.txt", "a b#.jpg", "../c.jpg", "x.tar")
    uri = "s3://bucket/sub/l.txt?region=x"
    found = find(uri)
    assert [image.uri for image in found.images] == [
        *("s3://bucket/sub/a%20b%23.jpg?region=x", "s3://bucket/c.jpg?region=x"),
    ]
    assert read_bytes(found.images[0].uri) == b"data"
    assert found.containers == ("s3://bucket/sub/x.tar?region=x",)
    probe(uri)


def test_a_list_in_a_folder_that_is_not_utf8_is_read(tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/s\xe9"))
    try:
        folder.mkdir()
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    touch(folder / "a b.jpg", b"data")
    found = find(str(write_list(folder / "l.txt", "a b.jpg")))
    assert read_bytes(found.images[0].uri) == b"data"


def test_containers_in_a_list_are_listed_once_and_sorted(tmp_path, bucket):
    entries = ["z.tar", "a.jpg", "s3://bucket/c.TAR?region=x", "b.parquet", "z.tar"]
    found = find(str(write_list(tmp_path / "l.txt", *entries)))
    assert names(found) == ["a.jpg"]
    expected = (f"{tmp_path}/b.parquet", f"{tmp_path}/z.tar", "s3://bucket/c.TAR?region=x")
    assert found.containers == expected
    assert found.summary.endswith("l.txt: 1 image file, 2 tar files, 1 Parquet file")


def test_entries_of_the_web_are_errors_that_say_what_is_read(tmp_path):
    entries = ["http://x/a.jpg", "a.jpg", "HTTPS://x/b.tar"]
    found = find(str(write_list(tmp_path / "l.txt", *entries)))
    assert names(found) == entries
    error = "only local files and files in buckets (s3:// and gs://) are read"
    assert [image.error for image in found.images] == [error, None, error]
    assert found.images[0].uri == "http://x/a.jpg"
    assert found.containers == ()
    assert found.summary.endswith(": 1 image file, 2 that cannot be read")


def test_a_list_of_nothing_that_can_be_read_is_refused(tmp_path):
    file = write_list(tmp_path / "l.txt", "http://x/a.jpg", "http://x/b.jpg")
    assert refusal(file).startswith(
        f"{file}: this list names no file that can be read; 2 cannot be read, as http://x/a.jpg: "
        "only local files"
    )
    empty = touch(tmp_path / "empty.txt", b"\n \n")
    assert refusal(empty) == f"{empty}: this list names no file that can be read"


def test_a_nul_character_is_an_error_of_its_entry(tmp_path):
    found = find(str(write_list(tmp_path / "l.txt", "a\0b.tar", "c.jpg")))
    assert found.images[0].error == "no file has a NUL character in its name"
    assert found.containers == ()


@pytest.mark.parametrize("content", [b"a.jpg\n\nb.jpg\ncaf\xe9.jpg\nd\xe9", b"\n\n\n\xff\xfea\0"])
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_list_that_is_not_utf8_is_refused_with_the_line(tmp_path, mark, content):
    file = touch(tmp_path / "l.txt", mark + content)
    assert refused_alike(file) == f"{file}: line 4 is not UTF-8; save the list as UTF-8"


def test_a_list_that_cannot_be_read_is_refused(tmp_path, monkeypatch):
    file = write_list(tmp_path / "l.txt", "a.jpg")

    def fail(uri: str) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied", uri)

    monkeypatch.setattr(locations, "read_bytes", fail)
    message = f"{file}: cannot be read (PermissionError: Permission denied)"
    assert refused_alike(file) == message


# Lists in Parquet files

TEXTS = [
    *(pa.array(["a.jpg"]), pa.array(["a.jpg"], pa.large_string())),
    *(pa.array(["a.jpg"], pa.string_view()), pa.array(["a.jpg"]).dictionary_encode()),
]


@pytest.mark.parametrize("values", TEXTS, ids=lambda values: str(values.type))
def test_any_type_of_text_is_a_list(tmp_path, values):
    file = write_table(tmp_path / "l.parquet", photo=values, label=[1])
    assert names(find(str(file))) == ["a.jpg"]


@pytest.mark.parametrize(
    ("columns", "chosen"),
    [
        *((["caption", "name", "path"], "path"), (["path", "url", "uri"], "uri")),
        *((["label", "image", "name"], "image"), (["file", "url"], "url")),
        *((["filename", "file_name"], "file_name"), (["caption"], "caption")),
    ],
)
def test_the_column_of_a_list_is_found(tmp_path, columns, chosen):
    values = {name: [f"{name}.jpg"] for name in columns}
    file = write_table(tmp_path / "l.parquet", number=[1], **values)
    assert names(find(str(file))) == [f"{chosen}.jpg"]
    assert names(find(str(file), column=columns[0])) == [f"{columns[0]}.jpg"]
    probe(str(file))
    probe(str(file), column=columns[0])


@pytest.mark.parametrize(
    ("columns", "column", "problem"),
    [
        ({"a": ["x"], "b": ["y"]}, None, "more than one column holds text"),
        ({"a": [1], "b": [2]}, None, "no column holds images or text"),
        ({"a": ["x"], "b": [2]}, "b", "column 'b' holds neither images nor text"),
        ({"a": ["x"], "b": ["y"]}, "c", "column 'c' holds neither images nor text"),
    ],
)
def test_a_column_that_is_not_clear_is_asked_for(tmp_path, columns, column, problem):
    file = write_table(tmp_path / "l.parquet", **columns)
    assert refused_alike(file, column) == (
        f"{file}: {problem}; name the column of the images, or of their paths or URIs, with "
        "--image-column (there are 'a', 'b')"
    )


def test_rows_without_a_name_are_errors_and_repeats_are_kept(tmp_path):
    file = write_table(tmp_path / "l.parquet", path=[" a.jpg ", None, "", "a.jpg", "b.tar"])
    found = find(str(file))
    assert names(found) == ["a.jpg", "row 1", "row 2", "a.jpg"]
    assert found.images[1] == ImageFile(
        uri=str(file), name="row 1", error="this row of the list names no file"
    )
    assert [image.error is None for image in found.images] == [True, False, False, True]
    assert found.containers == (f"{tmp_path}/b.tar",)


def test_two_columns_of_the_lists_name_are_refused(tmp_path):
    two = pa.Table.from_arrays([pa.array(["a.jpg"]), pa.array(["b.jpg"])], ["path", "path"])
    pq.write_table(two, tmp_path / "l.parquet")
    assert "'Field \"path\" exists 2 times in schema'" in refusal(tmp_path / "l.parquet")


def test_parquet_text_that_is_not_utf8_is_refused(tmp_path):
    values = pa.array([b"a.jpg", b"caf\xe9.jpg"], pa.binary()).view(pa.string())
    file = write_table(tmp_path / "l.parquet", path=values)
    assert refusal(file) == f"{file}: b'caf\\xe9.jpg' is not UTF-8; mend the list"


def test_a_damaged_parquet_list_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sources.containers, "holds_images", lambda uri, column: False)
    file = touch(tmp_path / "l.parquet", b"PAR1 but for the name")
    assert f"{file}: cannot be read as Parquet (ArrowInvalid: " in refused_alike(file)


# Probing


def test_probing_stops_at_the_first_image(tmp_path, monkeypatch):
    for number in range(50):
        touch(tmp_path / f"{number:02}" / "a.jpg")
    scanned = []
    scan = os.scandir
    monkeypatch.setattr(folders.os, "scandir", lambda path: scanned.append(path) or scan(path))
    probe(str(tmp_path))
    assert len(scanned) == 2


@pytest.mark.parametrize("name", ["a.jpg", "sub/b.tar", "c.parquet"])
def test_folders_with_something_to_read_pass(tmp_path, name):
    touch(tmp_path / "notes.txt")
    touch(tmp_path / name)
    (tmp_path / "broken.jpg").symlink_to("nowhere.jpg")
    probe(str(tmp_path))


# The files of a labelled set


def test_the_images_of_a_folder_are_listed_and_what_is_left_out_is_told(tmp_path, capsys):
    for name in ["b.jpg", "a/c.PNG", "x.tar", "y.parquet", "a/d.mov", "e.MOV", ".git/f.jpg"]:
        touch(tmp_path / name, b"four")
    listed = list_images(str(tmp_path))
    assert capsys.readouterr().err == (
        f"{tmp_path}: 2 images; left out: 2 .mov, 1 .parquet, 1 .tar, 1 hidden folder\n"
    )
    assert [(image.name, image.size) for image in listed] == [("a/c.PNG", 4), ("b.jpg", 4)]
    assert listed == list(find(str(tmp_path)).images)


def test_the_images_of_a_remote_folder_are_listed(bucket):
    for name in ["b.jpg", "a/c.PNG", "x.tar"]:
        touch(bucket / name)
    assert [image.name for image in list_images("s3://bucket")] == ["a/c.PNG", "b.jpg"]


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("{root}/absent", "absent: no such file or folder"),
        ("{root}/a.txt", "a.txt: this is a file; give the folder that holds the images"),
        ("{root}/tars", "tars: no images in this folder (looked for .jpg .jpeg .png .webp .bmp .t"),
        (
            "{root}/broken",
            "broken: b.jpg: FileNotFoundError: No such file or directory; mend or remove it",
        ),
    ],
)
def test_folders_without_images_or_with_errors_are_no_labelled_set(tmp_path, folder, message):
    touch(tmp_path / "a.txt")
    touch(tmp_path / "tars" / "a.tar")
    touch(tmp_path / "broken" / "a.jpg")
    (tmp_path / "broken" / "b.jpg").symlink_to("nowhere.jpg")
    with pytest.raises(InputError) as caught:
        list_images(folder.format(root=tmp_path))
    assert message in str(caught.value)


# Changes


def age(path: Path) -> None:
    """Make a file or folder look old, so that a change within the clock's tick shows too."""
    os.utime(path, ns=(10**18, 10**18))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    for name in ["a.jpg", "sub/b.jpg", "sub/c.tar", "empty/notes.txt"]:
        age(touch(folder / name))
    for path in (folder, folder / "sub", folder / "empty"):
        age(path)
    return folder


def test_every_folder_and_container_is_watched(photos):
    watched = {stamp.uri: stamp for stamp in find(str(photos)).watched}
    expected = [photos, photos / "sub", photos / "empty", photos / "sub" / "c.tar"]
    assert watched.keys() == set(map(str, expected))
    assert watched[str(photos)] == Stamp(str(photos), 0, 10**18)
    assert watched[str(photos / "sub" / "c.tar")] == Stamp(str(photos / "sub" / "c.tar"), 1, 10**18)


def test_nothing_changed_is_said_so_after_a_way_through_json(photos):
    stamps = find(str(photos)).watched
    text = json.dumps([dataclasses.asdict(stamp) for stamp in stamps])
    back = [Stamp(**stamp) for stamp in json.loads(text)]
    assert tuple(back) == stamps
    assert unchanged(back)
    assert unchanged([])


def test_reading_changes_nothing(photos):
    stamps = find(str(photos)).watched
    find(str(photos))
    read_bytes(str(photos / "a.jpg"))
    assert unchanged(stamps)


CHANGES = {
    "an image more": lambda root: touch(root / "new.jpg"),
    "an image less": lambda root: (root / "a.jpg").unlink(),
    "an image more below": lambda root: touch(root / "empty" / "new.jpg"),
    "an image renamed": lambda root: (root / "a.jpg").rename(root / "z.jpg"),
    "a folder more": lambda root: (root / "sub" / "new").mkdir(),
    "a tar file longer": lambda root: touch(root / "sub" / "c.tar", b"longer"),
    "a tar file written anew": lambda root: touch(root / "sub" / "c.tar", b"y"),
    "the folder gone": lambda root: root.rename(root.parent / "other"),
    "a file in the folder's place": lambda root: touch(root.rename(root / "../o") and root, b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changes_are_noticed(photos, change):
    stamps = find(str(photos)).watched
    CHANGES[change](photos)
    assert not unchanged(stamps)


def test_a_change_while_a_folder_is_listed_is_noticed(photos, monkeypatch):
    scan = os.scandir

    def scan_and_add(folder):
        entries = scan(folder)
        touch(photos / "late.jpg")
        return entries

    monkeypatch.setattr(folders.os, "scandir", scan_and_add)
    stamps = find(str(photos)).watched
    monkeypatch.undo()
    assert not unchanged(stamps)


def test_a_link_to_nowhere_is_watched_until_it_leads_somewhere(photos):
    (photos / "broken.jpg").symlink_to("../nowhere.jpg")
    stamps = find(str(photos)).watched
    assert unchanged(stamps)
    touch(photos / ".." / "nowhere.jpg")
    assert not unchanged(stamps)


@pytest.mark.parametrize("root", ["{}", "s3://bucket"])
def test_lists_and_their_containers_are_watched(bucket, root):
    file = write_list(bucket / "l.txt", "a.jpg", "x.tar", "later.tar")
    touch(bucket / "x.tar")
    for name in ["l.txt", "x.tar"]:
        age(bucket / name)
    root = root.format(bucket)
    stamps = find(f"{root}/l.txt").watched
    assert stamps == (
        Stamp(f"{root}/l.txt", file.stat().st_size, 10**18),
        Stamp(f"{root}/later.tar", -1, 0),
        Stamp(f"{root}/x.tar", 1, 10**18),
    )
    assert unchanged(stamps)
    touch(bucket / "a.jpg")
    assert unchanged(stamps)
    touch(bucket / "later.tar")
    assert not unchanged(stamps)
    (bucket / "later.tar").unlink()
    assert unchanged(stamps)
    (bucket / "x.tar").unlink()
    assert not unchanged(stamps)
    age(touch(bucket / "x.tar"))
    assert unchanged(stamps)
    os.utime(bucket / "l.txt")
    assert not unchanged(stamps)


def test_of_a_remote_folder_only_the_containers_are_watched(bucket):
    touch(bucket / "a.jpg")
    touch(bucket / "b.tar", b"1")
    stamps = find("s3://bucket").watched
    assert [stamp.uri for stamp in stamps] == ["s3://bucket/b.tar"]
    touch(bucket / "c.jpg")
    assert unchanged(stamps)
    touch(bucket / "b.tar", b"12")
    assert not unchanged(stamps)


class CountingStore:
    """A remote file system of files of 7 bytes, that counts what it is asked."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def get_file_info(self, paths):
        self.asked.append(paths)
        return [fs.FileInfo(path, fs.FileType.File, size=7, mtime_ns=5) for path in paths]


def test_remote_files_are_asked_after_in_one_call_per_bucket(monkeypatch):
    stores: dict[str, CountingStore] = {}

    def open_folder(uri: str) -> tuple[CountingStore, str]:
        bucket, _, path = uri.removeprefix("s3://").partition("?")[0].partition("/")
        return stores.setdefault(
            bucket + uri.partition("?")[2], CountingStore()
        ), f"{bucket}/{path}"

    monkeypatch.setattr(locations, "open_folder", open_folder)
    uris = ["s3://a/x/1.tar", "s3://b/2.tar", "s3://a/y/3.tar", "s3://a/4.tar?region=r"]
    stamps = folders.stamps(uris)
    assert stamps == [Stamp(uri, 7, 5) for uri in uris]
    asked = {key: store.asked for key, store in stores.items()}
    assert {key: len(calls) for key, calls in asked.items()} == {"a": 1, "b": 1, "aregion=r": 1}
    assert asked["a"] == [["a/x/1.tar", "a/y/3.tar"]]
    assert unchanged(stamps)


def test_a_local_change_is_noticed_before_remote_files_are_asked_after(photos, monkeypatch):
    monkeypatch.setattr(locations, "open_folder", lambda uri: pytest.fail("it was asked after"))
    assert not unchanged([Stamp("s3://b/a.tar", 1, 2), Stamp(str(photos), 0, 3)])


def test_what_is_out_of_reach_counts_as_changed(monkeypatch):
    def fail(uri: str) -> None:
        raise OSError("connection reset")

    monkeypatch.setattr(locations, "open_folder", fail)
    assert not unchanged([Stamp("s3://b/a.tar", 1, 2)])
    stamps = folders.stamps(["s3://b/a.tar"])
    assert not unchanged(stamps)


def test_a_bucket_that_does_not_exist_is_named(s3):
    for look in (probe, find):
        with pytest.raises(InputError, match="s3://nowhere/at-all"):
            look(f"s3://nowhere/at-all{s3}")
