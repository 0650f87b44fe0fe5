"""The benchmarks compare the same work on both sides, and their features lie on a manifold."""

import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from scipy.sparse import csr_array, eye_array

from mmray.__main__ import run
from mmray.config.choices import QuerySearch
from mmray.config.sections import TrainingConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.images.collection import Collection
from mmray.images.containers import read_images
from mmray.images.sources import find
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.diffusion.solver import diffuse
from mmray.mining.graph import normalize_graph
from mmray.pipeline.distributed.units import shard_name
from mmray.system.errors import InputError
from mmray.system.folder import Folder

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "jobs"))

# As the script imports them: its own folder is first in sys.path.
import benchmark as job
from benchmarks.block_solvers import as_tensor, solve_by_scipy, solve_by_torch
from benchmarks.mining import Comparison, manifold_features
from benchmarks.search import stored_features
from benchmarks.simulated_collection import SimulatedCollection
from benchmarks.training import compare_training

from tests.made import synthetic
from tests.made.synthetic import random_graph


@pytest.fixture(autouse=True)
def sigterm():
    """A job takes the signal for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def test_manifold_features_are_normalised_and_reproducible():
    features = manifold_features(70_000, 16)
    assert features.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(features, manifold_features(70_000, 16))
    assert not np.array_equal(features, manifold_features(70_000, 16, seed=1))
    assert len(np.unique(features, axis=0)) == 70_000


def test_manifold_features_have_the_dimensions_asked_for():
    """Near a point, its neighbours span as many directions as the manifold has."""
    features = manifold_features(60_000, 64, intrinsic=3)
    near = features[np.argsort(-(features @ features[0]))[:40]].astype(np.float64)
    spread = np.linalg.svd(near - near.mean(axis=0), compute_uv=False)
    assert spread[2] > 5 * spread[3]


def test_a_ratio_says_how_many_times_faster():
    assert Comparison(part="", baseline="", ours=2.0, theirs=10.0).ratio == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("knn", "--queries", "50"), ["exact k-NN, 50 of 600 x 8, k = 10 | faiss.knn"]),
        (
            ("diffusion", "--anchors", "5", "--solved", "2"),
            [
                r"diffusion, 5 anchors, 600 items, [\d,]+ entries | scipy.sparse.linalg.cg",
                r"diffusion, 5 anchors, 600 items, [\d,]+ entries | blocks of 16, scipy's product",
                r"diffusion, 5 anchors, 600 items, [\d,]+ entries | blocks of 16, torch's product",
            ],
        ),
    ],
)
def test_each_part_ends_with_a_table(monkeypatch, capsys, arguments, words):
    small = ("--items", "600", "--dims", "8", "--k", "10", "--repeats", "1", "--threads", "1")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments, *small])
    assert job.main() == 0
    head, _, *rows = capsys.readouterr().out.strip().splitlines()
    assert "times faster" in head
    for row, expected in zip(rows, words, strict=False):
        assert re.search(expected.replace(" | ", r" +\| +"), row)


@pytest.mark.parametrize("anchors", [5, 40])
def test_the_block_solvers_that_it_compares_with_solve_the_same(anchors):
    graph = normalize_graph(random_graph(3, 300, 0.05, np.float32))
    given, chosen = reorder(graph), np.arange(anchors)
    expected = diffuse(given, chosen).similarity
    system = csr_array(eye_array(300, dtype=np.float32) - np.float32(0.99) * given.graph)
    rows = given.positions[chosen]
    for solve, matrix in ((solve_by_scipy, system), (solve_by_torch, as_tensor(system))):
        solved = solve(matrix, rows, given.positions)
        np.testing.assert_allclose(solved, expected, rtol=1e-3, atol=1e-4)


def test_the_command_of_the_package_runs_the_script(capsys):
    small = ("--items", "600", "--dims", "8", "--k", "10", "--repeats", "1", "--queries", "50")
    assert run("benchmark", ["knn", *small]) == 0
    assert "exact k-NN, 50 of 600 x 8, k = 10" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("knn", ("--anchors", "5")),
        ("diffusion", ("--queries", "5")),
        ("ranking", ("--k", "5")),
        ("search", ("--k", "5")),
        ("serve", ("--k", "5")),
        ("features", ("--threads", "1")),
        ("extraction", ("--items", "5")),
        ("decoding", ("--shard-size", "5")),
        ("stream", ("--items", "5")),
        ("training", ("--shard-size", "5")),
        ("gpu", ("--items", "5")),
        ("ten-million", ("--dims", "5")),
        ("speed", ()),
    ],
)
def test_a_benchmark_refuses_the_flags_of_others(capsys, name, flags):
    with pytest.raises(SystemExit) as ended:
        job.measure([name, *flags])
    assert ended.value.code == 2
    assert (flags[0] if flags else name) in capsys.readouterr().err


def test_searches_are_compared_with_diffusion(capsys):
    job.measure(["ranking", "--items", "300", "--dims", "8", "--queries", "4", "--threads", "1"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in cells] == [*get_args(QuerySearch)]
    shares = {row[0]: float(row[3]) for row in cells}
    assert shares["diffusion"] == shares["truncated-diffusion"] == 1  # no item is left out
    assert 0.1 < shares["plain"] < 1


def test_photos_that_are_not_there_are_refused(monkeypatch, tmp_path, capsys):
    missing = str(tmp_path / "missing")
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "extraction", "--images", missing])
    assert job.main() == 2
    assert missing in capsys.readouterr().err


def test_more_probes_find_more_and_all_cells_all(monkeypatch, capsys):
    small = ("--items", "10000", "--dims", "4", "--intrinsic", "2", "--threads", "1")
    flags = ("--queries", "20", "--top", "20", "--probes", "1", "2", "156")  # of 156 cells
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "search", *small, *flags])
    assert job.main() == 0
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in capsys.readouterr().out.strip().splitlines()
    )
    assert head == [
        *("way", "probes", "seconds to build", "MB", "ms a query", "in a batch", "recall@20"),
    ]
    ways, probes, building, size, alone, together, recall = zip(*rows, strict=True)
    assert ways == ("flat", *["ivf-pq"] * 3)
    assert probes == ("", "1", "2", "156")
    assert building[0] == "0.0"
    assert float(building[1]) > 0
    assert size[0] == "0.2"  # 10,000 x 4 numbers of 4 bytes
    assert all(float(time) > 0 for time in (*alone, *together))
    assert recall[0] == "1.000"
    assert 0.1 < float(recall[1]) < float(recall[2]) < 1
    assert float(recall[3]) > 0.99


def test_queries_are_of_the_manifold_but_not_in_the_index(tmp_path):
    vectors, queries = stored_features(Folder(str(tmp_path)), 500, 8, queries=20, intrinsic=1)
    assert isinstance(vectors, np.memmap)
    assert (vectors.shape, queries.shape) == ((500, 8), (20, 8))
    nearest = (queries @ vectors.T).max(axis=1)
    assert (nearest > 0.99).all()  # 500 points of a curve: there is one beside each query
    assert not (queries[:, None] == vectors).all(axis=2).any()


def on_photos(what, folder, *flags, on_cluster):
    """The table's rows, from a process of its own: it forks, and that is not safe beside Ray."""
    size = ("--longest-side", "64", *flags)
    ended = subprocess.run(
        [sys.executable, job.__file__, what, "--images", str(folder), *size],
        env=on_cluster,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    rows = [line for line in ended.stdout.splitlines() if line.startswith("|")][2:]
    return [[cell.strip() for cell in row.strip("|").split("|")] for row in rows]


@pytest.mark.slow
def test_a_server_is_asked_by_photos_and_by_rows(tmp_path):
    synthetic.save_noise(tmp_path, 3, [(48, 64)])
    flags = ("--items", "50", "--seconds", "1", "--clients", "2")
    cells = on_photos("serve", tmp_path, *flags, on_cluster=None)
    assert [row[:2] for row in cells] == [["photo", "2"], ["row", "2"]]
    assert all(int(row[2]) > 0 and row[9] == "0" for row in cells)


@pytest.mark.slow
def test_extraction_is_compared_on_photos_of_mixed_shapes(tmp_path, on_cluster):
    synthetic.save_noise(tmp_path, 12, [(48, 64), (64, 48), (64, 64)])
    flags = ("--threads", "1", "--shard-size", "2")
    cells = on_photos("extraction", tmp_path, *flags, on_cluster=on_cluster)
    assert [row[0] for row in cells] == [
        "one image at a time",
        "bare loop, batches of one shape",
        "mmray, float32",
    ]
    assert all(float(row[2]) < 1e-5 for row in cells)
    assert all(float(row[3]) > 0 for row in cells)


@pytest.mark.slow
def test_all_ways_of_training_take_the_same_steps(tmp_path, on_cluster):
    synthetic.save_noise(tmp_path, 8, [(48, 64), (64, 48), (64, 64)])
    flags = ("--threads", "2", "--steps", "2", "--loss", "triplet")
    cells = on_photos("training", tmp_path, *flags, on_cluster=on_cluster)
    assert [row[0] for row in cells] == [
        "one image at a time",
        "bare loop, batches of one shape",
        "bare DDP loop, 2 processes",
        "bare DDP loop, 2 processes, beside Ray",
        "mmray, train_epoch",
        "mmray, Ray Train, 1 worker",
        "mmray, Ray Train, 2 workers",
        "bare loop, batches of one shape, and embedding",
        "bare DDP loop, 2 processes, and embedding",
        "bare DDP loop, 2 processes, beside Ray, and embedding",
        "mmray, Ray Train, 1 worker, and embedding",
        "mmray, Ray Train, 2 workers, and embedding",
    ]
    assert all(float(row[2]) < 1e-4 for row in cells)
    assert all(float(row[3]) > 0 for row in cells)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"images": 2}, "2 images: a tuple has 3, name more with --images"),
        ({"workers": 3}, "--workers 3: from 1 to 2, as there are 2 threads to share"),
        ({"workers": 6, "threads": 8}, "--workers 6: from 1 to 5.* 5 tuples in a step, and 0 GPUs"),
        ({"workers": 0}, "--workers 0: from 1 to 2"),
    ],
)
def test_training_that_cannot_be_compared_is_refused(tmp_path, changes, words):
    sizes = {"images": 4, "workers": 2, "threads": 2} | changes
    synthetic.save_noise(tmp_path, sizes.pop("images"), [(48, 64)])
    images, model = find(str(tmp_path)).images, EmbeddingNet("efficientnet_lite0", "mac")
    with pytest.raises(InputError, match=words):
        compare_training(images, model, TrainingConfig(), steps=1, **sizes)


