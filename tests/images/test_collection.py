"""Collections: a table that reads as a sequence; leaving images out, drawing some of them."""

import dataclasses
import hashlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest

from mmray.images.collection import (
    NAMELESS,
    SCHEMA,
    Collection,
    ImageFile,
    named_images,
    read_exclusions,
    sample,
)
from mmray.images.names import forms
from mmray.system.errors import InputError
from mmray.system.text_files import normalized
from mmray.system.uris import masked, unmasked

ROWS = [
    ImageFile(uri="/photos/a.jpg", name="a.jpg", size=7),
    ImageFile(uri="s3://b/x.tar", name="sub/b.png", size=0, offset=512),
    ImageFile(uri="/p.parquet", name="ü日", offset=3, row_group=2),
    ImageFile(uri="/photos/c.jpg", name="c.jpg", box=(0.5, 1.0, 20.0, 30.25)),
    ImageFile(uri="/photos/d.jpg", name="d\n.jpg", error="OSError: gone"),
]


def without(images, names):
    """Leave out the images that names mean."""
    return images.take(np.flatnonzero(~named_images(images, names)[0]))


def collection(names: list[str]) -> Collection:
    return Collection.of(ImageFile(uri=f"/photos/{name}", name=name) for name in names)


def names(images: Collection) -> list[str]:
    return [image.name for image in images]


# Collections


def test_a_collection_gives_back_the_images_it_was_made_of():
    images = Collection.of(iter(ROWS))
    assert len(images) == 5
    assert list(images) == ROWS
    assert [images[place] for place in range(5)] == ROWS
    assert images[-1] == ROWS[-1]
    assert images[np.int64(3)] == ROWS[3]
    assert isinstance(images[3].box, tuple)


@pytest.mark.parametrize("place", [5, -6])
def test_a_place_outside_is_an_index_error(place):
    with pytest.raises(IndexError):
        Collection.of(ROWS)[place]


@pytest.mark.parametrize(
    "part", [slice(1, 3), slice(None), slice(3, 1), slice(None, None, -1), slice(-2, 99)]
)
def test_a_slice_is_the_collection_of_its_images(part):
    images = Collection.of(ROWS)[part]
    assert isinstance(images, Collection)
    assert list(images) == ROWS[part]


def test_taking_follows_the_order_of_the_places_and_repeats():
    assert list(Collection.of(ROWS).take(np.array([4, 0, 4]))) == [ROWS[4], ROWS[0], ROWS[4]]


def test_joining_keeps_the_order_of_the_parts():
    joined = Collection.joined(map(Collection.of, [ROWS[:2], [], ROWS[2:]]))
    assert list(joined) == ROWS
    assert list(joined[1:4]) == ROWS[1:4]


@pytest.mark.parametrize("empty", [Collection.of([]), Collection.joined([])])
def test_an_empty_collection_is_one(empty):
    assert len(empty) == 0
    assert list(empty) == []
    assert list(empty[:]) == []
    assert empty.locations.to_pylist() == []
    assert empty.table.schema == SCHEMA
    assert list(Collection.joined([empty, Collection.of(ROWS)])) == ROWS


def test_images_beyond_one_batch_keep_their_order():
    many = [str(number) for number in range(10_000)]
    assert names(collection(many)) == many


def test_locations_name_the_file_and_what_is_within_it():
    expected = [
        *("/photos/a.jpg", "s3://b/x.tar#sub/b.png", "/p.parquet#ü日"),
        *("/photos/c.jpg", "/photos/d.jpg"),
    ]
    assert [image.location for image in ROWS] == expected
    assert Collection.of(ROWS).locations.to_pylist() == expected


REPEATED = [
    *(ImageFile(uri="/p.parquet", name="a", offset=i, row_group=g) for g in (0, 1) for i in (0, 1)),
    *(ImageFile(uri="/x.tar", name="a", size=7, offset=512 * i) for i in (1, 4)),
    ImageFile(uri="/x.tar", name="b", offset=1024),
    ImageFile(uri="/y.tar", name="b", offset=1024),
    ImageFile(uri="/q.jpg", name="a"),
    ImageFile(uri="/q.jpg", name="a", box=(0.0, 0.0, 1.0, 1.0)),
    ImageFile(uri="/q.jpg", name="a", box=(0.0, 0.0, 1.0, 2.0)),
    *(ImageFile(uri="/l.txt", name=f"row {i}", error=NAMELESS) for i in (3, 4)),
]


