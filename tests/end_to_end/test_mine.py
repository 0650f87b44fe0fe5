"""jobs/mine.py as a user runs it: any number of actors, killed anywhere, with unusable input."""

import hashlib
import os
import re
import shutil
import signal
import subprocess

import numpy as np
import pyarrow.parquet as pq
import pytest

from jobs.benchmarks.mining import manifold_features
from mmray.mining.anchors import select_anchors
from mmray.mining.graph import largest_component, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.pools import mine_pools
from tests.end_to_end.clusters import processes, running_head, start_node, stop, vanish, wait_for
from tests.end_to_end.small_job import ONE, ROOT, command, counted, run_apart, run_here, table

# Many small units of work, so that there is a middle to be killed in.
FLAGS = (
    *("--mining.graph-k", 12, "--mining.query-block", 150, "--mining.anchor-block", 8),
    *("--mining.anchors", 400, "--mining.selection", "random", "--mining.positive-k", 20),
    *("--mining.negative-k", 300, "--experiment", "mining"),
)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / "features.npy"
    np.save(path, manifold_features(6000, 32, intrinsic=3))
    return path


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    """A head of five CPUs in its own process, so that three actors fit and no job starts Ray."""
    with running_head(tmp_path_factory.mktemp("ray"), port=26379, cpus=5) as address:
        yield address


def given(features, storage):
    return ("--features", features, "--storage", storage, *FLAGS)


def started(features, storage, log, env):
    with log.open("w") as output:
        return subprocess.Popen(
            command("mine", *given(features, storage)), env=env, stdout=output, stderr=output
        )


