"""Files that are not as they were written are noticed, whichever bit it is."""

import pytest

from mmray.system.digests import damaged_files, digests_of
from mmray.system.folder import Folder

NAMES = ["a.bin", "empty", "sub/b.bin"]


@pytest.fixture
def folder(tmp_path):
    folder = Folder(str(tmp_path / "files"))
    for name, content in zip(NAMES, (bytes(range(256)) * 20, b"", b"x"), strict=True):
        folder.write(name, content)
    return folder


def test_sizes_and_digests_are_those_of_all_files_below_a_folder(folder):
    assert folder.sizes() == {"a.bin": 5120, "empty": 0, "sub/b.bin": 1}
    digests = digests_of(folder, NAMES)
    assert digests["empty"] == (0, "2d06800538d394c2")  # XXH3 of nothing, as published
    assert damaged_files(folder, digests) == []


@pytest.mark.parametrize("bit", [0, 7, 20_001, 8 * 5120 - 1])
def test_a_flipped_bit_is_noticed(folder, bit):
    digests = digests_of(folder, NAMES)
    content = bytearray(folder.read("a.bin"))
    content[bit // 8] ^= 1 << bit % 8
    folder.write("a.bin", content)
    assert damaged_files(folder, digests) == ["a.bin"]


def test_a_file_that_is_cut_or_missing_is_noticed_and_others_are_not(folder):
    digests = digests_of(folder, NAMES)
    folder.write("a.bin", folder.read("a.bin")[:-1])
    folder.delete("sub/b.bin")
    folder.write("another", b"")
    assert damaged_files(folder, digests) == ["a.bin", "sub/b.bin"]


def test_without_a_digest_only_the_size_is_compared(folder):
    folder.write("sub/b.bin", b"y")
    assert damaged_files(folder, {"sub/b.bin": [1, None]}) == []
    assert damaged_files(folder, {"sub/b.bin": [2, None]}) == ["sub/b.bin"]


def test_files_in_a_bucket_are_compared_too(bucket):
    folder = Folder("s3://bucket/files")
    folder.write("a.bin", b"abc")
    digests = digests_of(folder, ["a.bin"])
    assert damaged_files(folder, digests) == []
    (bucket / "files" / "a.bin").write_bytes(b"abd")
    assert damaged_files(folder, digests) == ["a.bin"]
