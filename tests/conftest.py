"""One local Ray for all tests that need it, and the marks that folders give to their tests.

`make test-fast` leaves out what is marked `ray`, `process` or `slow`. Tests are `ray` where they
use the Ray of the tests, and in end_to_end/; `process` in end_to_end/ and jobs/, where jobs are run
as users run them. A single test elsewhere that starts a process says so itself.
"""

import os

if "PYTEST_XDIST_WORKER" in os.environ:
    # As many workers as CPUs: with more threads each they wait for one another. Before numpy.
    os.environ |= dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1"
    )
os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported; else a token outlives us
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # training here takes seconds
os.environ.setdefault("RAY_metrics_report_interval_ms", "500")  # of 10 s: a test waits for them
# Of the local S3 server: the workers of Ray inherit them.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import hypothesis
import pytest
from pyarrow import fs

from mmray.system import locations

TESTS = Path(__file__).parent
MARKS = {"end_to_end": ("ray", "process"), "jobs": ("process",)}  # by folder
# Each group is one after the other in one process of `pytest -n`, on a Ray of its own. Both take
# about as long, so that neither goes on alone when all else is done.
TOGETHER = (
    ("tests/end_to_end/", "tests/chaos/"),
    ("tests/jobs/", "tests/pipeline/distributed/"),
)

# The same examples every time, however slow the machine is.
hypothesis.settings.register_profile(
    "ci", deadline=None, derandomize=True, max_examples=50, database=None
)
hypothesis.settings.load_profile("ci")


def pytest_itemcollected(item: pytest.Item) -> None:
    marks = {*MARKS.get(item.path.relative_to(TESTS).parts[0], ())}
    if "ray_cluster" in getattr(item, "fixturenames", ()):
        marks.add("ray")
    for mark in marks:
        item.add_marker(mark)


@pytest.hookimpl(optionalhook=True)  # of pytest-xdist, whose groups pytest 9.2 does not heed
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    from xdist.scheduler import LoadScopeScheduling

    class RayTogether(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return next((group[0] for group in TOGETHER if nodeid.startswith(group)), nodeid)

    return RayTogether(config, log)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if re.match(r"not \W*ray\b", terminalreporter.config.option.markexpr):
        terminalreporter.write_line(
            "This was the fast part: `make test` adds all that runs on Ray or in new processes, "
            "`make test-all` what takes minutes each."
        )


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    import ray

    from mmray.pipeline.distributed import cluster

    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def on_cluster(ray_cluster: None) -> dict[str, str]:
    """The environment of a job on the cluster of the tests: starting one each time takes longer."""
    import ray

    address = ray.get_runtime_context().gcs_address
    return os.environ | {"RAY_ADDRESS": address, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A local server that speaks S3: the query that its URIs end with."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"?scheme=http&region=us-east-1&endpoint_override={host}:{port}"
    server.stop()


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """s3://bucket as a folder of this machine, behind the interface of a remote file system."""
    (tmp_path / "bucket").mkdir()

    def open_folder(uri: str) -> tuple[fs.FileSystem, str]:
        path = unquote(uri.removeprefix("s3://").partition("?")[0]).rstrip("/")
        return fs.SubTreeFileSystem(str(tmp_path), fs.LocalFileSystem()), path

    monkeypatch.setattr(locations, "open_folder", open_folder)
    monkeypatch.setattr(locations, "PAUSES", (0.0, 0.0))
    return tmp_path / "bucket"
