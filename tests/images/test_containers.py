"""Images in tar and Parquet files are listed without reading them, and read back by part."""

import errno
import gzip
import io
import os
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mmray.images import containers, parquet_files, tar_files
from mmray.images.collection import Collection, ImageFile
from mmray.images.containers import holds_images, read_image, read_images
from mmray.system import locations, retrying_file

LIMIT = 1 << 20
HTML = b"<!DOCTYPE html><html>" * 99
FORMATS = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}
LINK, SYMLINK = tarfile.LNKTYPE, tarfile.SYMTYPE


def content(seed: object, size: int = 700) -> bytes:
    return np.random.default_rng(zlib.crc32(str(seed).encode())).bytes(size)


def archive(
    members: list[tuple[str, bytes | tuple[bytes, str]]], form: int = tarfile.PAX_FORMAT
) -> bytes:
    """Bytes of a tar file: members are names with content, or with kind and target of a link."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as tar:
        for name, what in members:
            member = tarfile.TarInfo(name)
            if isinstance(what, tuple):
                member.type, member.linkname = what
                tar.addfile(member)
            else:
                member.size = len(what)
                tar.addfile(member, io.BytesIO(what))
    return out.getvalue()


def save(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    return str(path)


def parquet(path: Path, columns: dict[str, object], **options: object) -> str:
    pq.write_table(pa.table(columns), path, **options)
    return str(path)


def index(uri: str, **options) -> Collection:
    images, _ = containers.index(uri, **options)
    return images


def names(images) -> list[str]:
    return [image.name for image in images if image.error is None]


def errors(images) -> list[str]:
    return [image.error for image in images if image.error is not None]


def read_all(images, **options) -> list[bytes | str]:
    """Content, or the error as text."""
    outcomes = read_images(images, **{"limit": LIMIT, **options})
    return [one if isinstance(one, bytes) else str(one) for one in outcomes]


class Remote:
    """Files in memory under mem://, counting requests; the first `failures` of them fail."""

    def __init__(self, monkeypatch, files: dict[str, bytes]) -> None:
        self.files, self.requests, self.opened, self.failures = files, [], 0, 0
        for module in (retrying_file, locations):
            monkeypatch.setattr(module, "open_file", self.open)
        monkeypatch.setattr(locations, "PAUSES", (0, 0))

    def open(self, uri: str):
        if uri not in self.files:
            raise FileNotFoundError(errno.ENOENT, "No such file or directory", uri)
        self.opened += 1
        remote, data = self, self.files[uri]

        class File(io.BytesIO):
            def read(self, size: int | None = -1) -> bytes:
                if remote.failures:
                    remote.failures -= 1
                    raise OSError("connection reset")
                remote.requests.append((self.tell(), size))
                return super().read(size)

        return File(data)


# Listing tar files


@pytest.mark.parametrize("form", FORMATS.values(), ids=FORMATS)
def test_members_of_every_tar_format_are_listed_and_read_back(tmp_path, form):
    long = "/".join(["a" * 60] * 3) + "/x.jpg"
    beyond = (
        [] if form == tarfile.USTAR_FORMAT else ["b" * 300 + ".png", "c" * 99 + "/d" * 99 + ".gif"]
    )
    wanted = ["a.jpg", "./b/c.PNG", "ü/é日本.webp", long, *beyond, "d.Tiff"]
    path = save(tmp_path / "x.TAR", archive([(name, content(name)) for name in wanted], form))
    images = index(path)
    assert names(images) == [name.removeprefix("./") for name in wanted]
    assert read_all(images) == [content(name) for name in wanted]
    assert {image.uri for image in images} == {path}
    assert {image.size for image in images} == {700}


