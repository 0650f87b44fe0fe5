"""Which images an index holds as what is listed changes, and what it finds."""

import os
from pathlib import Path

import numpy as np
import pytest

from mmray.images.collection import Collection, ImageFile
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.knn.faiss_library import faiss
from mmray.pipeline.named_indexes import current_index
from mmray.serving import search_index
from mmray.serving.catalog import FRESH, UNREADABLE, Catalog
from mmray.serving.compressed_index import CompressedIndex, digest_of
from mmray.serving.search_index import SearchIndex, write_codes, write_vectors
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.formats import write_json


def images(*names, folder="a", size=10):
    return Collection.of(
        [ImageFile(uri=f"/{folder}/{name}.jpg", name=f"{name}.jpg", size=size) for name in names]
    )


def with_descriptors(catalog, bad=()):
    """As if its fresh images had been described, those named bad in vain."""
    fresh = catalog.images.take(np.flatnonzero(catalog.rows == FRESH))
    why = ["broken" if image.name.removesuffix(".jpg") in bad else None for image in fresh]
    read = np.array([place for place, reason in enumerate(why) if reason is None], np.int64)
    return catalog.with_descriptors(read, why)


def names(catalog):
    return [image.name.removesuffix(".jpg") for image in catalog.readable()]


@pytest.fixture
def known():
    catalog, _ = with_descriptors(
        Catalog.empty().merged([("a", images("x", "y", "z"))], retry=False), bad="y"
    )
    return catalog


def test_of_a_first_list_all_images_are_fresh_and_those_that_are_read_get_dense_rows(known):
    assert known.rows.tolist() == [0, UNREADABLE, 1]
    assert names(known) == ["x", "z"]
    assert known.table["error"].to_pylist() == [None, "broken", None]


def test_only_what_is_new_or_has_changed_is_fresh_and_what_is_gone_goes(known):
    listed = Collection.joined([images("w"), images("x", size=11), images("z")])
    wanted = known.merged([("a", listed)], retry=False)
    assert wanted.rows.tolist() == [FRESH, FRESH, 1]
    catalog, origins = with_descriptors(wanted)
    assert names(catalog) == ["w", "x", "z"]
    assert origins.tolist() == [-1, -2, 1]


def test_sources_that_are_not_named_stay(known):
    wanted = known.merged([("b", images("v", folder="b"))], retry=False)
    catalog, origins = with_descriptors(wanted)
    assert names(catalog) == ["x", "z", "v"]
    assert origins.tolist() == [0, 1, -1]
    again = catalog.merged([("b", images("u", "v", folder="b"))], retry=False)
    assert names(with_descriptors(again)[0]) == ["x", "z", "u", "v"]


def test_an_image_of_two_sources_counts_once(known):
    wanted = known.merged([("b", images("x", "z"))], retry=False)
    assert wanted.rows.tolist() == [0, UNREADABLE, 1]
    twice = Catalog.empty().merged([("a", images("x")), ("b", images("x", "y"))], retry=False)
    assert len(twice) == 2


def rows(*names, uri="/x/p.parquet", group=0):
    return Collection.of(
        [
            ImageFile(uri=uri, name=name, offset=i, row_group=group, column="image")
            for i, name in enumerate(names)
        ]
    )


def test_rows_and_members_with_one_name_are_all_kept_and_known_again():
    listed = Collection.joined(
        [
            *(rows("a", "b", "a"), rows("a", "a", group=1)),
            Collection.of(
                [ImageFile(uri="/x/t.tar", name="a", size=9, offset=512 * i) for i in range(1, 5)]
            ),
        ]
    )
    catalog, origins = with_descriptors(Catalog.empty().merged([("x", listed)], retry=False))
    assert origins.tolist() == [-1 - i for i in range(9)]
    again = catalog.merged([("x", listed)], retry=False)
    assert again.rows.tolist() == list(range(9))
    # One row less, and one of another name: the others stay what they are.
    other = Collection.joined([rows("a", "c"), *(listed[i : i + 1] for i in range(3, 9))])
    assert catalog.merged([("x", other)], retry=False).rows.tolist() == [0, FRESH, *range(3, 9)]


def test_rows_of_a_file_that_has_changed_are_fresh_though_names_are_the_same():
    listed = Collection.joined([rows("a", "a"), rows("b", uri="/x/q.parquet")])
    catalog, _ = with_descriptors(Catalog.empty().merged([("x", listed)], retry=False))
    wanted = catalog.merged([("x", listed)], retry=False, changed={"/x/p.parquet"})
    assert wanted.rows.tolist() == [FRESH, FRESH, 2]


def test_an_index_that_kept_one_image_of_a_name_gets_the_others():
    """As an earlier version wrote it: what it has is not described again."""
    kept = Collection.joined([rows("a", "b")[:2]])
    catalog, _ = with_descriptors(Catalog.empty().merged([("x", kept)], retry=False))
    wanted = catalog.merged([("x", rows("a", "b", "a", "b"))], retry=False)
    assert wanted.rows.tolist() == [0, 1, FRESH, FRESH]