def test_images_are_known_by_their_place_and_not_by_name_or_size():
    images = Collection.of(REPEATED)
    assert len(set(images.places.to_pylist())) == len(REPEATED)
    renamed = [dataclasses.replace(image, name=f"x{i}", size=i) for i, image in enumerate(REPEATED)]
    kept = [image for image in renamed if image.error is None]
    assert Collection.of(kept).places.to_pylist() == images[: len(kept)].places.to_pylist()
    assert list(images.distinct()) == REPEATED
    assert list(Collection.of(REPEATED + renamed[:-2]).distinct()) == REPEATED


@pytest.mark.parametrize(
    ("uri", "same"),
    [
        ("/a b.jpg", "file:///a%20b.jpg"),
        ("/a b.jpg", "FILE://localhost/a%20b.jpg"),
        ("s3://key:secret@b/x.jpg", "s3://other:one@b/x.jpg"),
        ("s3://b/x.jpg?secret_key=1&region=r", "s3://b/x.jpg?secret_key=2&region=r"),
    ],
)
def test_a_place_is_one_however_it_is_written_and_reached(uri, same):
    images = Collection.of([ImageFile(uri=uri, name="a"), ImageFile(uri=same, name="b")])
    assert list(images.distinct()) == [images[0]]
    broken = Collection.of([ImageFile(uri=same, name="b", error="gone"), images[0]])
    assert list(broken.distinct()) == [images[0]]


def test_locations_of_repeated_names_tell_the_place_too():
    shown = [
        *("/p.parquet#a (row group 0, row 0)", "/p.parquet#a (row group 0, row 1)"),
        *("/p.parquet#a (row group 1, row 0)", "/p.parquet#a (row group 1, row 1)"),
        *("/x.tar#a (byte 512)", "/x.tar#a (byte 2048)", "/x.tar#b", "/y.tar#b"),
        *("/q.jpg", "/q.jpg", "/q.jpg", "/l.txt#row 3", "/l.txt#row 4"),
    ]
    images = Collection.of(REPEATED)
    assert images.locations.to_pylist() == shown
    assert images.locations_of(np.array([5, 0, 7])) == [shown[5], shown[0], shown[7]]
    assert images.locations_of(np.arange(len(shown))) == shown


def test_credentials_are_hidden_where_images_are_stored_or_told_and_no_part_of_the_digest():
    uris = ["s3://k:SECRET@b/x.tar?region=r", "s3://b/y.jpg?secret_key=SECRET", "/k:SECRET@b.jpg"]
    images = Collection.of(
        [ImageFile(uri=uri, name="a", offset=7 if "tar" in uri else None) for uri in uris]
    )
    hidden = ["s3://***@b/x.tar?region=r", "s3://b/y.jpg?secret_key=***", uris[2]]
    assert [image.uri for image in images.masked()] == hidden
    assert images.locations.to_pylist() == [f"{hidden[0]}#a", *hidden[1:]]
    assert [image.location for image in images] == images.locations.to_pylist()
    assert images.masked().digest() == images.digest()
    sources = ["s3://k:SECRET@b?region=r", "s3://b/y.jpg?secret_key=SECRET"]
    assert list(images.masked().unmasked(sources)) == list(images)


def test_a_table_of_other_columns_is_no_collection():
    with pytest.raises(AssertionError):
        Collection(Collection.of(ROWS).table.drop_columns("box"))


def test_equal_collections_have_equal_digests():
    whole = Collection.of(ROWS)
    assert Collection.joined([whole[:2], whole[2:]]).digest() == whole.digest()


@pytest.mark.parametrize(
    "change",
    [
        *({"uri": "x"}, {"name": "x"}, {"size": 1}, {"offset": 1}, {"row_group": 1}),
        *({"box": (1.0, 2.0, 3.0, 4.0)}, {"error": ""}),
    ],
)
def test_whatever_is_known_of_an_image_changes_the_digest(change):
    changed = Collection.of([dataclasses.replace(ROWS[0], **change), *ROWS[1:]])
    assert changed.digest() != Collection.of(ROWS).digest()


