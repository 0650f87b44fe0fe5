"""The server of `mmray serve`, asked over HTTP: what it finds, what it refuses, what it keeps."""

import http.client
import io
import json
import re
import signal
import socket
import subprocess
import tarfile
import threading
import time
from contextlib import closing
from urllib.parse import quote

import numpy as np
import pytest
from PIL import ExifTags, Image

from mmray.config.tools import QueryConfig, ServeConfig
from mmray.evaluation.benchmarks.labelled_set import labelled_set
from mmray.images.decoding import decode, load_image
from mmray.images.image_formats import box_as_stored, upright_box
from mmray.pipeline.recipes import search as query_recipe
from mmray.pipeline.recipes import serve
from mmray.serving.live import limits
from mmray.serving.live.access import HEADERS, Guard
from mmray.serving.live.searching import Query
from mmray.serving.live.thumbnails import Thumbnails
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.processes import of_module
from tests.made.bad_images import _png, bad_files, encoded, scene
from tests.made.exported import SIDE, model_folder, photos
from tests.made.live_index import make_index, write_files

TOKEN = "a-token-of-the-tests"
LARGEST = 1 << 20


def jpeg(shift, size=(160, 120), **options):
    return encoded(np.roll(scene(*size), shift, 1), "JPEG", **options)


class Client:
    """Requests to a server, each on a connection of its own."""

    def __init__(self, port, headers=None):
        self.port, self.headers = port, headers or {}

    def ask(self, path, body=None, method=None, **headers):
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            given = self.headers | {name.replace("_", "-"): text for name, text in headers.items()}
            method = method or ("GET" if body is None else "POST")
            connection.request(method, path, body, given)
            answer = connection.getresponse()
            answer.content = answer.read()
            return answer

    def told(self, path, body=None, status=200):
        answer = self.ask(path, body)
        assert answer.status == status, answer.content
        return json.loads(answer.content)

    def found(self, path, body=None):
        """The numbers and the similarities of the first index."""
        results = self.told(path, body)["indexes"][0]["results"]
        return [hit["id"] for hit in results], [hit["similarity"] for hit in results]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return tmp_path_factory.getbasetemp()


@pytest.fixture(scope="module")
def place(tmp_path_factory, base):
    """A storage with two indexes that share most photos: one of a folder, one of a tar file."""
    place = tmp_path_factory.mktemp("live")
    files = {f"{i}.png": photo for i, photo in enumerate(photos())}
    files |= {"near.jpg": jpeg(30, quality=95), "nearer.jpg": jpeg(30, quality=94)}
    folder = write_files(place / "photos", files)
    with tarfile.open(place / "more.tar", "w") as tar:
        for name, content in {"in-tar.png": photos()[0], "other.jpg": jpeg(90)}.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    storage = Folder(str(place / "runs"))
    make_index(storage, "mmray", folder, model_folder(base))
    make_index(storage, "tarred", place / "more.tar", model_folder(base))
    return place


def served(place, *, token=None, **settings):
    """A server in a thread; yields its port and the live search."""
    config = ServeConfig(storage=str(place / "runs"), port=0, **settings)
    live = serve.live_search(Folder(config.storage), config)
    with serve._listener(config) as listener:
        port = listener.getsockname()[1]
        hosts = serve._hosts(config.host, port)
        server = serve.server_of(Guard(live.app(), token=token, hosts=hosts, cookie="mmray"))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        yield port, live
        server.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def running(place):
    yield from served(place, compare="tarred", max_megabytes=1, upload_seconds=0.5)


@pytest.fixture(scope="module")
def client(running):
    return Client(running[0])


# What is found


@pytest.mark.parametrize("box", [None, (10.0, 20.0, 90.0, 110.0)])
def test_a_search_finds_what_the_query_job_finds(client, place, tmp_path, box):
    photo = tmp_path / "asked.jpg"
    photo.write_bytes(jpeg(31, quality=90))
    table = query_recipe.run(
        QueryConfig(
            query=(str(photo),),
            storage=str(place / "runs"),
            box=box,
            top=4,
            page=str(tmp_path / "page.html"),
        )
    )
    corners = "" if box is None else "&box=" + ",".join(map(str, box))
    results = client.told(f"/api/search?top=4{corners}", photo.read_bytes())["indexes"][0]
    expected = re.findall(r"\| (\S+) +\| +\d+ \| +(-?\d\.\d+) \|", table)
    assert len(expected) == 4
    found = [(hit["location"], f"{hit['similarity']:.4f}") for hit in results["results"]]
    assert found == expected