def test_an_image_whose_size_is_not_known_to_a_list_counts_once(known):
    wanted = known.merged([("l", images("x", "z", size=-1))], retry=False)
    assert wanted.rows.tolist() == [0, UNREADABLE, 1]
    larger = known.merged([("l", images("x", size=11))], retry=False)
    assert sorted(larger.rows.tolist()) == [FRESH, UNREADABLE, 1]


def test_credentials_of_an_index_are_neither_stored_nor_compared():
    def of(secret):
        return Collection.of([ImageFile(uri=f"s3://k:{secret}@b/x.jpg", name="x.jpg", size=1)])

    source = "s3://k:SECRET@b"
    catalog, _ = with_descriptors(Catalog.empty().merged([(source, of("SECRET"))], retry=False))
    stored = catalog.masked()
    assert "SECRET" not in str(stored.table.to_pylist())
    assert stored.merged([("s3://***@b", of("NEW"))], retry=False).rows.tolist() == [0]


def test_what_could_not_be_read_is_tried_again_only_if_that_is_asked_for(known):
    listed = [("a", images("x", "y", "z"))]
    assert known.merged(listed, retry=False).rows.tolist() == [0, UNREADABLE, 1]
    retried, origins = with_descriptors(known.merged(listed, retry=True))
    assert names(retried) == ["x", "y", "z"]
    assert retried.table["error"].to_pylist() == [None, None, None]
    assert origins.tolist() == [0, -1, 1]


def test_vectors_are_old_rows_and_whitened_new_ones(tmp_path):
    old, new = np.eye(3, 2, dtype=np.float32), np.full((2, 5), 3, np.float32)
    folder = Folder(str(tmp_path))
    write_vectors(
        folder, np.array([2, -2, 0, -1]), old=old, new=new, whiten=lambda rows: rows[:, :2] * 2
    )
    found = np.load(tmp_path / "vectors.npy")
    assert found.dtype == np.float32
    assert found.tolist() == [[0, 0], [6, 6], [1, 0], [6, 6]]


def test_no_index_of_a_name_is_none(tmp_path):
    assert current_index(Folder(str(tmp_path)), "images") is None


def clustered(n, d, rng):
    centres = rng.standard_normal((100, d))
    rows = centres[rng.integers(0, 100, n)] + 0.5 * rng.standard_normal((n, d))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_flat_index_finds_what_brute_force_finds():
    vectors = clustered(300, 16, np.random.default_rng(0))
    index = SearchIndex(images=None, vectors=vectors, compressed=None, about={}, model=None)
    found = index.nearest(vectors[:7], 20, probes=1)
    brute = np.argsort(
        -(vectors[:7].astype(float) @ vectors.T.astype(float)), axis=1, kind="stable"
    )
    assert found.ids.tolist() == brute[:, :20].tolist()
    assert index.nearest(vectors[:1], 1000, probes=1).ids.shape == (1, 300)


@pytest.fixture(scope="module")
def compressed():
    vectors = clustered(10_000, 8, np.random.default_rng(1))
    return CompressedIndex.of(vectors)


def test_codes_propose_and_vectors_decide(compressed):
    vectors = compressed.database
    found, exact = (
        compressed.search(vectors[:50], 10, probes=16),
        nearest_neighbors(vectors, vectors[:50], 10),
    )
    agree = [len(np.intersect1d(*pair)) for pair in zip(found.ids, exact.ids, strict=True)]
    assert np.mean(agree) > 9.5
    cosines = np.einsum("qkd,qd->qk", vectors[found.ids], vectors[:50])
    np.testing.assert_allclose(found.similarities, cosines, atol=1e-6)
    assert (np.diff(found.similarities, axis=1) <= 0).all()


def test_few_cells_are_no_reason_for_few_results(compressed):
    found = compressed.search(compressed.database[:3], 2000, probes=1)
    assert all(len(np.unique(ids)) == 2000 for ids in found.ids)


def test_a_compressed_index_is_the_same_when_it_is_read(compressed):
    again = CompressedIndex.from_bytes(compressed.to_bytes(), compressed.database)
    queries = compressed.database[:5]
    before, after = (each.search(queries, 10, probes=4) for each in (compressed, again))
    assert np.array_equal(before.ids, after.ids)
    # 8 bytes of codes, 8 of the id, and the cells.
    assert len(compressed.to_bytes()) < 10_000 * 20


def test_too_few_items_are_refused():
    with pytest.raises(ValueError, match="9 items are too few for codes"):
        CompressedIndex.of(np.eye(9, 4, dtype=np.float32))
    with pytest.raises(ValueError, match="probes must be at least 1, got 0"):
        CompressedIndex(database=np.eye(2, dtype=np.float32), index=None).search(
            np.eye(2, dtype=np.float32), 1, probes=0
        )


# Files of an index