def test_other_members_are_passed_over(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        folder = tarfile.TarInfo("folder.jpg")
        folder.type = tarfile.DIRTYPE
        pipe = tarfile.TarInfo("pipe.jpg")
        pipe.type = tarfile.FIFOTYPE
        tar.addfile(folder)
        tar.addfile(pipe)
    others = ["a.json", "a.txt", "a.cls", ".b.jpg", "._c.jpg", ".d/e.jpg", "./f/.g/h.jpg", "jpg"]
    kept = ["./i.jpg", "../j.jpg", "k/./l.jpg"]
    ending = archive([(name, b"1") for name in others + kept])
    images = index(save(tmp_path / "x.tar", out.getvalue()[:1024] + ending))
    assert [image.name for image in images] == ["i.jpg", "../j.jpg", "k/./l.jpg"]
    assert errors(images) == []
    _, left_out = containers.index(str(tmp_path / "x.tar"))
    assert left_out == {
        "special file": 1,
        **{".json": 1, ".txt": 1, ".cls": 1, "without suffix": 1},
        **{"hidden file": 2, "hidden folder": 2},
    }


def test_what_is_left_out_of_a_tar_file_is_counted_and_hidden_folders_once(tmp_path):
    files = ["a.MOV", "b/c.mov", ".git/a.jpg", ".git/b.jpg", "x/@eaDir/a.jpg", "__MACOSX/._a.jpg"]
    members = [(name, b"1") for name in [*files, "d.jfif", "e.HEIC"]]
    members += [("f.mov", (SYMLINK, "a.MOV")), ("g.jpe", (SYMLINK, "d.jfif"))]
    images, left_out = containers.index(save(tmp_path / "x.tar", archive(members)))
    assert names(images) == ["d.jfif", "e.HEIC", "g.jpe"]
    assert left_out == {
        **{".mov": 3, "hidden folder": 1, "@eaDir folder": 1, "__MACOSX folder": 1},
    }


def test_links_to_members_are_images_too(tmp_path):
    data = archive(
        [
            ("s/early.jpg", (SYMLINK, "../blobs/1")),
            ("blobs/1", b"one"),
            ("./a.jpg", b"two"),
            ("hard.jpg", (LINK, "a.jpg")),
            ("s/up.jpg", (SYMLINK, "../hard.jpg")),
            ("s/chain.jpg", (SYMLINK, "up.jpg")),
            ("note.txt", (SYMLINK, "a.jpg")),
            (".hidden.jpg", (SYMLINK, "a.jpg")),
        ]
    )
    images = index(save(tmp_path / "x.tar", data))
    assert names(images) == ["a.jpg", "s/early.jpg", "hard.jpg", "s/up.jpg", "s/chain.jpg"]
    assert read_all(images) == [b"two", b"one", b"two", b"two", b"two"]
    assert len({(image.offset, image.size) for image in images}) == 2


def test_links_that_lead_nowhere_or_in_circles_are_errors_of_these_alone(tmp_path):
    data = archive(
        [
            ("a.jpg", (SYMLINK, "b.jpg")),
            ("b.jpg", (SYMLINK, "a.jpg")),
            ("self.jpg", (LINK, "self.jpg")),
            ("gone.jpg", (LINK, "nothing.jpg")),
            ("abs.jpg", (SYMLINK, "/etc/ok.jpg")),
            ("ok.jpg", b"fine"),
        ]
    )
    images = index(save(tmp_path / "x.tar", data))
    assert names(images) == ["ok.jpg"]
    assert [image.error for image in images][1:] == [
        "a link that leads in a circle: b.jpg",
        "a link that leads in a circle: a.jpg",
        "a link that leads in a circle: self.jpg",
        "a link to what is not in the archive: nothing.jpg",
        "a link to what is not in the archive: /etc/ok.jpg",
    ]
    assert images[2].location.endswith("x.tar#b.jpg")
    assert read_all(images)[:2] == [b"fine", "a link that leads in a circle: b.jpg"]


def test_members_of_one_name_are_all_kept_and_a_link_means_the_last(tmp_path):
    data = archive([("a.jpg", b"old"), ("a.jpg", b"new"), ("b.jpg", (LINK, "a.jpg"))])
    images = index(save(tmp_path / "x.tar", data))
    assert names(images) == ["a.jpg", "a.jpg", "b.jpg"]
    assert read_all(images) == [b"old", b"new", b"new"]


def test_a_name_that_is_not_utf8_is_percent_encoded(tmp_path):
    data = archive([("d/\udcff\udc80 ü.jpg", b"one"), ("z.jpg", b"two")], tarfile.GNU_FORMAT)
    images = index(save(tmp_path / "x.tar", data))
    assert names(images) == ["d/%FF%80%20%C3%BC.jpg", "z.jpg"]
    assert read_all(images) == [b"one", b"two"]


def test_a_member_with_holes_is_an_error_row(tmp_path):
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        member = tarfile.TarInfo("a.jpg")
        member.size = 512
        member.pax_headers = {"GNU.sparse.map": "0,512", "GNU.sparse.size": "4096"}
        tar.addfile(member, io.BytesIO(bytes(512)))
        member = tarfile.TarInfo("b.jpg")
        tar.addfile(member)
    images = index(save(tmp_path / "x.tar", out.getvalue()))
    assert [image.name for image in images] == ["a.jpg", "b.jpg"]
    assert "stored with holes" in images[0].error
    assert images[1].error is None


# Damaged tar files


MEMBERS = [("a.jpg", content("a", 700)), ("b.json", b"{}"), ("c.jpg", content("c", 1500))]
# Headers of 512 bytes: a.jpg 0, data 512..1212, b.json 1536, 2048..2050, c.jpg 2560, 3072..4572.
CUTS = [
    (0, [], "empty file (0 bytes)"),
    (300, [], "not a tar file: only 300 bytes"),
    (512, [], "cut short within this image"),
    (1211, [], "cut short within this image"),
    (1212, ["a.jpg"], "cut short after 1 members"),
    (1536, ["a.jpg"], "cut short after 1 members"),
    (2000, ["a.jpg"], "cut short after 1 members"),
    (2049, ["a.jpg"], "cut short after 1 members"),
    (2050, ["a.jpg"], "cut short after 2 members"),
    (2560, ["a.jpg"], "cut short after 2 members"),
    (2700, ["a.jpg"], "cut short after 2 members"),
    (4571, ["a.jpg"], "cut short within this image"),
    (4572, ["a.jpg", "c.jpg"], "cut short after 3 members"),
    (4608, ["a.jpg", "c.jpg"], "cut short after 3 members"),
    (5000, ["a.jpg", "c.jpg"], "cut short after 3 members"),
]


@pytest.mark.parametrize(("cut", "good", "error"), CUTS, ids=[str(cut) for cut, *_ in CUTS])
def test_of_an_archive_cut_short_what_is_whole_is_listed_and_one_row_tells(
    tmp_path, cut, good, error
):
    data = archive(MEMBERS, tarfile.USTAR_FORMAT)
    images = index(save(tmp_path / "x.tar", data[:cut]))
    assert names(images) == good
    assert len(images) == len(good) + 1
    last = images[len(good)]
    assert error in last.error
    within = "within" in error
    assert last.name == (("a.jpg" if cut < 1212 else "c.jpg") if within else "x.tar")
    assert (last.offset is None) is not within
    known = dict(MEMBERS)
    assert read_all(images)[:-1] == [known[name] for name in good]


def test_a_whole_archive_has_no_error_however_it_is_padded(tmp_path):
    data = archive(MEMBERS, tarfile.USTAR_FORMAT)
    for count, padded in enumerate((data, data[:5120], data[:5632], data + bytes(90_000))):
        images = index(save(tmp_path / f"{count}.tar", padded))
        assert names(images) == ["a.jpg", "c.jpg"]
        assert errors(images) == []
    assert len(index(save(tmp_path / "empty.tar", archive([])))) == 0


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_cut_within_a_header_of_several_blocks_is_told(tmp_path, form):
    data = archive([("a.jpg", b"1"), ("b" * 300 + ".jpg", b"2")], FORMATS[form])
    for cut in range(1024, 1024 + 3 * 512, 256):
        images = index(save(tmp_path / "x.tar", data[:cut]))
        assert names(images) == ["a.jpg"]
        assert "cut short" in errors(images)[0], cut
    first = index(save(tmp_path / "y.tar", data[1024 : 1024 + 700]))
    assert errors(first) == ["the archive is cut short after 0 members; fetch it again"]


def test_damage_between_members_is_not_taken_for_the_end(tmp_path):
    data = bytearray(archive(MEMBERS, tarfile.USTAR_FORMAT))
    data[2560:2600] = b"x" * 40
    images = index(save(tmp_path / "x.tar", bytes(data)))
    assert names(images) == ["a.jpg"]
    assert "damaged after 2 members: no header at byte 2560" in errors(images)[0]


@pytest.mark.parametrize(
    "rest", [archive([("late.jpg", b"1")]), bytes(2 << 20)], ids=["joined", "zeros"]
)
def test_what_follows_the_end_mark_is_not_lost_in_silence(tmp_path, rest):
    data = archive(MEMBERS, tarfile.USTAR_FORMAT)
    images = index(save(tmp_path / "x.tar", data + rest))
    assert names(images) == ["a.jpg", "c.jpg"]
    assert f"ends at byte 4608, its file at byte {len(data + rest)}" in errors(images)[0]


def _header(size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header whose size field is any number, its checksum right."""
    member = tarfile.TarInfo("a.jpg")
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = (
        b"\xff" + size.to_bytes(11, "big", signed=True)
        if size < 0
        else (b"\x80" + size.to_bytes(11, "big"))
    )
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


@pytest.mark.parametrize("size", [-512, -5000, 1 << 40, 1 << 80])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE, b"?"])
def test_absurd_sizes_neither_loop_nor_fill_the_memory(tmp_path, size, kind):
    start = archive([("ok.jpg", b"fine")])[:1024]
    rest = archive([("never.jpg", b"x")])
    for before in (start, b""):
        images = index(save(tmp_path / "x.tar", before + _header(size, kind) + rest))
        assert names(images) == (["ok.jpg"] if before else [])
        assert len(errors(images)) == 1


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("x.tar", gzip.compress(archive(MEMBERS)), "compressed (gzip): unpack it, images in it"),
        ("x.tar", b"BZh9" + bytes(999), "compressed (bzip2): unpack it"),
        ("x.tar", HTML, "not a tar file: it begins with b'<!DOCTYPE html><'"),
        ("x.parquet", HTML, "Parquet magic bytes not found"),
        ("x.parquet", b"", "0 bytes"),
    ],
)  # fmt: skip
def test_a_file_that_is_none_of_its_suffix_is_one_error_row(tmp_path, name, data, error):
    (image,) = index(save(tmp_path / name, data))
    assert error in image.error
    assert (image.uri, image.name, image.offset) == (str(tmp_path / name), name, None)
    assert error in read_all([image])[0]


@pytest.mark.parametrize("suffix", [".tar", ".parquet"])
def test_what_cannot_be_opened_is_one_error_row(tmp_path, suffix):
    (gone,) = index(str(tmp_path / f"gone{suffix}"))
    assert gone.error == "FileNotFoundError: No such file or directory"
    (tmp_path / f"folder{suffix}").mkdir()
    (folder,) = index(str(tmp_path / f"folder{suffix}"))
    assert folder.error == "IsADirectoryError: Is a directory"
    os.mkfifo(tmp_path / f"pipe{suffix}")
    (pipe,) = index(str(tmp_path / f"pipe{suffix}"))
    assert pipe.error == "OSError: not a regular file"
    (unknown,) = index(f"nowhere://bucket/my%20shard{suffix}")
    assert unknown.name == f"my shard{suffix}"
    assert "nowhere" in unknown.error


def test_another_suffix_is_the_callers_mistake():
    with pytest.raises(ValueError, match=r"a\.zip: not a container of images"):
        index("a.zip")


@settings(max_examples=60)
@given(st.data())
def test_no_damage_makes_listing_or_reading_fail(data):
    form = data.draw(st.sampled_from([*FORMATS.values()]))
    whole = archive(
        [("é" * 45 + "/" + "x" * 60 + ".jpg", b"1"), ("b.jpg", (SYMLINK, "a")), *MEMBERS], form
    )
    raw = bytearray(whole[: data.draw(st.integers(0, len(whole)))])
    for _ in range(data.draw(st.integers(0, 4))):
        if raw:
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    with pytest.MonkeyPatch.context() as monkeypatch:
        Remote(monkeypatch, {"mem://f/x.tar": bytes(raw)})
        images = index("mem://f/x.tar")
        for image, outcome in zip(images, read_images(images, limit=LIMIT), strict=True):
            assert (image.error is None) == isinstance(outcome, bytes)


# Requests


def test_a_damaged_header_is_not_read_to_the_length_it_claims(monkeypatch):
    data = _header(20 << 20, tarfile.XHDTYPE) + bytes(21 << 20)
    remote = Remote(monkeypatch, {"mem://f/x.tar": data})
    assert "damaged after 0 members" in errors(index("mem://f/x.tar"))[0]
    assert max(size for _, size in remote.requests) <= 1 << 20


def test_a_distant_archive_of_small_images_is_listed_by_few_requests(monkeypatch):
    data = archive([(f"{n}.jpg", content(n)) for n in range(2000)], tarfile.USTAR_FORMAT)
    remote = Remote(monkeypatch, {"mem://f/x.tar": data})
    assert len(index("mem://f/x.tar")) == 2000
    assert len(remote.requests) <= len(data) // (1 << 20) + 2
    assert remote.opened == 1


def test_of_a_distant_archive_of_large_members_most_is_passed_over(monkeypatch):
    data = archive([(f"{n}.jpg", bytes(5 << 20)) for n in range(4)], tarfile.USTAR_FORMAT)
    remote = Remote(monkeypatch, {"mem://f/x.tar": data})
    assert len(index("mem://f/x.tar")) == 4
    assert len(remote.requests) <= 5
    assert max(size for _, size in remote.requests) <= 1 << 20


def shard(monkeypatch, sizes: dict[str, int]) -> tuple[Remote, list[ImageFile]]:
    members = [(name, content(name, size)) for name, size in sizes.items()]
    remote = Remote(monkeypatch, {"mem://f/x.tar": archive(members, tarfile.USTAR_FORMAT)})
    images = [image for image in index("mem://f/x.tar") if image.error is None]
    remote.requests.clear()
    remote.opened = 0
    return remote, images


def test_neighbours_are_fetched_by_one_request_and_the_file_is_opened_once(monkeypatch):
    remote, images = shard(monkeypatch, {f"{n}.jpg": 900 for n in range(20)})
    assert read_all(images) == [content(image.name, 900) for image in images]
    assert remote.requests == [(512, 19 * 1536 + 900)]
    assert remote.opened == 1
    remote.requests.clear()
    read_all([images[3]])
    assert remote.requests == [(images[3].offset, 900)]


def test_steps_back_and_wide_gaps_begin_a_new_request(monkeypatch):
    sizes = {"a.jpg": 10, "b.json": 1 << 19, "c.jpg": 10, "d.json": 3 << 19, "e.jpg": 10}
    remote, images = shard(monkeypatch, sizes)
    a, c, e = images
    for order, requests in (([a, c, e], 2), ([c, a], 2), ([a, e], 2), ([a, a, c, c], 1)):
        remote.requests.clear()
        assert read_all(order) == [content(image.name, 10) for image in order]
        assert len(remote.requests) == requests


def test_parts_that_overlap_are_read_right(monkeypatch):
    remote, (image,) = shard(monkeypatch, {"a.jpg": 900})
    parts = [(0, 900), (100, 0), (120, 600)]
    images = [replace(image, offset=512 + start, size=size) for start, size in parts]
    whole = content("a.jpg", 900)
    assert read_all(images) == [whole[start : start + size] for start, size in parts]
    assert len(remote.requests) == 1


def test_one_request_is_of_bounded_length(monkeypatch):
    monkeypatch.setattr(tar_files, "_MOST", 10_000)
    remote, images = shard(monkeypatch, {f"{n}.jpg": 900 for n in range(20)} | {"big.jpg": 30_000})
    assert read_all(images)[-1] == content("big.jpg", 30_000)
    assert [size for _, size in remote.requests] == [6 * 1536 - 636] * 3 + [2 * 1536 - 636, 30_000]


def test_a_distant_file_that_fails_twice_is_read_all_the_same(monkeypatch):
    sizes = {f"{n}.jpg": 900 for n in range(3)}
    remote, images = shard(monkeypatch, sizes)
    out = io.BytesIO()
    pq.write_table(pa.table({"image": pa.array([b"one"], pa.binary())}), out)
    remote.files |= {"mem://f/y.parquet": out.getvalue(), "mem://f/z.jpg": b"own"}
    remote.failures = 2
    assert list(index("mem://f/x.tar")) == images
    remote.failures = 2
    assert read_all(images) == [content(name, 900) for name in sizes]
    remote.failures = 2
    rows = index("mem://f/y.parquet")
    remote.failures = 2
    assert read_all([*rows, ImageFile(uri="mem://f/z.jpg", name="z.jpg")]) == [b"one", b"own"]
    assert remote.failures == 0
    remote.failures = 3
    assert read_all(images) == ["connection reset"] * 3
    remote.failures = 3
    assert errors(index("mem://f/x.tar")) == ["OSError: connection reset"]


def test_a_connection_that_failed_is_opened_anew(monkeypatch):
    remote, images = shard(monkeypatch, {"a.jpg": 900})
    remote.failures = 1
    assert read_all(images) == [content("a.jpg", 900)]
    assert remote.opened == 2


def test_of_a_parquet_file_the_images_are_not_fetched_to_list_them(monkeypatch):
    out = io.BytesIO()
    images = [{"bytes": content(n, 5000), "path": f"{n}.jpg"} for n in range(200)]
    masks = [content(-n, 5000) for n in range(200)]
    table = pa.table({"mask": masks, "image": images, "name": ["wrong"] * 200})
    pq.write_table(table, out, row_group_size=50)
    remote = Remote(monkeypatch, {"mem://f/x.parquet": out.getvalue()})
    listed = index("mem://f/x.parquet")
    assert names(listed) == [f"{n}.jpg" for n in range(200)]
    assert sum(size for _, size in remote.requests) < 70_000 + 4 * 3000
    remote.requests.clear()
    assert read_all(listed[50:100]) == [content(n, 5000) for n in range(50, 100)]
    assert sum(size for _, size in remote.requests) < 70_000 + 52 * 5000


def test_a_row_group_is_read_in_one_pass_by_ascending_rows(monkeypatch, tmp_path):
    path = parquet(
        tmp_path / "x.parquet", {"image": [content(n) for n in range(600)]}, row_group_size=300
    )
    images = index(path)
    passes = []
    read = parquet_files.ParquetReader._read_group

    def counted(self, group: int) -> Iterator[pa.Array]:
        passes.append(group)
        return read(self, group)

    monkeypatch.setattr(parquet_files.ParquetReader, "_read_group", counted)
    for order, expected in (
        (range(600), [0, 1]),
        ([0, 0, 7, 299, 299], [0]),
        ([299, 0, 599, 1], [0, 0, 1, 0]),
    ):
        passes.clear()
        chosen = [images[n] for n in order]
        assert read_all(chosen) == [content(n) for n in order]
        assert passes == expected


def test_batches_are_small_where_images_are_large(monkeypatch, tmp_path):
    monkeypatch.setattr(parquet_files, "_BATCH", 10_000)
    path = parquet(tmp_path / "x.parquet", {"image": [content(n, 3000) for n in range(40)]})
    reader = parquet_files.ParquetReader(path)
    assert [len(cells) for cells in reader._read_group(0)] == [3] * 13 + [1]


# Parquet layouts


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.binary_view()], ids=str)
def test_a_binary_column_is_found_and_read(tmp_path, kind):
    data = [b"one", b"", b"three"]
    path = parquet(tmp_path / "x.PARQUET", {"n": [1, 2, 3], "pixels": pa.array(data, kind)})
    images = index(path)
    assert [(image.name, image.offset, image.row_group) for image in images] == [
        *[("row 0", 0, 0), ("row 1", 1, 0), ("row 2", 2, 0)]
    ]
    assert read_all(images) == data
    assert holds_images(path)


def test_rows_are_counted_through_row_groups(tmp_path):
    path = parquet(
        tmp_path / "x.parquet", {"image": [content(n) for n in range(7)]}, row_group_size=3
    )
    images = index(path)
    assert [(image.name, image.offset, image.row_group) for image in images] == [
        (f"row {n}", n % 3, n // 3) for n in range(7)
    ]
    assert read_all(images) == [content(n) for n in range(7)]


def test_the_layout_of_hugging_face_is_read(tmp_path):
    cells = [{"bytes": b"one", "path": "d/1.jpg"}, {"bytes": b"two", "path": None}, None]
    cells += [{"bytes": None, "path": "4.jpg"}, {"bytes": b"five", "path": " "}]
    images = index(parquet(tmp_path / "x.parquet", {"label": [0] * 5, "photo": cells}))
    assert names(images) == ["d/1.jpg", "row 1", "row 2", "4.jpg", "row 4"]
    missing = f"[Errno {errno.ENODATA}] the row has no image bytes"
    gone = f"[Errno {errno.ENOENT}] No such file or directory: '{tmp_path}/4.jpg'"
    assert read_all(images) == [b"one", b"two", missing, gone, b"five"]


BYTES = {
    "dictionary": lambda data: pa.array(data, pa.binary()).dictionary_encode(),
    "dictionary of large": lambda data: pa.array(data, pa.large_binary()).dictionary_encode(),
    "fixed size": lambda data: pa.array(data, pa.binary(700)),
    "struct of dictionaries": lambda data: pa.StructArray.from_arrays(
        [pa.array(data, pa.binary()).dictionary_encode()], ["bytes"]
    ),
    "struct of fixed size": lambda data: pa.StructArray.from_arrays(
        [pa.array(data, pa.binary(700))], ["bytes"]
    ),
    "extension": lambda data: pa.ExtensionArray.from_storage(
        pa.opaque(pa.binary(), "jpeg", "a camera"), pa.array(data, pa.binary())
    ),
}


@pytest.mark.parametrize("kind", BYTES)
def test_image_bytes_are_found_and_read_whatever_type_holds_them(tmp_path, kind):
    data = [content(0), content(1), None, content(0), content(2)]
    columns = {"sha": pa.array([b"0" * 64] * 5, pa.binary(64)), "photo": BYTES[kind](data)}
    path = parquet(tmp_path / "x.parquet", {**columns, "path": ["p"] * 5}, row_group_size=3)
    assert holds_images(path)
    images = index(path)
    assert {image.column for image in images} - {None} == {"photo"}
    assert len(images) == 5
    outcomes = read_all(images)
    assert outcomes[:2] + outcomes[3:] == data[:2] + data[3:]
    assert read_all(images[::-1]) == outcomes[::-1]


def test_a_column_of_hashes_is_of_images_only_where_it_is_asked_for(tmp_path):
    hashes = pa.array([b"12345678901234567890"], pa.binary(20))
    path = parquet(tmp_path / "x.parquet", {"sha1": hashes, "path": ["a.jpg"]})
    assert not holds_images(path)  # but a list of paths
    assert read_all(index(path, column="sha1")) == [b"12345678901234567890"]


@pytest.mark.parametrize("asked", [None, "image"])
def test_images_as_lists_of_numbers_are_refused_with_the_remedy(tmp_path, asked):
    cells = pa.array([[255, 216]], pa.list_(pa.uint8()))
    path = parquet(tmp_path / "x.parquet", {"image": cells, "file_name": ["a.jpg"]})
    assert holds_images(path, asked)
    (image,) = index(path, column=asked)
    assert "'image' is of type list<" in image.error
    assert image.error.endswith("write the bytes of image files as a column of type binary")


def test_a_row_without_bytes_is_the_file_at_its_path_in_the_rows_place(tmp_path):
    (tmp_path / "d").mkdir()
    beside, elsewhere = save(tmp_path / "d/a b.jpg", b"beside"), save(tmp_path / "e.png", b"far")
    folder = tmp_path / "set"
    folder.mkdir()
    cells = [
        {"bytes": content(0), "path": "0.jpg"},
        {"bytes": None, "path": "../d/a b.jpg"},
        {"bytes": None, "path": elsewhere},
        {"bytes": content(3), "path": None},
        {"bytes": None, "path": None},
        {"bytes": None, "path": "../e.png"},
        {"bytes": None, "path": "https://example.org/a.jpg"},
    ]
    file_names = [*"abcdef", None]
    path = parquet(
        folder / "x.parquet", {"image": cells, "file_name": file_names}, row_group_size=5
    )
    images = index(path)
    assert [image.name for image in images] == [
        *("0.jpg", "../d/a b.jpg", elsewhere, "d", "e", "../e.png", "https://example.org/a.jpg")
    ]
    assert [image.offset for image in images] == [0, None, None, 3, 4, None, None]
    assert images[1].location == f"{folder}/../d/a b.jpg"
    assert Path(beside).samefile(images[1].uri)
    outcomes = read_all(images)
    assert outcomes[:4] == [content(0), b"beside", b"far", content(3)]
    assert "the row has no image bytes" in outcomes[4]
    assert outcomes[5] == b"far"
    assert outcomes[6].startswith("only local files and")


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_binary(), pa.null()], ids=str)
@pytest.mark.parametrize("statistics", [True, False])
def test_rows_that_are_all_paths_are_files_of_their_own(monkeypatch, kind, statistics):
    paths = pa.array(["1.jpg", "d/2 ü.jpg", "1.jpg"]).dictionary_encode()
    cells = pa.StructArray.from_arrays([pa.nulls(3, kind), paths], ["bytes", "path"])
    out = io.BytesIO()
    pq.write_table(pa.table({"image": cells}), out, write_statistics=statistics)
    files = {"mem://f/set/x.parquet": out.getvalue(), "mem://f/set/1.jpg": b"one"}
    Remote(monkeypatch, files | {"mem://f/set/d/2%20%C3%BC.jpg": b"two"})
    images = index("mem://f/set/x.parquet")
    assert names(images) == ["1.jpg", "d/2 ü.jpg", "1.jpg"]
    assert read_all(images) == [b"one", b"two", b"one"]


def test_rows_of_bytes_and_paths_by_turns_are_read_in_one_pass(tmp_path, monkeypatch):
    save(tmp_path / "a.jpg", b"own")
    cells = [
        {"bytes": None if n % 2 else content(n), "path": "a.jpg" if n % 2 else None}
        for n in range(100)
    ]
    images = index(parquet(tmp_path / "x.parquet", {"image": cells}))
    passes = []
    read = parquet_files.ParquetReader._read_group
    monkeypatch.setattr(
        parquet_files.ParquetReader,
        "_read_group",
        lambda self, group: passes.append(group) or read(self, group),
    )
    assert read_all(images) == [b"own" if n % 2 else content(n) for n in range(100)]
    assert passes == [0]


def test_names_are_of_the_struct_else_of_a_column_row_by_row(tmp_path):
    cells = [{"bytes": b"1", "path": path} for path in ("own.jpg", None, "", None, None)]
    columns = {
        "image": cells,
        "file_name": pa.array(["w", "x.jpg", "y.jpg", None, ""]).dictionary_encode(),
        "url": pa.array(["w", "w", "w", "z.jpg", None], pa.large_string()),
    }
    images = index(parquet(tmp_path / "x.parquet", columns, row_group_size=2))
    assert names(images) == ["own.jpg", "x.jpg", "y.jpg", "z.jpg", "row 4"]


@pytest.mark.parametrize(
    ("columns", "first"),
    [
        ({"key": ["k"], "filename": ["f"], "id": ["i"]}, "f"),
        ({"url": ["u"], "__key__": ["k"]}, "k"),
        ({"caption": ["c"], "id": [5]}, "row 0"),
        ({"name": pa.array(["n"], pa.large_string())}, "n"),
        ({"name": pa.array(["n"], pa.string_view())}, "n"),
    ],
)
def test_names_are_of_the_first_known_column_of_text(tmp_path, columns, first):
    path = parquet(tmp_path / "x.parquet", {"jpg": [b"1"], **columns})
    assert names(index(path)) == [first]


def test_a_name_of_a_parquet_file_that_is_not_utf8_is_percent_encoded(tmp_path):
    buffers = [None, pa.py_buffer(np.array([0, 3], np.int32)), pa.py_buffer(b"\xff a")]
    path = parquet(tmp_path / "x.parquet", {
        "name": pa.Array.from_buffers(pa.string(), 1, buffers), "image": [b"1"]
    })  # fmt: skip
    assert names(index(path)) == ["%FF%20a"]


@pytest.mark.parametrize(
    ("columns", "asked", "error"),
    [
        ({"a": [b"1"], "b": [b"2"], "c": [3]}, None,
         "images may be in any of the columns 'a', 'b'; name one with --image-column"),
        ({"url": ["x"], "c": [3]}, None, "no column of image bytes among 'url', 'c'; it must be"),
        ({"a": [b"1"], "c": [3]}, "d",
         "no column 'd' among 'a', 'c'; name another with --image-column"),
        ({"a": [b"1"], "c": [3]}, "c",
         "the column 'c' is of type int64, not of image bytes; name one of 'a' with"),
    ],
)  # fmt: skip
def test_an_unclear_column_is_an_error_row_that_tells_the_way_out(tmp_path, columns, asked, error):
    path = parquet(tmp_path / "x.parquet", columns)
    (image,) = index(path, column=asked)
    assert image.error.startswith(error)
    # Listed once, when it was clear, and read now: the same sentence.
    row = ImageFile(uri=path, name="row 0", offset=0, row_group=0, column=asked)
    assert error in read_all([row])[0]


@pytest.mark.parametrize(
    ("columns", "asked", "expected"),
    [
        ({"mask": [b"no"], "content": [b"no"], "jpg": [b"yes"]}, None, b"yes"),
        ({"mask": [b"no"], "image": [{"bytes": b"yes"}]}, None, b"yes"),
        ({"mask": [{"bytes": b"yes"}], "image": [b"no"]}, "mask", b"yes"),
        ({"image": ["no.jpg"], "odd": [b"yes"]}, None, b"yes"),
        ({"image": [b"yes"], "image.x": [b"no"]}, "image", b"yes"),
    ],
)
def test_the_column_asked_for_or_best_known_is_taken(tmp_path, columns, asked, expected):
    path = parquet(tmp_path / "x.parquet", columns)
    images = index(path, column=asked)
    assert read_all(images) == [expected]
    assert read_image(images[0], limit=LIMIT) == expected


def test_parquet_of_images_is_told_from_a_list_of_paths(tmp_path):
    paths = parquet(tmp_path / "paths.parquet", {"path": ["a.jpg"], "n": [1]})
    assert not holds_images(paths)
    assert not holds_images(paths, "path")
    several = parquet(tmp_path / "several.parquet", {"a": [b"1"], "b": [b"2"]})
    assert holds_images(several)
    assert holds_images(several, "b")
    assert not holds_images(several, "c")
    assert holds_images(save(tmp_path / "bad.parquet", b"nothing"))
    assert holds_images(str(tmp_path / "gone.parquet"))


def test_a_parquet_file_without_rows_has_no_images(tmp_path):
    path = parquet(tmp_path / "x.parquet", {"image": pa.array([], pa.binary())})
    assert len(index(path)) == 0


def test_damage_in_the_pages_is_of_the_rows_behind_it(tmp_path):
    path = tmp_path / "x.parquet"
    data = [content(n, 4000) for n in range(8)]
    options = {"row_group_size": 4, "compression": "zstd", "use_dictionary": False}
    parquet(path, {"image": data}, **options)
    raw = bytearray(path.read_bytes())
    start = pq.read_metadata(path).row_group(0).column(0).data_page_offset
    raw[start : start + 60] = b"\xff" * 60
    path.write_bytes(raw)
    images = index(str(path))
    outcomes = list(read_images(images, limit=LIMIT))
    assert all(isinstance(one, OSError) for one in outcomes[:4])
    assert outcomes[4:] == data[4:]


def test_a_footer_that_contradicts_itself_is_not_believed(tmp_path, monkeypatch):
    path = parquet(tmp_path / "x.parquet", {"image": [b"1", b"2"]})
    chunk = SimpleNamespace(num_values=3)
    monkeypatch.setattr(parquet_files, "_chunk", lambda *_: chunk)
    (image,) = index(path)
    assert image.error.startswith("row group 0 is of 2 rows, its column 'image' of 3; the file is")


def test_a_file_changed_since_it_was_listed_is_an_error_of_its_rows(tmp_path):
    path = parquet(
        tmp_path / "x.parquet", {"image": [content(n) for n in range(9)]}, row_group_size=3
    )
    images = list(index(path))
    parquet(Path(path), {"image": [b"a", b"b"]})
    assert read_all(images)[:2] == [b"a", b"b"]
    assert all("changed" in text for text in read_all(images)[2:])
    assert read_all([images[2], images[0]])[1] == b"a"


# Reading


def test_a_vanished_file_is_an_error_of_its_images_alone(tmp_path):
    tar = save(tmp_path / "x.tar", archive(MEMBERS))
    rows = parquet(tmp_path / "y.parquet", {"image": [b"1", b"2"]})
    own = save(tmp_path / "z.jpg", b"own")
    images = [*index(tar), *index(rows), ImageFile(uri=own, name="z.jpg")]
    images.append(ImageFile(uri=str(tmp_path / "gone.jpg"), name="gone.jpg"))
    Path(tar).unlink()
    Path(rows).unlink()
    outcomes = list(read_images(images, limit=LIMIT))
    assert outcomes.pop(4) == b"own"
    assert [type(one) for one in outcomes] == [FileNotFoundError] * 5


def test_images_behind_the_end_of_an_archive_cut_since_are_errors_alone(tmp_path):
    data = archive(MEMBERS, tarfile.USTAR_FORMAT)
    images = list(index(save(tmp_path / "x.tar", data)))
    save(tmp_path / "x.tar", data[:4000])
    first, second = read_images(images, limit=LIMIT)
    assert first == MEMBERS[0][1]
    assert "the archive ends before this image does" in str(second)


def test_what_is_longer_than_the_limit_is_refused_and_its_neighbours_are_not(tmp_path, monkeypatch):
    remote, members = shard(monkeypatch, {"a.jpg": 10, "b.jpg": 11, "c.jpg": 10})
    images = list(members)
    cells = pa.table({"image": [bytes(10), bytes(11), bytes(10)]})
    out = io.BytesIO()
    pq.write_table(cells, out)
    remote.files |= {"mem://f/y.parquet": out.getvalue()}
    images += index("mem://f/y.parquet")
    for size in (10, 11, 10):
        remote.files[f"mem://f/{len(images)}.jpg"] = bytes(size)
        images.append(ImageFile(uri=f"mem://f/{len(images)}.jpg", name="own"))
    remote.requests.clear()
    outcomes = list(read_images(images, limit=10))
    assert [getattr(one, "errno", None) for one in outcomes] == [None, errno.EFBIG, None] * 3
    assert "11 bytes, at most 10 are read" in str(outcomes[1])
    with pytest.raises(OSError, match="11 bytes, at most 10") as caught:
        read_image(images[4], limit=10)
    assert caught.value.errno == errno.EFBIG


def test_files_are_read_ahead_but_not_far(monkeypatch):
    started = []

    def read(uri: str, *, limit: int) -> bytes:
        started.append(uri)
        return uri.encode()

    monkeypatch.setattr(containers, "read_bytes", read)
    images = [ImageFile(uri=str(n), name=str(n)) for n in range(100)]
    outcomes = read_images(images, limit=LIMIT, threads=4)
    assert next(outcomes) == b"0"
    outcomes.close()
    assert len(started) <= 5
    assert read_all(images, threads=4) == [str(n).encode() for n in range(100)]


def test_a_path_that_no_system_takes_is_an_error_like_any_other():
    (outcome,) = read_images([ImageFile(uri="a\0b.jpg", name="a")], limit=LIMIT)
    assert isinstance(outcome, OSError)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> list[ImageFile]:
    """Images of all kinds, some of which cannot be had."""
    folder = tmp_path_factory.mktemp("mixed")
    members = [(f"{n}.jpg", content(n, 40 * n)) for n in range(12)]
    members += [("l.jpg", (SYMLINK, "3.jpg")), ("gone.jpg", (SYMLINK, "gone"))]
    images = [*index(save(folder / "a.tar", archive(members)))]
    images += index(save(folder / "b.tar", archive(members[:5])[:3100]))
    cells = [content(n) if n % 5 else None for n in range(20)]
    images += index(parquet(folder / "c.parquet", {"image": cells}, row_group_size=8))
    images += index(parquet(folder / "d.parquet", {"x": [b""], "y": [b""]}))
    for n in range(3):
        images.append(ImageFile(uri=save(folder / f"{n}.png", content(n)), name=f"{n}.png"))
    return [*images, ImageFile(uri=str(folder / "gone.png"), name="gone.png")]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_order_with_repeats_equals_reading_each_alone(mixed, data):
    places = st.lists(st.integers(0, len(mixed) - 1), max_size=25)
    order = data.draw(st.one_of(places, places.map(sorted)))
    chosen = [mixed[place] for place in order]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(parquet_files, "_BATCH_ROWS", 3)
        together = read_all(chosen, limit=700, threads=3)
    assert together == [read_all([image], limit=700)[0] for image in chosen]


def test_the_mixed_collection_has_both_images_and_errors(mixed):
    outcomes = read_all(mixed, limit=700)
    assert sum(isinstance(one, bytes) for one in outcomes) == 13 + 3 + 16 + 3
    assert outcomes[3] == content(3, 120) == outcomes[12]
