"""An image that ends the process that decodes it is found, and costs no other."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from mmray.images.decoding import decode
from mmray.images.isolated_decoding import IsolatedDecoder
from tests.made.bad_images import bad_files, encoded, scene

PNG = encoded(scene(60, 40), "PNG")


@pytest.fixture
def isolated():
    decoder = IsolatedDecoder()
    yield decoder
    decoder.close()


def test_it_decodes_as_usual_options_and_errors_and_all(isolated):
    for options in (
        {"longest_side": 30},
        {"longest_side": None, "box": (5.0, 6.0, 25.0, 16.0)},
        {"longest_side": 60, "max_pixels": 2399},
    ):
        for data in (PNG, b"", *[data for data, _ in list(bad_files().values())[:5]]):
            ours, usual = isolated(data, **options), decode(data, **options)
            assert (ours.width, ours.height, ours.error) == (usual.width, usual.height, usual.error)
            np.testing.assert_array_equal(ours.pixels, usual.pixels)


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL])
def test_an_image_that_ends_the_process_has_that_as_its_error(isolated, how):
    assert isolated(PNG, longest_side=60).error is None
    os.kill(isolated._process.pid, how)
    while isolated._process.poll() is None:
        time.sleep(0.01)
    dead = isolated(PNG, longest_side=60)
    assert dead.pixels is None
    assert dead.error == f"decoding it ended a process ({how.name})"
    assert isolated(PNG, longest_side=60).pixels.shape == (40, 60, 3)


def test_a_process_that_hangs_is_ended():
    decoder = IsolatedDecoder(seconds=60)
    assert decoder(PNG, longest_side=60).error is None
    decoder._seconds = 0.3
    os.kill(decoder._process.pid, signal.SIGSTOP)
    assert decoder(PNG, longest_side=60).error == "decoding it ended a process (SIGKILL)"
    decoder._seconds = 60
    assert decoder(PNG, longest_side=60).pixels.shape == (40, 60, 3)
    decoder.close()


@pytest.mark.process
def test_the_process_ends_with_the_one_that_uses_it():
    code = (
        "import os, signal\n"
        "from mmray.images.isolated_decoding import IsolatedDecoder\n"
        "decoder = IsolatedDecoder()\n"
        "decoder(b'', longest_side=9)\n"
        "print(decoder._process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 20
    while alive(int(done.stdout)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not alive(int(done.stdout))


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:  # noqa: PTH123
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