def digests(storage):
    """Of what a run mined: neighbours, graph, anchors and pools."""
    files = [
        file
        for pattern in (
            "knn-*/neighbors/*",
            "graph-*/**/*.npy",
            "mine-*/*.parquet",
            "mine-*/pools/*",
        )
        for file in storage.glob(pattern)
    ]
    return {
        str(file.relative_to(storage)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.fixture(scope="module")
def whole(features, ray_cluster, tmp_path_factory):
    storage = tmp_path_factory.mktemp("whole") / "runs"
    return storage, run_here("mine", *given(features, storage), *ONE).succeeded


def test_the_job_mines_what_the_core_mines(whole, features):
    storage, done = whole
    rows = np.load(features)
    found = nearest_neighbors(rows, rows, 12)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    items = largest_component(graph)
    anchors = items[select_anchors(graph[items][:, items], 400, selection="random", seed=0)]
    sizes = {"positive_k": 20, "negative_k": 300, "max_negatives": 50}
    pools = mine_pools(rows, graph, anchors, items=items, **sizes)
    (folder,) = storage.glob("mine-*")
    stored = pq.read_table(folder / "pools")
    assert stored["anchor"].to_pylist() == anchors.tolist()
    assert stored["positives"].to_pylist() == [ids.tolist() for ids in pools.positives]
    assert stored["negatives"].to_pylist() == [ids.tolist() for ids in pools.negatives]
    assert sum(map(len, pools.positives)) > 0
    assert re.search(r"^\| anchors +\| +400 \|$", done.stdout, re.MULTILINE)
    assert counted(done.stderr) == len([*storage.glob("*-*/_SUCCESS.json")])


def test_its_page_has_the_table_and_the_graph(whole):
    storage, done = whole
    (page,) = (storage / "reports").glob("mine-*.html")
    text = page.read_text()
    assert "Mined from features.npy" in text
    for row in table(done.stdout)[2:]:
        assert all(f">{cell.strip()}</td>" in text for cell in row.strip("|").split("|")), row
    assert text.count("<svg") == 3, "degrees, components, importance"


@pytest.mark.slow  # the stages have a test of their own for each number of actors
def test_three_actors_give_the_same_bytes_as_one(whole, features, cluster, tmp_path):
    three = ("--max-workers", 3, "--min-workers", 3)
    env = os.environ | {"RAY_ADDRESS": cluster}
    assert run_apart("mine", *given(features, tmp_path), *three, env=env).succeeded
    assert digests(tmp_path) == digests(whole[0])


@pytest.mark.slow  # the parts alone: pipeline/distributed/test_mining.py
def test_features_that_no_machine_has_room_for_give_the_same_bytes(
    whole, features, ray_cluster, tmp_path, monkeypatch
):
    """Searched in two or three parts, of which a share of 0.0005 GB holds one."""
    monkeypatch.setattr("mmray.pipeline.stages.neighbors._LARGE", 0)
    monkeypatch.setattr("mmray.pipeline.stages.neighbors._LONG", 0)
    share = ("--mining.memory", 5e-4)
    printed = run_here("mine", *given(features, tmp_path), *ONE, *share).succeeded.stderr
    assert "knn: to compare all 6,000 items with one another will take about 0.0 h" in printed
    assert "k-NN: part 2 of" in printed
    assert digests(tmp_path) == digests(whole[0])
    assert not list(tmp_path.glob("*/parts"))


def shards(storage, pattern):
    return sum(1 for file in storage.glob(pattern) if not file.name.startswith("."))


@pytest.mark.slow
@pytest.mark.parametrize(
    "patterns",
    [["mine-*/pools/part-*"], ["knn-*/neighbors/part-*", "mine-*/pools/part-*"]],
    ids=len,
)
def test_killed_with_sigkill_and_started_again_it_ends_with_the_same_bytes(
    whole, features, on_cluster, tmp_path, patterns
):
    storage, log = tmp_path / "runs", tmp_path / "log"
    for pattern in patterns:
        process = started(features, storage, log, on_cluster)
        wait_for(lambda pattern=pattern: shards(storage, pattern) >= 5, process)
        process.kill()
        process.wait()
        kept = shards(storage, pattern)
        assert 5 <= kept < (40 if "knn" in pattern else 50), "killed in the middle"
    done = run_here("mine", *given(features, storage)).succeeded
    assert "done before (knn-" in done.stderr
    assert "done before (mine-" not in done.stderr
    assert digests(storage) == digests(whole[0])


def test_a_graph_of_an_earlier_version_is_made_again_and_its_pools_stay(whole, features, tmp_path):
    storage = tmp_path / "runs"
    shutil.copytree(whole[0], storage)
    (graph,) = storage.glob("graph-*")
    for name in ("raw", "normalized"):
        shutil.rmtree(graph / name)
    (graph / "graph.npz").write_bytes(b"")
    done = run_here("mine", *given(features, storage)).succeeded
    assert "graph: made again, as its file is of an earlier version" in done.stderr
    assert "done before (mine-" in done.stderr
    assert digests(storage) == digests(whole[0])


@pytest.mark.slow
def test_an_actor_that_is_killed_and_a_node_that_vanishes_change_nothing(
    whole, features, cluster, tmp_path
):
    """A second node of two CPUs joins; its raylet is killed while its actors mine."""
    storage, log = tmp_path / "runs", tmp_path / "log"
    node = start_node(
        *(f"--address={cluster}", "--num-cpus=2", "--object-store-memory", 100_000_000),
        log=tmp_path / "node",
    )
    process = started(features, storage, log, os.environ | {"RAY_ADDRESS": cluster})
    for pattern in ("knn-*/neighbors/part-*", "mine-*/pools/part-*"):
        wait_for(lambda pattern=pattern: shards(storage, pattern) >= 5, process)
        actors = processes("ray::MapWorker")
        assert len(actors) > 3, "those of the second node were to work too"
        os.kill(actors[0], signal.SIGKILL)
    vanish(node)
    assert process.wait(300) == 0, log.read_text()
    stop(node)
    assert digests(storage) == digests(whole[0])


@pytest.mark.parametrize(
    ("name", "flags", "words"),
    [
        ("", (), "--features is missing"),
        ("none.npy", (), "none.npy: "),
        ("nan.npy", (), "row 7"),
        ("flat.npy", (), "flat.npy: "),
        ("cut.npy", (), "cut.npy: "),
        ("few.npy", ("--labels", "labels.txt"), "labels.txt: "),
        ("few.npy", ("--mining.threads", "0"), "--mining.threads 0: "),
        ("few.npy", (), "30 items are too few for --mining.graph-k 30: "),
        ("zero.npy", ("--mining.positive-k", "40"), "the graph of the 60 items has no edge: "),
    ],
)
def test_input_that_cannot_be_used_is_named_in_one_sentence(
    tmp_path, monkeypatch, ray_cluster, name, flags, words
):
    broken = manifold_features(100, 8)
    broken[[7, 9], 2] = np.nan
    np.save(tmp_path / "nan.npy", broken)
    np.save(tmp_path / "few.npy", broken[10:40])
    np.save(tmp_path / "zero.npy", np.zeros((60, 4), np.float32))
    np.save(tmp_path / "flat.npy", broken[0])
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:500])
    (tmp_path / "labels.txt").write_text("1\n2\n")
    monkeypatch.chdir(tmp_path)
    named = ["--features", name] if name else []
    assert words in run_here("mine", *named, *flags, "--storage", "runs").error


def test_a_kind_of_file_that_is_not_known_ends_the_process_with_status_2(tmp_path):
    done = run_apart("mine", "--features", ROOT / "README.md", "--storage", tmp_path)
    assert ".npy" in done.error


def test_the_address_of_ray_client_is_refused_with_the_command_that_works(features, tmp_path):
    env = os.environ | {"RAY_ADDRESS": "ray://head:10001"}
    done = run_apart("mine", *given(features, tmp_path), env=env)
    assert "RAY_ADDRESS ray://head:10001: this is the address of Ray Client" in done.error
    assert "ray job submit --address http://head:8265 -- python jobs/" in done.error
