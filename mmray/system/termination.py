"""Last actions and last words of a process that is told to terminate, or is killed."""

import signal
import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_termination(act: Callable[[], None]) -> Iterator[None]:
    """Call `act`, from a thread, at once when SIGTERM arrives inside the block.

    Python runs the handler of a signal between two steps of its main thread. A search or a matrix
    product in native code may take longer than `ray job stop` waits before it kills: three seconds.
    There must be a handler, and only the main thread may call this; elsewhere it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arriving, sending = socket.socketpair()
    sending.setblocking(False)

    def watch() -> None:
        while number := arriving.recv(1):
            if number[0] == signal.SIGTERM:
                act()
                return

    watcher = threading.Thread(target=watch, daemon=True, name="on_termination")
    watcher.start()
    before = signal.set_wakeup_fd(sending.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        sending.close()  # which ends the watcher, after `act` if that is running
        watcher.join()
        arriving.close()


@contextmanager
def last_words(words: str) -> Iterator[None]:
    """Have these words written to stderr if the process is ended within the block, without warning.

    By a SIGKILL, for lack of memory say, or by native code that ends it.
    """
    witness = subprocess.Popen(
        ["sh", "-c", 'read -r _ || echo "$1" >&2', "sh", words],
        stdin=subprocess.PIPE,  # a line before it ends: all is well
        stdout=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is not for it
    )
    try:
        yield
    finally:
        witness.communicate(b"\n")