def test_the_box_changes_what_is_found(client):
    whole = client.found("/api/search", jpeg(31))
    assert client.found("/api/search?box=0,0,40,40", jpeg(31)) != whole


def test_similar_is_a_search_with_the_stored_descriptor(client, running):
    index = running[1].indexes[0].index
    near = index.nearest(index.vectors[3:4], 5, probes=1)
    ids, similarities = client.found("/api/similar/3?top=5")
    assert ids == near.ids[0].tolist()
    assert similarities == near.similarities[0].tolist()
    assert ids[0] == 3


def test_many_searches_at_once_are_answered_as_if_alone(client):
    asked = [jpeg(7 * i, size=(160 - i % 3, 120)) for i in range(12)]
    alone = [client.found("/api/search?top=3", each) for each in asked]
    together = [None] * len(asked)

    def ask(i):
        together[i] = client.found("/api/search?top=3", asked[i])

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(len(asked))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [ids for ids, _ in together] == [ids for ids, _ in alone]
    for (_, ours), (_, theirs) in zip(together, alone, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)


def test_photos_of_a_second_index_have_numbers_of_their_own(client):
    first, second = client.told("/api/search", jpeg(90))["indexes"]
    assert {hit["id"] for hit in first["results"]} == set(range(7))
    assert {hit["id"]: hit["name"] for hit in second["results"]} == {
        7: "in-tar.png",
        8: "other.jpg",
    }
    assert client.told("/api/similar/3")["indexes"][1]["results"] is None
    assert client.told("/api/similar/8")["indexes"][0]["results"] is None
    assert client.ask("/image/7").content == photos()[0]


def test_near_duplicates_are_told_by_thumbnail_and_descriptor(client, running):
    names = running[1].photos.images.table["name"].to_pylist()
    near, nearer = names.index("near.jpg"), names.index("nearer.jpg")
    asked = "&".join(f"id={i}" for i in range(9))
    groups = client.told(f"/api/near-duplicates?{asked}")["groups"]
    assert groups[str(nearer)] == groups[str(near)] == min(near, nearer)
    alike = [number for number, first in groups.items() if first == groups[str(near)]]
    assert sorted(alike) == sorted([str(near), str(nearer)])
    assert len(groups) == 7  # those that the first index holds


# Files


def test_files_and_thumbnails_are_those_of_the_photos(client, place):
    answer = client.ask("/image/0")
    assert (answer.content, answer.headers["Content-Type"]) == (photos()[0], "image/png")
    small = client.ask("/thumbnail/0")
    with Image.open(io.BytesIO(small.content)) as image:
        assert (image.format, image.size) == ("JPEG", (120, 90))
    assert small.headers["Cache-Control"] == "no-store"
    version = re.search(r'data-version="(\w+)"', client.ask("/").content.decode())[1]
    assert "max-age" in client.ask(f"/thumbnail/0?v={version}").headers["Cache-Control"]


@pytest.mark.parametrize("folder", ["image", "thumbnail", "api/similar"])
@pytest.mark.parametrize(
    "name",
    [
        *("9", "-1", "10000000000000000000000", "0.5", "", "0%00", "0/..", "photos/0.png"),
        *("../0", "..%2f..%2fetc%2fpasswd", "%2fetc%2fpasswd", "file:%2f%2f%2fetc%2fpasswd"),
    ],
)
def test_nothing_but_the_photos_of_the_index_has_a_url(client, folder, name):
    answer = client.ask(f"/{folder}/{name}")
    assert answer.status in (400, 404)
    assert b"root:" not in answer.content


def test_a_file_that_is_replaced_by_another_kind_is_not_served(tmp_path, base):
    folder = write_files(tmp_path / "photos", {"a.png": photos()[0], "b.png": photos()[1]})
    make_index(Folder(str(tmp_path / "runs")), "mmray", folder, model_folder(base))
    (folder / "a.png").write_bytes(b"a secret")
    (folder / "b.png").unlink()
    for port, _ in served(tmp_path):
        client = Client(port)
        for number in (0, 1):
            assert client.ask(f"/image/{number}").status == 404
            assert client.ask(f"/thumbnail/{number}").status == 404
        assert b"secret" not in client.ask("/image/0").content
        assert client.ask("/api/label?right=0", jpeg(0)).status == 404


