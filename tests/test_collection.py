"""Listing a collection from a folder or a URI, leaving images out, reading files."""

import os
from pathlib import Path
from urllib.parse import unquote

import pytest
from pyarrow import fs

from mmray import collection
from mmray.collection import ImageFile, list_images, read_bytes, read_exclusions, without
from mmray.errors import InputError

ODD_NAMES = [
    "with space.jpg",
    "50%25.png",
    "a#b.JPG",
    "ü/é日本.webp",
    "q?x=1&y.tif",
    "plus+[0].gif",
]


def touch(path: Path, content: bytes = b"x") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


# Listing


def test_listing_is_recursive_sorted_and_of_images_only(tmp_path):
    for name in ["b/z.jpeg", "b/a.PNG", "a.txt", "c.bmp", "B.tiff", "b.jpg", "jpg", "x.jpg.zip"]:
        touch(tmp_path / name)
    touch(tmp_path / "a.webp", b"four")
    (tmp_path / "folder.jpg").mkdir()
    listed = list_images(str(tmp_path))
    assert [image.name for image in listed] == [
        *["B.tiff", "a.webp", "b.jpg", "b/a.PNG", "b/z.jpeg", "c.bmp"]
    ]
    assert [image.size for image in listed] == [1, 4, 1, 1, 1, 1]
    assert listed[3].uri == str(tmp_path / "b" / "a.PNG")


def test_hidden_files_and_folders_are_skipped(tmp_path):
    for name in ["a.jpg", ".b.jpg", "._c.jpg", ".cache/d.jpg", "e/.f/g.jpg"]:
        touch(tmp_path / name)
    assert [image.name for image in list_images(str(tmp_path))] == ["a.jpg"]


def test_a_listed_folder_may_itself_be_hidden(tmp_path):
    touch(tmp_path / ".photos" / "a.jpg")
    assert len(list_images(str(tmp_path / ".photos"))) == 1


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "elsewhere" / "a.jpg")
    root = tmp_path / "root"
    touch(root / "sub" / "b.jpg")
    (root / "linked").symlink_to(tmp_path / "elsewhere")
    (root / "c.jpg").symlink_to(tmp_path / "elsewhere" / "a.jpg")
    (root / "sub" / "up").symlink_to(root)
    (root / "broken.jpg").symlink_to(tmp_path / "nowhere.jpg")
    names = [image.name for image in list_images(str(root))]
    assert names == ["c.jpg", "linked/a.jpg", "sub/b.jpg"]


@pytest.mark.parametrize("as_uri", [False, True])
def test_odd_names_are_listed_and_read_back(tmp_path, as_uri):
    folder = tmp_path / "my photos #1 100%41"
    for name in ODD_NAMES:
        touch(folder / name, name.encode())
    listed = list_images(folder.as_uri() if as_uri else str(folder))
    assert sorted(image.name for image in listed) == sorted(ODD_NAMES)
    assert all(read_bytes(image.uri) == image.name.encode() for image in listed)
    for name in ODD_NAMES:
        assert read_bytes((folder / name).as_uri()) == name.encode()


def test_a_relative_folder_gives_absolute_uris(tmp_path, monkeypatch):
    touch(tmp_path / "photos" / "a.jpg", b"data")
    monkeypatch.chdir(tmp_path)
    (image,) = list_images("photos")
    monkeypatch.chdir("/")
    assert read_bytes(image.uri) == b"data"


@pytest.fixture
def bucket(tmp_path, monkeypatch):
    """s3://bucket as a folder of this machine, behind the interface of a remote file system."""
    (tmp_path / "bucket").mkdir()

    def open_uri(uri: str) -> tuple[fs.FileSystem, str]:
        path = unquote(uri.removeprefix("s3://").partition("?")[0]).rstrip("/")
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), path

    monkeypatch.setattr(collection, "_open_uri", open_uri)
    return tmp_path / "bucket"


@pytest.mark.parametrize("uri", ["s3://bucket/my%20photos", "s3://bucket/my%20photos/?region=x"])
def test_a_remote_folder_is_listed_and_read_back(bucket, uri):
    for name in [*ODD_NAMES, ".hidden/a.jpg", "notes.txt"]:
        touch(bucket / "my photos" / name, name.encode())
    listed = list_images(uri)
    assert [image.name for image in listed] == sorted(ODD_NAMES)
    assert all(image.uri.startswith("s3://bucket/my%20photos/") for image in listed)
    assert all(read_bytes(image.uri) == image.name.encode() for image in listed)
    assert [image.size for image in listed] == [len(image.name.encode()) for image in listed]


