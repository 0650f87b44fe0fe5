"""A machine that vanishes in the middle of a stage costs what it was doing, and changes nothing."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from tests.end_to_end.clusters import running_head, start_node, stop, vanish, wait_for

ROOT = Path(__file__).resolve().parents[2]
EXTRACT = shlex.split(
    """
    --stages extract --demo.objects 6 --demo.photos 12 --demo.distractors 8
    --demo.longest-side 128 --extraction.longest-side 128 --extraction.shard-size 2
    --mining.graph-k 6 --mining.positive-k 6 --mining.negative-k 100 --rounds 1
    """
)
MINE = shlex.split(
    """
    --mining.graph-k 10 --mining.query-block 100 --mining.anchors 600 --mining.anchor-block 2
    --mining.selection random --mining.component all --mining.positive-k 20 --mining.negative-k 200
    """
)
CPUS = 3  # of the head, and of the machine that vanishes: of four actors one at least is there


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    with running_head(tmp_path_factory.mktemp("head"), port=26779, cpus=CPUS) as address:
        yield address


@pytest.fixture
def node(head, tmp_path):
    started = start_node(
        *(f"--address={head}", f"--num-cpus={CPUS}", "--object-store-memory", 200_000_000),
        log=tmp_path / "node",
    )
    yield started
    stop(started)


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    file = tmp_path_factory.mktemp("features") / "features.npy"
    rows = np.random.default_rng(0).standard_normal((12_000, 64)).astype(np.float32)
    np.save(file, rows / np.linalg.norm(rows, axis=1, keepdims=True))
    return file


def start(job, storage, flags, log, **env):
    with log.open("w") as output:
        return subprocess.Popen(
            [sys.executable, str(ROOT / "jobs" / job), "--storage", str(storage), *flags],
            stdout=output,
            stderr=output,
            env=os.environ | env,
        )


def shards(storage, pattern):
    """What is in the shards of a stage, by their names, but for where the images lie."""
    tables = {file.name: pq.read_table(file) for file in storage.glob(pattern)}
    return {
        name: table.drop_columns("uri") if "uri" in table.column_names else table
        for name, table in tables.items()
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("job", "pattern"),
    [
        ("retrieval.py", "extract-*/features/part-*.parquet"),
        ("mine.py", "knn-*/neighbors/part-*.parquet"),
        ("mine.py", "mine-*/pools/part-*.parquet"),
    ],
    ids=["extraction", "k-NN", "mining"],
)
def test_a_machine_that_vanishes_in_a_stage_changes_nothing(
    job, pattern, head, node, features, tmp_path
):
    flags = EXTRACT if job == "retrieval.py" else ["--features", str(features), *MINE]
    # One actor on this process's own Ray, which nothing disturbs.
    calm = start(job, tmp_path / "calm", [*flags, "--max-workers", "1"], tmp_path / "calm.log")
    assert calm.wait(300) == 0, (tmp_path / "calm.log").read_text()
    expected = shards(tmp_path / "calm", pattern)

    storage, log = tmp_path / "runs", tmp_path / "log"
    process = start(job, storage, flags, log, RAY_ADDRESS=head)
    wait_for(lambda: len(list(storage.glob(pattern))) > 3, process, seconds=300)
    vanish(node)
    assert len(list(storage.glob(pattern))) < len(expected)  # it was in the middle
    assert process.wait(300) == 0, log.read_text()
    assert shards(storage, pattern) == expected


@pytest.mark.slow
def test_images_stream_through_gpus_that_come_and_go(tmp_path):
    """GPUs that Ray counts and torch does not find: their actors compute on CPUs, to the bit."""
    pattern = "extract-*/features/part-*.parquet"
    calm = start("retrieval.py", tmp_path / "calm", EXTRACT, tmp_path / "calm.log")
    assert calm.wait(300) == 0, (tmp_path / "calm.log").read_text()
    expected = shards(tmp_path / "calm", pattern)

    storage, log = tmp_path / "runs", tmp_path / "log"
    with running_head(tmp_path, port=26879, cpus=CPUS, gpus=1) as head:
        process = start("retrieval.py", storage, EXTRACT, log, RAY_ADDRESS=head)
        node = start_node(
            *(f"--address={head}", f"--num-cpus={CPUS}", "--num-gpus=1"),
            *("--object-store-memory", 200_000_000),
            log=tmp_path / "node",
        )
        try:
            wait_for(lambda: len(list(storage.glob(pattern))) > 3, process, seconds=300)
            vanish(node)
            assert process.wait(300) == 0, log.read_text()
        finally:
            stop(node)
    assert re.search(r"ray: \d machines?, \d CPUs, \d GPU", log.read_text())
    assert shards(storage, pattern) == expected