def test_only_the_latest_thumbnails_stay_in_memory(running):
    live = running[1]
    made = Thumbnails(live.photos, live._pictures, max_pixels=10**6)
    first, second, third = (len(made.make(number).jpeg) for number in (0, 1, 2))
    room = first + max(second, third)
    small = Thumbnails(live.photos, live._pictures, max_pixels=10**6, kept=room)
    for number in (0, 1, 0, 2):
        small.make(number)
    assert [small.kept(number) is not None for number in (0, 1, 2)] == [True, False, True]


# What is refused


@pytest.mark.parametrize("name", ["error-page.jpg", "empty.jpg", "truncated-png.png"])
def test_what_is_no_photo_gets_a_sentence(client, name):
    data, reason = bad_files()[name]
    assert reason in client.told("/api/search", data, status=400)["error"]


def test_a_bomb_is_not_decoded(client):
    data, _ = bad_files()["huge-claim.png"]
    assert "30000 x 30000 pixels" in client.told("/api/search", data, status=400)["error"]
    flat = _png((8000, 8000), 8, 2, b"\0")
    assert "a decompression bomb" in client.told("/api/search", flat, status=400)["error"]


@pytest.mark.parametrize("arguments", ["top=0", "top=501", "top=x", "box=1,2,3", "box=9,9,1,1"])
def test_impossible_arguments_get_a_sentence(client, arguments):
    assert client.told(f"/api/search?{arguments}", jpeg(0), status=400)["error"]


def test_a_box_beside_the_photo_gets_a_sentence(client):
    told = client.told("/api/search?box=900,900,950,950", jpeg(0), status=400)
    assert "holds no pixel" in told["error"]


def raw(port, *parts, pause=0.0):
    """Send bytes on a connection, and return the answer of the server."""
    with closing(socket.create_connection(("127.0.0.1", port), 20)) as connection:
        for part in parts:
            connection.sendall(part)
            time.sleep(pause)
        answer = b""
        while chunk := connection.recv(65_536):
            answer += chunk
            if b"\r\n\r\n" in answer:
                break
        return answer


def head(port, *lines):
    return "\r\n".join(
        ["POST /api/search HTTP/1.1", f"Host: 127.0.0.1:{port}", *lines, "", ""]
    ).encode()


def test_a_body_that_is_too_large_is_not_read_to_its_end(client):
    announced = raw(client.port, head(client.port, f"Content-Length: {LARGEST + 1}"))
    assert announced.startswith(b"HTTP/1.1 413")
    chunk = b"40000\r\n" + bytes(0x40000) + b"\r\n"
    streamed = raw(client.port, head(client.port, "Transfer-Encoding: chunked"), *[chunk] * 5)
    assert streamed.startswith(b"HTTP/1.1 413")


def test_a_client_that_is_too_slow_is_told_so(client):
    start = time.monotonic()
    parts = [head(client.port, "Content-Length: 1000"), b"\xff\xd8\xff"]
    assert raw(client.port, *parts).startswith(b"HTTP/1.1 408")
    assert time.monotonic() - start < 10


def test_a_connection_whose_headers_do_not_come_is_closed(client, monkeypatch):
    monkeypatch.setattr(limits, "HEAD_SECONDS", 0.3)
    assert raw(client.port, b"GET / HTTP/1.1\r\n") == b""
    assert raw(client.port, b"GET / HTTP/1.1\r\n", b"X-A: b\r\n", pause=0.05) == b""


def test_a_search_too_many_is_told_to_try_again(running, client, monkeypatch):
    live = running[1]
    monkeypatch.setattr(live._searches, "_free", 0)
    answer = client.ask("/api/similar/0")
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert client.ask("/api/search", jpeg(0)).status == 503
    monkeypatch.undo()
    assert client.ask("/api/similar/0").status == 200
    monkeypatch.setattr(live._bodies, "_room", 100)
    assert client.ask("/api/search", jpeg(0)).status == 503


def test_slots_and_room_are_free_again_after_every_kind_of_end(running, client):
    live = running[1]
    before = live._bodies._room, live._searches._free
    for body in (jpeg(0), b"no photo", bytes(LARGEST + 1)):
        client.ask("/api/search", body if len(body) < LARGEST else iter([body]))
    raw(client.port, head(client.port, "Content-Length: 1000"), b"abc")
    client.ask("/image/0")
    client.ask("/image/99")
    assert (live._bodies._room, live._searches._free) == before
    assert live._files.files._free == 8


