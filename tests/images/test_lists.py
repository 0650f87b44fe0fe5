"""A list as tables names the files that it names one by one."""

import numpy as np
import pytest

from mmray.images import lists
from mmray.images.collection import Collection, ImageFile

PARTS = [
    *("a", "b.jpg", "ü.jpg", ".", "..", "", "...", ".x", "x.", " y", "it's", "back\\s", "t\tt"),
    *("a:b", "k@h", "q?x", "f#g", "p%20q", "n=1&key=2", "z;w", "~", "\x7f", "x.tar.jpg"),
]
STARTS = ["", "/", "./", "//", "s3://", "gs://", "gcs://", "S3://", "file:///", "http://", "s3:/"]
ARCHIVES = ["a.tar", "b/c.TAR", "d.parquet", "", "  ", None]


def in_blocks(uri, entries):
    """All files that are yielded, one by one."""
    found = lists.in_blocks(uri, entries)
    return [file for each in found for file in (each if isinstance(each, Collection) else [each])]


def random_entries(rng, count, others=()):
    drawn = [
        str(rng.choice(STARTS)) + "/".join(rng.choice(PARTS, rng.integers(1, 4)))
        for _ in range(count)
    ]
    for other in others:
        drawn.insert(int(rng.integers(0, count)), other)
    return [entry if entry is None or rng.random() < 0.9 else f" {entry} " for entry in drawn]


@pytest.mark.parametrize("uri", ["/data/list.txt", "list.txt", "/l.txt", "s3://b/l.txt"])
@pytest.mark.parametrize("block", [7, 65_536])
def test_a_list_in_blocks_names_the_same_files_in_the_same_order(uri, block, monkeypatch):
    monkeypatch.setattr(lists, "_BLOCK", block)
    rng = np.random.default_rng(block)
    for count in (0, 1, *rng.integers(2, 80, 40)):
        others = () if rng.random() < 0.7 or count == 0 else rng.choice(ARCHIVES, 2).tolist()
        entries = random_entries(rng, count, others)
        assert in_blocks(uri, entries) == list(lists.listed(uri, entries))


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("part", PARTS)
def test_every_name_is_the_same_file_alone(start, part):
    for entry in (start + part, f"{start}b/{part}", f"{start}b/{part}/c.jpg", f"{start}{part}.jpg"):
        assert in_blocks("/data/l.txt", [entry]) == list(lists.listed("/data/l.txt", [entry]))


def test_a_list_without_archives_becomes_tables_and_archives_stay_apart():
    (found,) = lists.in_blocks("/l.txt", ["a.jpg", "ü.jpg", "/b.jpg"])
    assert isinstance(found, Collection)
    assert [image.uri for image in found] == ["/a.jpg", "/ü.jpg", "/b.jpg"]
    assert all(
        isinstance(file, ImageFile) for file in lists.in_blocks("/l.txt", ["a.jpg", "b.tar"])
    )
