"""The job as a user of a cluster meets it: submitted, stopped, scaled, with all it keeps remote."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import boto3
import pytest

from tests.end_to_end.clusters import free_port, running_head, wait_for
from tests.end_to_end.small_job import SMALL, table, the_run

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent
sys.path.insert(0, str(ROOT / "cluster"))

from demo import wait_for_agent  # noqa: E402

pytestmark = pytest.mark.slow


def start(log, *arguments, **env):
    with log.open("w") as output:
        return subprocess.Popen(
            list(map(str, arguments)),
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | env,
            cwd=log.parent,
        )


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The table of a run on this machine that nothing disturbed."""
    folder = tmp_path_factory.mktemp("expected")
    job = start(folder / "log", sys.executable, ROOT / "jobs/retrieval.py", *SMALL)
    assert job.wait(300) == 0, (folder / "log").read_text()
    rows = table((folder / "log").read_text())
    assert len(rows) == 2 + 10
    return rows


def test_workers_come_for_the_work_and_go_after_it(expected, tmp_path):
    log = tmp_path / "log"
    demo = start(log, sys.executable, ROOT / "cluster/demo.py", "--storage", "runs", *SMALL)
    assert demo.wait(580) == 0, log.read_text()
    text = log.read_text()
    assert table(text) == expected
    (line,) = re.findall(r"workers from the beginning to the end: (.*)", text)
    counts = list(map(int, line.split(" -> ")))
    assert (counts[0], max(counts), counts[-1]) == (0, 2, 0)
    assert (tmp_path / "runs" / "mlflow.db").exists()


def test_a_submitted_job_is_followed_stopped_and_goes_on(expected, tmp_path):
    storage = tmp_path / "runs"
    with running_head(tmp_path, port=26879, cpus=4, dashboard=True) as address:
        dashboard = f"http://127.0.0.1:{int(address.rpartition(':')[2]) + 1}"

        def submit(log, *flags):
            ray = (BIN / "ray", "job", "submit", "--address", dashboard, "--working-dir", ROOT)
            job = ("--submission-id", log.name, "--", "python", "jobs/retrieval.py")
            return start(log, *ray, *job, "--storage", storage, *SMALL, *flags)

        wait_for_agent(dashboard)
        first = tmp_path / "first"
        process = submit(first)
        wait_for(lambda: "epoch 1/2" in first.read_text(), process, seconds=300)
        subprocess.run([BIN / "ray", "job", "stop", "--address", dashboard, first.name], check=True)
        process.wait(60)
        assert "was stopped" in first.read_text()
        client, run = the_run(f"sqlite:///{storage / 'mlflow.db'}")
        assert run.info.status == "KILLED"

        second = tmp_path / "second"
        assert submit(second).wait(400) == 0, second.read_text()
        assert "done before (extract-" in second.read_text()
        assert "epoch 1/2: " not in second.read_text()  # that epoch was kept
        assert table(second.read_text()) == expected
        assert client.get_run(run.info.run_id).info.status == "FINISHED"

        relative = tmp_path / "relative"
        assert submit(relative, "--storage", "runs").wait(120) != 0
        assert "will vanish; name an absolute folder or a URI" in relative.read_text()


def test_with_storage_in_a_bucket_and_a_server_for_mlflow_a_killed_job_goes_on(
    expected, s3, tmp_path
):
    port, art = free_port(), tmp_path / "artifacts"
    server = start(
        tmp_path / "mlflow.log",
        *(BIN / "mlflow", "server", "--host", "127.0.0.1", "--port", port),
        *("--backend-store-uri", f"sqlite:///{tmp_path / 'mlflow.db'}"),
        *("--artifacts-destination", art),
        MLFLOW_SERVER_ENABLE_JOB_EXECUTION="false",
    )
    endpoint = s3.rpartition("=")[2]
    client = boto3.client("s3", endpoint_url=f"http://{endpoint}", region_name="us-east-1")
    client.create_bucket(Bucket="runs")
    command = (
        *(sys.executable, ROOT / "jobs/retrieval.py", "--storage", f"s3://runs/a{s3}"),
        *("--tracking-uri", f"http://127.0.0.1:{port}", *SMALL),
    )
    remote = {"AWS_EC2_METADATA_DISABLED": "true"}
    place = tmp_path / "place"
    place.mkdir()
    try:
        wait_for(
            lambda: "Uvicorn running" in (tmp_path / "mlflow.log").read_text(), server, seconds=120
        )
        job = start(place / "first", *command, **remote)
        wait_for(lambda: "epoch 1/2" in (place / "first").read_text(), job, seconds=400)
        job.send_signal(signal.SIGKILL)
        job.wait()
        time.sleep(1)
        again = start(place / "second", *command, **remote)
        assert again.wait(500) == 0, (place / "second").read_text()
        text = (place / "second").read_text()
        assert table(text) == expected
        assert "done before (extract-" in text
        assert "epoch 1/2: " not in text
        tracked, run = the_run(f"http://127.0.0.1:{port}")
        assert run.info.status == "FINISHED"
        history = tracked.get_metric_history(run.info.run_id, "train/mAP")
        assert [point.step for point in history] == [0, 1, 2]
        version = tracked.get_model_version_by_alias("mmray", "newest")
        assert (version.run_id, str(version.version)) == (run.info.run_id, "1")
        # Nothing is kept on the machine itself.
        assert {file.name for file in place.iterdir()} == {"first", "second"}
    finally:
        server.terminate()
        server.wait()


def test_machines_that_never_come_end_the_job_with_a_sentence(tmp_path):
    """On a cluster without GPUs, told that some will come."""
    flags = ("--storage", tmp_path / "runs", *SMALL, "--mining.device", "cpu")
    hopeful = ("--num-cpus", 8, "--num-gpus", 2, "--resource-timeout")
    with running_head(tmp_path, port=26979, cpus=4, dashboard=True) as address:

        def job(name, *more):
            log = tmp_path / name
            process = start(
                log, sys.executable, ROOT / "jobs/retrieval.py", *flags, *more, RAY_ADDRESS=address
            )
            return process.wait(300), log.read_text()

        status, text = job("extract", "--stages", "extract", *hopeful, 4)
        assert status == 2, text
        assert "error: extract: no worker could start for 4 s (--resource-timeout): " in text
        assert "one needs 1 CPU and 1 GPU, the cluster has 4 CPU and 0 GPU" in text
        assert "Traceback" not in text

        status, text = job("mine", "--stages", "extract,graph,mine")
        assert status == 0, text
        status, text = job("train", "--stages", "train", *hopeful, 30)
        assert status == 2, text
        assert "error: train: no worker could start for 30 s (--resource-timeout): " in text
        assert "Traceback" not in text