def test_a_search_that_fails_does_not_fail_those_beside_it(running):
    live = running[1]
    searcher, encoder = live.searcher, live.indexes[0].encoder
    pixels = decode(jpeg(3), longest_side=SIDE).pixels
    queries = [Query([pixels, 0], 2), Query([np.zeros((0, 5, 3), np.uint8), 0], 2)]
    searcher._answer(queries)
    np.testing.assert_allclose(
        queries[0].found.result()[0].similarities[0],
        live.indexes[0].index.nearest(encoder.describe([pixels]), 2, probes=1).similarities[0],
        atol=1e-5,
    )
    assert queries[1].found.exception() is not None


# Who may ask


@pytest.mark.parametrize("host", ["evil.example:{port}", "127.0.0.1", "localhost:1", ""])
def test_another_name_of_the_server_is_refused(client, host):
    answer = client.ask("/", Host=host.format(port=client.port))
    assert answer.status == 421


def test_pages_of_other_sites_are_refused(client):
    evil = {"Origin": "http://evil.example"}
    assert client.ask("/api/label", b"", **evil).status == 403
    assert client.ask("/image/0", Sec_Fetch_Site="cross-site").status == 403
    assert client.ask("/image/0", Sec_Fetch_Site="same-site").status == 403
    assert client.ask("/", Sec_Fetch_Site="cross-site").status == 200  # a link to the page
    own = f"http://127.0.0.1:{client.port}"
    assert (
        client.ask("/api/search", jpeg(0), Origin=own, Sec_Fetch_Site="same-origin").status == 200
    )


def test_every_answer_has_the_headers_that_keep_pages(client):
    for path in ("/", "/live.js", "/image/0", "/thumbnail/0", "/nothing", "/api/similar/99"):
        answer = client.ask(path)
        assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    page = client.ask("/").content.decode()
    assert not re.search(r"https?://|<script>|style=|\son\w+=", page)


def test_without_the_token_nothing_is_answered(place):
    for port, _ in served(place, token=TOKEN):
        client = Client(port)
        for path in ("/", "/live.js", "/image/0", "/api/similar/0", "/nothing"):
            assert client.ask(path).status == 401
            assert client.ask(f"{path}?token={TOKEN}x").status == 401
            assert client.ask(path, Authorization=f"Bearer {TOKEN[:-1]}").status == 401
            assert client.ask(path, Cookie="mmray=x").status == 401
        assert client.ask(f"/image/0?token={TOKEN}").status == 401  # for the page alone
        assert client.ask("/image/0", Authorization=f"Bearer {TOKEN}").status == 200
        page = client.ask(f"/?token={quote(TOKEN)}")
        cookie = page.headers["Set-Cookie"]
        assert page.status == 200
        assert {"HttpOnly", "SameSite=Strict"} <= set(cookie.split("; "))
        assert client.ask("/image/0", Cookie=f"a=b; {cookie.partition(';')[0]}").status == 200


def test_a_host_that_others_reach_needs_a_token(tmp_path):
    assert serve._token(ServeConfig(), needed=False) is None
    drawn = {serve._token(ServeConfig(), needed=True) for _ in range(3)}
    assert len(drawn) == 3
    assert min(map(len, drawn)) >= 40
    for text, message in (("short", "write 16 to 512 letters"), ("with spaces " * 3, "write 16")):
        (tmp_path / "token").write_text(text)
        with pytest.raises(InputError, match=message):
            serve._token(ServeConfig(token_file=str(tmp_path / "token")), needed=False)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    config = ServeConfig(token_file=str(tmp_path / "token"))
    assert serve._token(config, needed=False) == TOKEN
    with pytest.raises(InputError, match=r"--token-file .*none: cannot be read"):
        serve._token(ServeConfig(token_file=str(tmp_path / "none")), needed=True)


def test_a_port_that_is_taken_is_named(client, place):
    config = ServeConfig(storage=str(place / "runs"), port=client.port)
    with pytest.raises(InputError, match=rf"--port {client.port}: cannot listen there \(.*in use"):
        serve.run(config)
    with pytest.raises(InputError, match=r"--host no\.such\.invalid: no such address"):
        serve.run(ServeConfig(storage=str(place / "runs"), host="no.such.invalid", port=0))


def test_an_index_is_not_compared_with_itself(place):
    config = ServeConfig(storage=str(place / "runs"), compare="mmray")
    with pytest.raises(InputError, match="--compare mmray: this is the index itself"):
        serve.live_search(Folder(config.storage), config)


# Labels


@pytest.fixture
def labelled(place, running):
    """The folder of the labelled set, empty before and after."""
    folder = place / "runs" / serve.LABELLED_SETS / "mmray"
    Folder(str(folder)).remove()
    yield folder
    Folder(str(folder)).remove()


