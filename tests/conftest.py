"""One local Ray for all tests that need it, without the token that would outlive them."""

import os
from collections.abc import Iterator

os.environ["RAY_AUTH_MODE"] = "disabled"  # read when ray is imported
os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")

import pytest
import ray

from mmray.distributed import cluster


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    cluster.connect()
    yield
    ray.shutdown()
