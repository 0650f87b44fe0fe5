"""`jobs/search.py` as a user runs it: index photos, add some, find what is like one of them."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pyarrow import fs

from mmray.serving.encoder import ImageEncoder
from tests.end_to_end.small_job import ONE, cells, run_here
from tests.made.exported import model_folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return model_folder(tmp_path_factory.getbasetemp())


def save_photos(folder, *names, seed=0):
    rng = np.random.default_rng(seed)
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        size = (48, 64, 3) if len(name) % 2 else (64, 40, 3)
        noise = rng.integers(0, 60, size) + rng.integers(0, 190, (1, 1, 3))
        Image.fromarray(noise.astype(np.uint8)).save(path)


@pytest.fixture
def photos(tmp_path, monkeypatch):
    """Photos as people have them, in a folder that is the current one."""
    folder = tmp_path / "my photos"
    save_photos(folder, *(f"{n}.png" for n in range(12)), "a b/Füße (1).png", "a b/<i>&'.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8\xff cut off")
    monkeypatch.chdir(tmp_path)
    return folder


def run(*arguments):
    """Exit status, rows of the table, and what was said, of the job with these arguments."""
    done = run_here("search", *arguments)
    return done.returncode, cells(done.stdout), done.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_an_index_is_made_added_to_and_searched(photos, model, tmp_path):
    storage, left_out = tmp_path / "runs", tmp_path / "left out.txt"
    save_photos(photos, "cafe\u0301.png", "x\u2028y.png")  # the first as macOS writes it
    left_out.write_bytes("\ufeffcaf\u00e9\r\nx\u2028y.png\r\n".encode())
    make = ("index", "--model", model, "--images", photos, "--storage", storage, *ONE)
    make += ("--exclude", left_out)
    status, rows, said = run(*make)
    assert "list: 2 images left out by the 2 names of --exclude" in said
    assert (status, rows[-1]) == (0, ["mmray", "flat", "14", "1", "1,280"])
    (first,) = storage.glob("index-*")
    listed = pq.read_table(first / "images.parquet").to_pylist()
    names = [row["name"] for row in listed if row["row"] >= 0]
    vectors = np.load(first / "vectors.npy")
    own = ImageEncoder.load(model).encode([str(photos / name) for name in names])
    np.testing.assert_allclose(vectors, own, atol=1e-4)

    (page,) = (storage / "reports").glob("*.html")
    assert "broken.jpg</bdi>" in page.read_text(), "what could not be read"

    # A query finds itself, then what brute force finds, and the page shows all.
    query = photos / "a b" / "Füße (1).png"
    status, rows, said = run("query", query, "--storage", storage, "--top", 5)
    assert status == 0
    asked = names.index("a b/Füße (1).png")
    brute = np.argsort(-(vectors @ vectors[asked]), kind="stable")[:5]
    assert [row[0] for row in rows[1:]] == [str(photos / names[item]) for item in brute]
    assert [row[1] for row in rows[1:]] == ["1", "2", "3", "4", "5"]
    assert float(rows[1][2]) == pytest.approx(1, abs=1e-4)
    page = (tmp_path / "search.html").read_text()
    assert page.count("data:image/jpeg") == 6
    assert "page: " + str(tmp_path / "search.html") in said

    # Again: nothing is described. With three more, only these are.
    before = {path.name for path in storage.glob("extract-*")}
    assert "up to date" in run(*make)[2]
    save_photos(photos, "new/1.png", "new/2.png", "new/3.png", seed=1)
    (photos / "3.png").unlink()
    status, rows, _ = run(*make)
    assert (status, rows[-1]) == (0, ["mmray", "flat", "16", "1", "1,280"])
    (added,) = {path.name for path in storage.glob("extract-*")} - before
    assert len(pq.read_table(storage / added / "images.parquet")) == 3
    (second,) = storage.glob("index-*")
    assert second != first
    table = pq.read_table(second / "images.parquet").to_pylist()
    rows_now = {row["name"]: row["row"] for row in table if row["row"] >= 0}
    kept = [name for name in names if name != "3.png"]
    now = np.load(second / "vectors.npy")
    assert np.array_equal(now[[rows_now[name] for name in kept]], vectors[_places(names, kept)])

    # An index of another name is another one, though it has the same images.
    status, rows, _ = run(*make, "--name", "other")
    assert (status, rows[-1]) == (0, ["other", "flat", "16", "1", "1,280"])
    assert len([*storage.glob("index-*")]) == 2

    # A part of an image is another query; a box outside of it is none.
    box = ("--box", 0, 0, 20, 30)
    status, rows, _ = run("query", query, *box, "--storage", storage, "--page", "part.html")
    assert status == 0
    assert float(rows[1][2]) < 0.999
    status, _, said = run("query", query, "--box", 90, 90, 99, 99, "--storage", storage)
    assert (status, "holds no pixel" in said) == (2, True)

    # What cannot be read is named.
    for name, words in (("broken.jpg", "cannot be read as an image"), ("none.jpg", "")):
        status, _, said = run("query", photos / name, "--storage", storage)
        (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert (status, name in sentence, words in sentence) == (2, True, True), sentence

    # A bit that flipped is noticed; the same command makes the index anew.
    damaged = bytearray((second / "vectors.npy").read_bytes())
    damaged[-1] ^= 1
    (second / "vectors.npy").write_bytes(damaged)
    status, _, said = run("query", query, "--storage", storage)
    assert (status, "--name mmray: damaged files (vectors.npy)" in said) == (2, True)
    status, rows, said = run(*make)
    assert (status, rows[-1]) == (0, ["mmray", "flat", "16", "1", "1,280"])
    assert "index: vectors.npy damaged or missing: the index is made anew" in said
    assert run("query", query, "--storage", storage)[0] == 0

    # Another model does not belong in this index, but the name of a network is one to search with.
    untrained = (*make[:1], "--model", "efficientnet_lite0", *make[3:])
    status, _, said = run(*untrained)
    assert (status, "made with another model" in said) == (2, True)
    status, rows, _ = run(*untrained, "--name", "before")
    assert (status, rows[-1]) == (0, ["before", "flat", "16", "1", "1,280"])
    status, rows, _ = run("query", query, "--storage", storage, "--name", "before")
    assert (status, rows[1][0]) == (0, str(query))
    assert float(rows[1][2]) == pytest.approx(1, abs=1e-4)


def _places(names, wanted):
    return [names.index(name) for name in wanted]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("query", "x.jpg"), "--name mmray: no such index under --storage"),
        (("query",), "no image to search with"),
        (("query", "x.jpg", "--top", "0"), "--top 0: choose a value from 1"),
        (("index", "--images", "my photos"), "--model: no run has been made under --storage"),
        (("index", "--images", "my photos", "--model", ""), "--model is missing"),
        (("index", "--model", "none", "--images", "my photos"), "none: not a model's folder"),
        (("index", "--model", "m"), "--images is missing"),
        (("index", "--model", "m", "--images", "x", "--name", "a/b"), "--name 'a/b'"),
    ],
)
@pytest.mark.usefixtures("photos")
def test_what_cannot_be_used_is_refused_with_a_sentence(arguments, words):
    status, _, said = run(*arguments)
    (sentence,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert (status, words in sentence) == (2, True), sentence


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_where_no_image_can_be_read_there_is_no_index(photos, model, tmp_path):
    for path in photos.rglob("*.png"):
        path.unlink()
    status, _, said = run("index", "--model", model, "--images", photos, "--storage", tmp_path)
    assert status == 2
    assert "none of the 1 images can be read, the first of them" in said


def parquet_of(folder, names, *, seed, sizes=(48, 64, 3)):
    """Write images as rows of a Parquet file, in row groups of five."""
    rng, rows = np.random.default_rng(seed), []
    for _ in names:
        pixels = (rng.integers(0, 60, sizes) + rng.integers(0, 190, (1, 1, 3))).astype(np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "BMP")  # of one size, whatever it shows
        rows.append(file.getvalue())
    pq.write_table(pa.table({"name": names, "image": rows}), folder / "p.parquet", row_group_size=5)
    return rows


@pytest.mark.usefixtures("ray_cluster")
def test_images_are_told_apart_by_their_place_and_credentials_are_kept_nowhere(
    model, tmp_path, s3, monkeypatch
):
    (tmp_path / "photos").mkdir()
    encoder, names = ImageEncoder.load(model), ["a.jpg", "b.jpg", "a.jpg", "c.jpg"] * 3
    bucket = fs.FileSystem.from_uri(f"s3://test:test@places{s3}&allow_bucket_creation=true")[0]
    bucket.create_dir("places")

    def uploaded(*, seed):
        rows = parquet_of(tmp_path / "photos", names, seed=seed)
        with bucket.open_output_stream("places/x/p.parquet") as file:
            file.write((tmp_path / "photos" / "p.parquet").read_bytes())
        return rows

    def index(secret):
        source = f"s3://KEY:{secret}@places/x{s3}"
        storage = ("--storage", tmp_path / "runs")
        done = run_here("search", "index", "--model", model, "--images", source, *storage, *ONE)
        assert "SECRET" not in done.stdout + done.stderr
        for file in (tmp_path / "runs").rglob("*"):
            assert not file.is_file() or b"SECRET" not in file.read_bytes(), file
        return cells(done.succeeded.stdout)[-1]

    def found(rows):
        (folder,) = (tmp_path / "runs").glob("index-*")
        vectors = np.load(folder / "vectors.npy")
        np.testing.assert_allclose(vectors, encoder.encode(rows), atol=1e-4)

    rows = uploaded(seed=0)
    assert index("SECRET")[:4] == ["mmray", "flat", "12", "0"]
    found(rows)
    # Other rows of the same names and sizes are noticed, and other credentials are used.
    rows = uploaded(seed=1)
    assert index("SECRET2")[:4] == ["mmray", "flat", "12", "0"]
    found(rows)

    (tmp_path / "query.bmp").write_bytes(rows[7])
    monkeypatch.chdir(tmp_path)
    status, table, _ = run("query", "query.bmp", "--storage", "runs", "--top", 12)
    assert status == 0
    places = [row[0].partition("?")[2].partition("#")[2] for row in table[1:]]
    assert places[0] == "c.jpg (row group 1, row 2)"
    assert len(set(places)) == 12
    page = (tmp_path / "search.html").read_text()
    assert all(place in page for place in places)
    assert "SECRET" not in page


@pytest.mark.usefixtures("ray_cluster")
def test_what_is_not_opened_is_refused_with_a_sentence(model, tmp_path):
    save_photos(tmp_path, "a.png")
    (tmp_path / "l.txt").write_text("abfs://c@account/x.jpg\ns3://b/x.jpg?endpoint_override=h\n")
    storage = ("--storage", tmp_path / "runs", *ONE)
    for flags in (
        ("--images", "abfs://c@account/x", "--model", model),
        ("--images", tmp_path / "l.txt", "--model", model),
        ("--images", tmp_path, "--model", "abfs://c@account/model"),
        ("--images", tmp_path, "--model", model, "--exclude", "hdfs://host/x"),
    ):
        said = run_here("search", "index", *storage, *flags).error
        assert "only local files and files in buckets (s3:// and gs://) are read" in said
    said = run_here("search", "index", "--model", model, "--images", "x", "--storage", "abfs://c@a")
    assert "only local files and files in buckets" in said.error
