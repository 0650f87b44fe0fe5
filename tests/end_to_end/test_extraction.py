"""Extraction as a user runs it: killed at random, with every option, from what a user has."""

import random
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from mmray.descriptors.embedding import embed
from mmray.descriptors.weights import build
from mmray.descriptors.whitening import Whitening
from mmray.images.decoding import decode
from mmray.system.folder import Folder
from tests.end_to_end.small_job import ONE, command, run_here, the_run
from tests.made import synthetic
from tests.made.bad_images import HEIC

FLAGS = (
    *("--stages", "extract", "--mining.graph-k", 4, "--mining.positive-k", 4),
    *("--mining.negative-k", 100, "--rounds", 1),
    *("--extraction.longest-side", 64, "--extraction.shard-size", 8),
)


def extraction(storage):
    (folder,) = storage.glob("extract-*")
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """400 photos of two shapes in a folder, and the same in four tar shards."""
    root = tmp_path_factory.mktemp("photos")
    (root / "loose").mkdir()
    (root / "packed").mkdir()
    synthetic.save_noise(root / "loose", 400, [(48, 64), (64, 48)], digits=4)
    files = sorted((root / "loose").iterdir())
    for shard in range(4):
        part = [(file.name, file.read_bytes()) for file in files[100 * shard : 100 * (shard + 1)]]
        synthetic.save_tar(root / "packed" / f"{shard:03}.tar", part)
    return root


@pytest.mark.slow
def test_killed_five_times_each_image_is_described_exactly_once(photos, on_cluster, tmp_path):
    """SIGKILL of the driver after a random number of shards; as if by one image at a time."""
    storage, log = tmp_path / "runs", tmp_path / "log"
    arguments = ("--images", photos / "packed", "--storage", storage, *FLAGS)
    draw, written = random.Random(0), 0
    for _ in range(5):
        wanted = written + draw.randint(1, 7)
        with log.open("w") as output:
            process = subprocess.Popen(
                command("retrieval", *arguments, *ONE),
                stdout=output,
                stderr=subprocess.STDOUT,
                env=on_cluster,
            )
        deadline = time.monotonic() + 300
        while written < wanted and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            written = len(list(storage.glob("extract-*/features/part-*")))
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert 0 < written < 50
    told = run_here("retrieval", *arguments).succeeded.stderr
    assert "done before (list-" in told
    assert re.search(r" extract: 400/400, ", told)
    table = Folder(str(extraction(storage))).read_table("images.parquet")
    names = [uri.rpartition("#")[2] for uri in table["uri"].to_pylist()]
    assert names == sorted(file.name for file in (photos / "loose").iterdir())
    files = sorted((photos / "loose").iterdir())
    images = [decode(file.read_bytes(), longest_side=64).pixels for file in files]
    model = build("efficientnet_lite0", pooling="mac")
    wanted = embed(model, images, ("rmac", "mac"), batch_size=1, device=torch.device("cpu"))
    for place, name in enumerate(("features.npy", "features-mac.npy")):
        found = np.load(extraction(storage) / name)
        np.testing.assert_allclose(found, wanted[:, place], atol=1e-5)