def random_images(rng, count):
    """Images of all kinds, some with credentials, boxes and names that Python escapes."""
    uris = ["/p/a.jpg", "/p/it's.jpg", "s3://k:S@b/x.tar", "s3://b/y?token=S", "file:///p/a.jpg"]
    kinds = rng.integers(0, len(uris), count) * (rng.random(count) < rng.choice([0, 0.3]))
    return [
        ImageFile(
            uri=uris[kind],
            name=str(rng.choice(["a", "ü", "d\n.jpg", 'q"', f"{row}.jpg"])),
            size=int(rng.integers(-1, 1 << 40)),
            offset=None if rng.random() < 0.5 else int(rng.integers(0, 99)),
            row_group=None if rng.random() < 0.5 else 3,
            box=(0.1, 2.0, 1e22, float(row)) if rng.random() < 0.1 else None,
            error="gone" if rng.random() < 0.1 else None,
        )
        for row, kind in enumerate(kinds)
    ]


def slow_digest(images):
    """A fingerprint as it has always been made, from Python lists."""
    digest, table = hashlib.sha256(str(len(images)).encode()), images.masked().table
    for start in range(0, len(images), 65_536):
        part = table.slice(start, 65_536)
        for name in SCHEMA.names:
            digest.update(repr(part[name].to_pylist()).encode())
    return digest.hexdigest()


def test_digests_are_those_of_python_lists_of_all_values():
    rng = np.random.default_rng(0)
    for count in (*range(6), *rng.integers(6, 60, 40)):
        images = Collection.of(random_images(rng, count))
        assert images.digest() == slow_digest(images)
        assert images[1::2].digest() == slow_digest(images[1::2])
    long = collection([f"{number}.jpg" for number in range(131_075)])
    assert long.digest() == slow_digest(long)


def test_uris_are_changed_one_by_one_and_boxes_tell_places_apart():
    rng = np.random.default_rng(1)
    for count in (*range(4), *rng.integers(6, 60, 30)):
        images = random_images(rng, count)
        stored = Collection.of(images).masked()
        assert [image.uri for image in stored] == [masked(image.uri) for image in images]
        sources = ["s3://k:S@b/", "s3://b/y?token=S"]
        found = [image.uri for image in stored.unmasked(sources)]
        assert found == [unmasked(image.uri, sources) for image in stored]
        places = Collection.of(images).places.to_pylist()
        for image, place in zip(images, places, strict=True):
            alone = Collection.of([image]).places.to_pylist()
            assert [place] == alone
            assert image.box is None or place.endswith(f"\0{list(image.box)}")


def test_order_and_number_change_the_digest():
    images = Collection.of(ROWS)
    digests = {part.digest() for part in (images, images[::-1], images[:-1], images[:0])}
    assert len(digests) == 4


def test_the_digest_reaches_the_end_of_a_long_collection():
    images = collection([str(number) for number in range(65_600)])
    last = Collection.of([ImageFile(uri="/photos/65599", name="other")])
    assert Collection.joined([images[:-1], last]).digest() != images.digest()


# Leaving out


def test_the_same_images_are_meant_as_by_a_loop_over_all_their_names():
    rng = np.random.default_rng(0)
    parts = [
        "a",
        "b.jpg",
        "b",
        "ü.jpg",
        "u\u0308.jpg",
        ".hid",
        "..",
        "x.",
        "a b .jpg",
        " c",
        "d%20e",
    ]
    parts += ["", ".", "s3://k/b.jpg", "s3://k/d%20e", "d e", "x.tar.gz", "x.tar", "\tq.jpg", "q"]
    known = []
    for _ in range(600):
        drawn = rng.choice(parts, rng.integers(1, 4))
        known.append(str(rng.choice(["", "", "./", " ", "/"])) + "/".join(drawn))
    for _ in range(60):
        listed = rng.choice(known, rng.integers(1, 50)).tolist()
        wanted = set(rng.choice(known + parts, 12).tolist())
        meant = {normalized(name) for name in wanted}
        found = [meant.intersection(chain.from_iterable(forms(name))) for name in listed]
        flags, fitting = named_images(collection(listed), wanted)
        assert flags.tolist() == [bool(each) for each in found]
        assert fitting == set().union(*found)


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
    listed = {"a/x.jpg", "b/x.jpg", "x.png", "xx.jpg", "y.tar.gif"}
    assert set(names(without(collection(sorted(listed)), exclude))) == listed - out