@pytest.mark.slow
def test_every_step_of_the_driver_is_measured_for_growing_collections(on_cluster):
    """Two units of the eight, and one of the two, are really described."""
    flags = ("--items", "2000", "--shares", "0.2", "1", "--described-every", "5")
    ended = subprocess.run(
        [sys.executable, job.__file__, "ten-million", *flags],
        env=on_cluster,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stderr
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in ended.stdout.splitlines()
        if line.startswith("|")
    )
    assert head[:3] == ["step", "0.0004M, s", "0.002M, s"]
    assert head[3:] == ["s a million", "CPU s a million", "MB a million", "most MB"]
    steps = [row[0] for row in rows]
    assert len(set(steps)) == len(steps)
    assert {"Collection.digest", "extract, no unit missing", "finish_features"} < set(steps)
    seconds = {row[0]: float(row[2]) for row in rows}
    assert seconds["extract, some units missing"] > seconds["extract, no unit missing"]


def test_simulated_images_that_are_to_be_described_exist_and_the_others_have_shards(tmp_path):
    simulated = SimulatedCollection(tmp_path, 1300, 3)  # six units, the last of them not whole
    simulated.write_shards(tmp_path / "features")
    images = Collection.joined(simulated.parts())
    assert len(images) == len(images.distinct()) == 1300
    assert sorted(path.name for path in (tmp_path / "features").iterdir()) == [
        shard_name(unit) for unit in (1, 2, 4, 5)
    ]
    units = [list(images[first : first + 256]) for first in range(0, 1300, 256)]
    for unit, each in enumerate(units):
        contents = list(read_images(each, limit=1 << 20))
        assert len({isinstance(content, bytes) for content in contents}) == 1
        assert isinstance(contents[0], bytes) == (unit in (0, 3))
    assert list(read_images(units[0], limit=1 << 20)) == list(read_images(units[3], limit=1 << 20))