@pytest.fixture
def stored(tmp_path, compressed):
    """A compressed index in a folder, as the job writes it."""
    vectors = compressed.database
    listed = [ImageFile(uri=f"/a/{i}.jpg", name=f"{i}.jpg", size=9) for i in range(len(vectors))]
    wanted = Catalog.empty().merged([("a", Collection.of(listed))], retry=False)
    catalog, _ = with_descriptors(wanted)
    folder, content = Folder(str(tmp_path)), compressed.to_bytes()
    folder.write_table("images.parquet", catalog.table)
    np.save(tmp_path / "vectors.npy", vectors)
    folder.write("ivf-pq.faiss", content)
    write_json(folder, "index.json", {"longest_side": 96, "compressed_sha256": digest_of(content)})
    return folder


def refused_by_name(folder, file, words):
    with pytest.raises(InputError, match=rf"{file}.*{words}") as caught:
        SearchIndex.read(folder)
    assert len(str(caught.value)) < 600


def test_a_whole_index_is_read_also_one_without_a_checksum(stored):
    first = SearchIndex.read(stored)
    write_json(stored, "index.json", {"longest_side": 96})  # as earlier versions wrote it
    second = SearchIndex.read(stored)
    queries = np.array(first.vectors[:3])
    found = [each.nearest(queries, 5, probes=4).ids.tolist() for each in (first, second)]
    assert found[0] == found[1]


def test_damaged_codes_never_reach_faiss_in_this_process(stored):
    content = bytearray(stored.read("ivf-pq.faiss"))
    content[40:80] = bytes([255]) * 40
    stored.write("ivf-pq.faiss", bytes(content))
    refused_by_name(stored, "ivf-pq.faiss", "checksum")
    write_json(stored, "index.json", {"longest_side": 96})
    refused_by_name(stored, "ivf-pq.faiss", "faiss cannot read it")


def test_vectors_that_do_not_fit_the_images_are_refused(stored):
    vectors = np.load(stored.location("vectors.npy"))
    whole = stored.read("vectors.npy")
    for rows, words in (
        (vectors[:-1], "9999 vectors of 10000 images"),
        (vectors.astype(np.float64), "float64"),
        (np.asfortranarray(vectors), "an array of shape"),
        (vectors[0], "an array of shape"),
    ):
        np.save(stored.location("vectors.npy"), rows)
        refused_by_name(stored, "vectors.npy", words)
    stored.write("vectors.npy", whole[:-100])  # it would end the process where it is mapped
    refused_by_name(stored, "vectors.npy", "make it anew")
    Path(stored.location("ivf-pq.faiss")).unlink()
    vectors[7, 3] = np.nan
    np.save(stored.location("vectors.npy"), vectors)
    refused_by_name(stored, "vectors.npy", "row 7 holds NaN")


def test_vectors_that_are_cut_while_an_index_is_in_use_do_no_harm(stored):
    """Looking at a mapped page that is not there any more would end the process."""
    index = SearchIndex.read(stored)
    queries = np.array(index.vectors[:3])
    os.truncate(stored.location("vectors.npy"), 100)
    assert index.nearest(queries, 1, probes=4).ids.tolist() == [[0], [1], [2]]


def test_vectors_that_are_large_are_mapped(stored, monkeypatch):
    assert not isinstance(SearchIndex.read(stored).vectors, np.memmap)
    monkeypatch.setattr(search_index, "_IN_MEMORY", 1000)
    index = SearchIndex.read(stored)
    assert isinstance(index.vectors, np.memmap)
    assert index.nearest(np.array(index.vectors[:1]), 1, probes=4).ids.tolist() == [[0]]


def test_codes_are_written_with_their_checksum(stored):
    before = stored.read("ivf-pq.faiss")
    stored.write("ivf-pq.faiss", b"")
    assert write_codes(stored, 0, "cuda", 1) == digest_of(before)
    assert stored.read("ivf-pq.faiss") == before


def test_codes_of_too_few_items_are_refused_and_not_searched_for_ever(compressed):
    index = faiss.deserialize_index(np.frombuffer(compressed.to_bytes(), np.uint8))
    index.reset()
    index.ntotal = len(compressed.database)
    again = CompressedIndex(database=compressed.database, index=index)
    with pytest.raises(InputError, match=r"the compressed index lacks items .*make it anew"):
        again.search(compressed.database[:1], 1, probes=1)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\xff" * 5000, "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"[1]", "a list, not an object"),
        (b'{"longest_side": NaN}', "NaN is no number of JSON"),
        (b'{"longest_side": 1, "longest_side": 2}', "'longest_side' is there twice"),
        (b'{"longest_side": "' + b"x" * 5000 + b'"}', "longest_side is 'xxx"),
        (b'{"longest_side": ' + b"9" * 5000 + b"}", "ValueError"),
        (b"{}", "longest_side is missing"),
    ],
)
def test_a_damaged_description_is_refused_without_its_content(stored, content, words):
    stored.write("index.json", content)
    refused_by_name(stored, "index.json", words)


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"index": 5}', b'{"index": "../../x"}'])
def test_a_damaged_name_of_an_index_is_refused(tmp_path, content):
    Folder(str(tmp_path / "indexes")).write("images.json", content)
    with pytest.raises(InputError, match=r"images\.json: .*make the index anew"):
        current_index(Folder(str(tmp_path)), "images")