def test_the_images_that_stay_keep_their_order_and_all_that_is_known():
    assert list(without(Collection.of(ROWS), {"a", "ü日"})) == [ROWS[1], *ROWS[3:]]


def test_leaving_out_every_image_leaves_an_empty_collection():
    assert list(without(collection(["a.jpg"]), {"a"})) == []


def test_exclusions_are_the_lines_without_blanks_and_surrounding_spaces(tmp_path):
    file = tmp_path / "names.txt"
    file.write_bytes("a.jpg\r\n\n  sub/b c.png \t\n   \nü日\na.jpg".encode())
    expected = {"a.jpg", "sub/b c.png", "ü日"}
    assert read_exclusions(str(file)) == expected
    assert read_exclusions(file.as_uri()) == expected


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_exclusions_of_any_program_leave_out_photos_of_any_other(tmp_path, encoding):
    """The first name of a file with a byte order mark too: a test photo must not train."""
    file = tmp_path / "names.txt"
    file.write_bytes("caf\u00e9.jpg\r\n./x/a\u2028b.jpg\r\nu\u0308\r\n c \r\n".encode(encoding))
    listed = ["cafe\u0301.jpg", "x/a\u2028b.jpg", "y/\u00fc.png", " c.jpg", "b.jpg", "a"]
    excluded = read_exclusions(str(file))
    assert excluded == {"caf\u00e9.jpg", "x/a\u2028b.jpg", "\u00fc", "c"}
    assert names(without(collection(listed), excluded)) == ["b.jpg", "a"]
    flags, fitting = named_images(collection(listed), excluded | {"none"})
    assert (flags.tolist(), fitting) == ([True, True, True, True, False, False], excluded)


def test_a_uri_is_left_out_by_the_name_that_it_encodes():
    listed = ["s3://b/c%20d.jpg?region=x", "s3://b/e.jpg"]
    assert names(without(collection(listed), {"c d.jpg"})) == listed[1:]
    assert names(without(collection(listed), {"c%20d"})) == listed[1:]


def test_an_empty_file_excludes_nothing(tmp_path):
    (tmp_path / "names.txt").write_bytes(b"\n \n")
    assert read_exclusions(str(tmp_path / "names.txt")) == set()


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("absent.txt", "No such file or directory"),
        ("folder", "Is a directory"),
        ("latin1.txt", "line 1 is not UTF-8"),
    ],
)
def test_a_file_of_exclusions_that_cannot_be_read_is_refused(tmp_path, name, reason):
    (tmp_path / "folder").mkdir()
    (tmp_path / "latin1.txt").write_bytes("café.jpg".encode("latin1"))
    file: Path = tmp_path / name
    with pytest.raises(InputError) as caught:
        read_exclusions(str(file))
    message = str(caught.value)
    assert message.startswith(f"--exclude {file}: ")
    assert reason in message
    assert message.endswith("; name a text file of image names, one a line")


# Drawing


def test_a_sample_is_drawn_without_repeats_in_order_and_by_its_seed():
    images = collection([f"{number:03}" for number in range(200)])
    drawn = names(sample(images, 50, seed=1))
    assert len(set(drawn)) == 50
    assert drawn == sorted(drawn)
    assert drawn == names(sample(images, 50, seed=1))
    assert drawn != names(sample(images, 50, seed=2))
    assert drawn != names(images)[:50]


def test_every_image_has_the_same_chance():
    images = collection([f"{number}" for number in range(10)])
    counts = dict.fromkeys(names(images), 0)
    for seed in range(1000):
        for name in names(sample(images, 3, seed)):
            counts[name] += 1
    # Binomial(1000, 0.3): standard deviation 14.5.
    assert all(abs(count - 300) < 75 for count in counts.values()), counts


@pytest.mark.parametrize(("count", "drawn"), [(0, 0), (3, 3), (4, 4), (9, 4)])
def test_images_that_cannot_be_had_are_not_drawn(count, drawn):
    images = sample(Collection.of(ROWS), count, seed=0)
    assert len(images) == drawn
    assert all(image.error is None for image in images)