def test_features_go_to_a_file(monkeypatch, tmp_path):
    path = tmp_path / "x.npy"
    arguments = ["features", "--items", "100", "--dims", "8", "--output", str(path)]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *arguments])
    assert job.main() == 0
    np.testing.assert_array_equal(np.load(path), manifold_features(100, 8))


def cells_of(text):
    return [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.strip().splitlines()
        if not line.startswith("| --")
    ]


def test_decoders_of_others_stand_beside_ours(capsys, tmp_path):
    synthetic.save_noise(tmp_path, 3, [(48, 64), (64, 48)])
    sizes = ("--megapixels", "0.02", "0.1", "--longest-side", "40", "--repeats", "1")
    job.measure(["decoding", "--images", str(tmp_path), *sizes])
    _, *rows = cells_of(capsys.readouterr().out)
    ours, exact = ([row for row in rows if row[0].startswith(name)] for name in ("mmray", "Pillow"))
    assert [row[1] for row in ours] == [row[1] for row in exact] == ["0.02", "0.1"]
    assert {row[3] for row in exact} == {"0.00"}
    # The larger photo is decoded at a quarter; noise is what this changes most.
    assert 0 < float(ours[1][3]) < 20
    assert len(rows) >= 6  # torchvision is always there


@pytest.mark.slow
def test_a_stream_says_how_long_the_device_waits(tmp_path, on_cluster):
    synthetic.save_noise(tmp_path, 60, [(48, 64), (64, 48)])
    flags = ("--shard-size", "20", "--rate", "30", "--cpus", "1")
    (row,) = on_photos("stream", tmp_path, *flags, on_cluster=on_cluster)
    images, in_pass, before, seconds, rate, busy = row
    assert images == "60"
    assert float(in_pass) > 2
    assert float(before) > 0
    assert 1.9 < float(seconds) < 30
    assert float(rate) <= 31
    assert 0.1 < float(busy.rstrip("%")) / 100 <= 1