def test_a_phone_s_photos_and_parquet_of_every_layout_are_read_and_the_rest_is_told(
    photos, ray_cluster, tmp_path
):
    phone, parts = tmp_path / "phone", tmp_path / "parts"
    parts.mkdir()
    contents = [file.read_bytes() for file in sorted((photos / "loose").iterdir())[:9]]
    files = {"a.JFIF": contents[0], "b.heic": HEIC["turned"], "c.avif": contents[1], "d.mov": b""}
    files |= {".git/e.jpg": b"", "@eaDir/b.heic/f.jpg": b"", "g.cr2": b"", "h.MOV": b""}
    for name, content in files.items():
        (phone / name).parent.mkdir(parents=True, exist_ok=True)
        (phone / name).write_bytes(content)
    (tmp_path / "own.png").write_bytes(contents[2])  # in the folder, it would be one of images
    layouts = {
        "part.2": {
            "image": [
                {"bytes": None, "path": "../own.png"},
                {"bytes": contents[3], "path": None},
            ]
        },
        "part.10": {"image": pa.array(contents[4:6]).dictionary_encode()},
        "part.11": {"image": pa.array([contents[6]], pa.binary(len(contents[6])))},
    }
    for number, (part, columns) in enumerate(layouts.items()):
        names = pa.array([f"{number}-{row}.jpg" for row in range(len(columns["image"]))])
        table = pa.table({**columns, "file_name": names.dictionary_encode()})
        pq.write_table(table, parts / f"{part}.parquet")
    storage = tmp_path / "runs"
    given = ("--images", phone, parts)
    done = run_here("retrieval", *given, "--storage", storage, *FLAGS, *ONE).succeeded
    rest = "2 .mov, 1 .cr2, 1 @eaDir folder, 1 hidden folder"
    assert f"list: {phone}: 3 image files; left out: {rest}\n" in done.stderr
    (page,) = (storage / "reports").glob("*.html")
    assert '<td>.mov</td><td class="number">2</td>' in page.read_text()
    (listed,) = storage.glob("list-*/list.parquet")
    assert pq.read_table(listed)["name"].to_pylist() == [
        *("a.JFIF", "b.heic", "c.avif", "../own.png", "0-1.jpg", "1-0.jpg", "1-1.jpg", "2-0.jpg")
    ]
    assert len(pq.read_table(extraction(storage) / "quarantine.parquet")) == 0


def test_every_option_of_the_extraction_in_one_run(photos, ray_cluster, tmp_path):
    folder = tmp_path / "my photos"
    folder.mkdir()
    for file in sorted((photos / "loose").iterdir())[:40]:
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "copy.png").write_bytes((folder / "0000.png").read_bytes())
    (folder / "broken.png").write_bytes(b"")
    listed = tmp_path / "list.txt"
    listed.write_text("\n".join(f"my photos/{file.name}" for file in sorted(folder.iterdir())))
    (tmp_path / "out.txt").write_text("0001\n0002.png\n")
    options = (
        *("--exclude", tmp_path / "out.txt", "--sample", 39, "--seed", 3),
        *("--extraction.scales", 1, 0.5, "--extraction.poolings", "rmac"),
        *("--extraction.pca", 8, "--extraction.precision", "bfloat16"),
        *("--extraction.region-whitening", "--extraction.no-rmac-whole"),
    )
    storage = tmp_path / "runs"
    given = ("--images", listed, "--storage", storage, *options, *FLAGS, *ONE)
    told = run_here("retrieval", *given).succeeded.stderr
    assert "cosines of bfloat16 descriptors to those in float32" in told
    _, run = the_run(f"sqlite:///{storage / 'mlflow.db'}")
    metrics = run.data.metrics
    counted = ("images", "duplicates", "quarantined")
    assert sum(metrics[f"system/extract/{name}"] for name in counted) == 39
    assert metrics["system/extract/bytes"] > 39 * 1000
    assert metrics["system/extract/per_second"] > 0
    assert metrics["system/extract/seconds_left"] == 0
    kept = Folder(str(extraction(storage))).read_table("images.parquet")["uri"].to_pylist()
    names = {Path(uri).name for uri in kept}
    assert not names & {"0001.png", "0002.png", "broken.png"}
    assert len(names) == 38 - ("copy.png" not in names)
    (pca,) = storage.glob("pca-*")
    features = np.load(pca / "features.npy")
    assert features.shape == (len(names), 8)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)
    whitening = Whitening.load(pca / "pca.npz")
    raw = np.load(extraction(storage) / "features.npy")
    np.testing.assert_allclose(whitening.apply(raw, 8), features, atol=1e-6)