def test_a_whole_bucket_is_listed(bucket):
    touch(bucket / "a.jpg", b"data")
    (image,) = list_images("s3://bucket")
    assert (image.uri, read_bytes(image.uri)) == ("s3://bucket/a.jpg", b"data")


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("{root}/absent", "absent: no such folder"),
        ("{root}/a.txt", "a.txt: this is a file; give the folder that holds the images"),
        ("{root}", r"no images in this folder \(looked for .jpg .jpeg .png"),
        ("file://{root}/absent", "absent: no such folder"),
        ("unknown://x/y", "unknown://x/y: cannot be listed .*Unrecognized filesystem"),
        ("s3://bucket/two words", "s3://bucket/two words: cannot be listed .*parse URI"),
    ],
)
def test_folders_without_images_are_refused(tmp_path, folder, message):
    touch(tmp_path / "a.txt")
    with pytest.raises(InputError, match=message):
        list_images(folder.format(root=tmp_path))


@pytest.mark.parametrize(
    ("path", "message"),
    [("absent", "no such folder"), ("a.txt", "this is a file"), ("", "no images in this folder")],
)
def test_remote_folders_without_images_are_refused(bucket, path, message):
    touch(bucket / "a.txt")
    with pytest.raises(InputError, match=f"s3://bucket/{path}: {message}"):
        list_images(f"s3://bucket/{path}")


def test_a_name_that_is_not_unicode_is_refused(tmp_path):
    try:
        touch(Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.jpg")))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    with pytest.raises(InputError, match=r"'caf\\udce9.jpg' is not UTF-8; rename the file"):
        list_images(str(tmp_path))


# Leaving out


def left(names: set[str], exclude: set[str]) -> set[str]:
    images = [ImageFile(f"/photos/{name}", name, 1) for name in sorted(names)]
    return {image.name for image in without(images, exclude)}


@pytest.mark.parametrize(
    ("exclude", "out"),
    [
        (set(), set()),
        ({"a/x.jpg"}, {"a/x.jpg"}),  # the path below the folder
        ({"x.jpg"}, {"a/x.jpg", "b/x.jpg"}),  # the file name, in any folder
        ({"x"}, {"a/x.jpg", "b/x.jpg", "x.png"}),  # its stem
        ({"y.tar", "a/x.jpg"}, {"a/x.jpg", "y.tar.gif"}),
        # No part of a path or a name, no stem with its folder, no other spelling.
        ({"a", "b/x", "/a/x.jpg", "X.jpg", "y", "/photos/x.png", "none.jpg"}, set()),
    ],
)
def test_a_name_leaves_out_images_by_path_file_name_or_stem(exclude, out):
    names = {"a/x.jpg", "b/x.jpg", "x.png", "xx.jpg", "y.tar.gif"}
    assert left(names, exclude) == names - out


def test_the_images_that_stay_keep_their_order():
    images = [ImageFile(f"/photos/{name}", name, 1) for name in ("c.jpg", "a.jpg", "b.jpg")]
    assert without(images, {"a"}) == [images[0], images[2]]


def test_exclusions_are_the_lines_without_blanks_and_surrounding_spaces(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("a.jpg\r\n\n  sub/b c.png \t\n   \nü日\na.jpg".encode())
    expected = {"a.jpg", "sub/b c.png", "ü日"}
    assert read_exclusions(str(file)) == expected
    assert read_exclusions(file.as_uri()) == expected


def test_an_empty_file_excludes_nothing(tmp_path):
    touch(tmp_path / "names.txt", b"\n \n")
    assert read_exclusions(str(tmp_path / "names.txt")) == set()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.txt", "No such file or directory"),
        ("folder", "Is a directory"),
        ("latin1.txt", "'utf-8' codec can't decode byte 0xe9 in position 3"),
    ],
)
def test_a_file_of_exclusions_that_cannot_be_read_is_refused(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    touch(tmp_path / "latin1.txt", "café.jpg".encode("latin1"))
    file = tmp_path / name
    with pytest.raises(InputError) as caught:
        read_exclusions(str(file))
    message = str(caught.value)
    assert message.startswith(f"--exclude {file}: ")
    assert reason in message
    assert message.endswith("; name a text file of image names, one a line")