def measured(folder):
    """The set as `mmray evaluate --images ... --ground-truth ...` reads it."""
    return labelled_set(str(folder / "images"), str(folder / "gnd_mmray.pkl"))


def contents(images):
    return [Folder("/").read(image.uri.lstrip("/")) for image in images]


def test_labels_are_a_set_that_evaluate_reads(client, labelled):
    told = client.told("/api/label?right=1&right=7&wrong=2", jpeg(31))
    assert told["queries"] == 1
    assert told["images"] == 3
    assert (told["folder"], told["ground_truth"]) == (
        str(labelled / "images"),
        str(labelled / "gnd_mmray.pkl"),
    )
    client.told("/api/label?right=3&wrong=1&query=0", b"")
    found = measured(labelled)
    first, second = found.ground_truth
    held = contents(found.database)
    sources = photos()
    assert sorted(held) == sorted([sources[1], sources[0], sources[2], sources[3]])

    def are(rows):
        return {held[row] for row in rows}

    # Photo 7, in the tar file, is photo 0 once more: the query of the second labels.
    assert contents(found.queries) == [jpeg(31), sources[0]]
    assert are(first.positives) == {sources[1], sources[0]}
    assert are(first.junk) == {sources[3]}  # only the second query was asked about it
    assert are(second.positives) == {sources[3]}
    assert are(second.junk) == {sources[2], sources[0]}
    # A ranking by the truth is perfect, and the photos that were called wrong lower it.
    perfect = np.eye(len(found.items), dtype=np.float32)
    place = {item: row for row, item in enumerate(found.items)}
    for query, truth in zip(found.queries, found.ground_truth, strict=True):
        for row in truth.positives:
            perfect[place[query], place[found.database[row]]] = 1
    assert found.mean_average_precision(perfect) == 1


def test_later_labels_of_a_query_go_before_its_earlier_ones(client, labelled):
    client.told("/api/label?right=1&right=2&wrong=3", jpeg(31))
    client.told("/api/label?wrong=2&right=3&cleared=1", jpeg(31))
    found = measured(labelled)
    (query,) = found.ground_truth
    held, sources = contents(found.database), photos()
    assert {held[row] for row in query.positives} == {sources[3]}
    assert sorted(held) == sorted([sources[2], sources[3]])
    client.told("/api/label?cleared=2&cleared=3", jpeg(31))
    assert not (labelled / "gnd_mmray.pkl").exists()


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_a_labelled_box_is_measured_as_it_was_searched(client, labelled, orientation):
    """Evaluation takes boxes of the pixels as they are stored, a search those of the upright."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    photo = jpeg(5, size=(160, 100), exif=exif, quality=95)
    box = (12.0, 7.0, 60.0, 90.0)
    client.told("/api/label?right=1&box=" + ",".join(map(str, box)), photo)
    (query,) = measured(labelled).queries
    again = load_image(query, longest_side=None).pixels
    np.testing.assert_array_equal(again, decode(photo, longest_side=None, box=box).pixels)


@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_boxes_come_back_from_the_stored_pixels(orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(io.BytesIO(jpeg(5, size=(160, 100), exif=exif))) as image:
        box = (12.0, 7.0, 60.0, 90.0)
        assert upright_box(image, box_as_stored(image, box)) == box


def test_labels_that_measure_nothing_are_refused(client, labelled):
    refused = client.told("/api/label?wrong=1", jpeg(31), status=400)
    assert "label at least one result" in refused["error"]
    assert client.told("/api/label?right=2&query=2", b"", status=400)  # itself alone
    assert client.told("/api/label?right=1&wrong=1", jpeg(31), status=400)
    assert client.told("/api/label?right=99", jpeg(31), status=404)
    assert client.told("/api/label?right=1", b"no photo", status=400)
    assert not (labelled / "gnd_mmray.pkl").exists()


# The job


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_signal_ends_the_job_with_its_status(place, tmp_path, number, status):
    command = of_module("mmray")
    command["args"] += ["serve", "--storage", str(place / "runs"), "--port", "0"]
    with subprocess.Popen(**command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as job:
        url = job.stdout.readline().decode()
        port = int(re.fullmatch(r"http://127\.0\.0\.1:(\d+)/\n", url)[1])
        assert Client(port).ask("/api/search", jpeg(0)).status == 200
        job.send_signal(number)
        assert job.wait(60) == status
        assert job.stderr.read() == b"interrupted: the same command goes on from here\n"
