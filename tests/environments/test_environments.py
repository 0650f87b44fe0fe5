"""The cheap ones of the odd environments; `python -m tests.environments` meets all."""

import os
import shutil

import pytest

from tests.environments.__main__ import run
from tests.environments.cases import CHEAP


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None,
    reason="needs root and mount namespaces",
)
@pytest.mark.parametrize("name", CHEAP)
def test_a_full_disk_ends_a_job_with_a_sentence_and_room_lets_it_go_on(name):
    result = run(name)
    assert not result["wrong"], result
