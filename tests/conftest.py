"""One local Ray for all tests that need it, without the token that would outlive them."""

import os
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
# Of the local S3 server: the workers of Ray inherit them.
os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}

import pytest
import ray
from moto.server import ThreadedMotoServer
from pyarrow import fs

from mmray.pipeline.distributed import cluster
from mmray.system import locations


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    cluster.connect()
    yield
    ray.shutdown()


@pytest.fixture(scope="session")
def on_cluster(ray_cluster: None) -> dict[str, str]:
    """The environment of a job on the cluster of the tests: starting one each time takes longer."""
    address = ray.get_runtime_context().gcs_address
    return os.environ | {"RAY_ADDRESS": address, "AWS_EC2_METADATA_DISABLED": "true"}


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """A local server that speaks S3: the query that its URIs end with."""
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
