"""A process that is told to end does the last things at once, even inside native code."""

import signal
import subprocess
import sys
import threading
import time

import pytest

from mmray.system.termination import on_termination

# One call into C that lasts longer than anybody waits, and heeds no signal until it returns.
STUCK = """
import hashlib, signal, sys
from mmray.config.command_line import exit_status
from mmray.system.termination import on_termination

def job():
    with on_termination(lambda: print("ended", flush=True)):
        print("busy", flush=True)
        hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)

sys.exit(exit_status(job))
"""


@pytest.mark.process
def test_sigterm_is_heeded_while_the_main_thread_is_in_native_code():
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    time.sleep(0.2)
    start = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "ended\n"
    assert time.monotonic() - start < 2
    assert process.poll() is None  # the handler of the main thread has not run yet
    process.kill()
    process.wait()


def test_it_acts_once_inside_the_block_and_on_sigterm_alone():
    acts, handled = [], []
    before = signal.signal(signal.SIGTERM, lambda *_: handled.append("term"))
    other = signal.signal(signal.SIGUSR1, lambda *_: handled.append("usr1"))
    try:
        with on_termination(lambda: acts.append(1)):
            signal.raise_signal(signal.SIGUSR1)
            assert acts == []
            signal.raise_signal(signal.SIGTERM)
        assert acts == [1]
        signal.raise_signal(signal.SIGTERM)
        assert acts == [1]
        assert handled == ["usr1", "term", "term"]
    finally:
        signal.signal(signal.SIGTERM, before)
        signal.signal(signal.SIGUSR1, other)
    assert signal.set_wakeup_fd(-1) == -1


def test_in_another_thread_it_does_nothing():
    reached = []

    def work():
        with on_termination(lambda: None):
            reached.append(True)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert reached == [True]


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("os.kill(os.getpid(), 9)", "the last words\n"),
        ("os._exit(1)", "the last words\n"),
        ("pass", ""),
        ("sys.exit(3)", ""),
    ],
)
def test_a_process_that_is_ended_without_warning_has_last_words(end, said):
    program = f"""
import os, sys
from mmray.system.termination import last_words
with last_words("the last words"):
    {end}
"""
    done = subprocess.run([sys.executable, "-c", program], stderr=subprocess.PIPE, text=True)
    assert done.stderr == said
