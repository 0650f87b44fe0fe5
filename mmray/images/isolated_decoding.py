"""Decoding in a process of its own, so that an image which crashes it does no other harm.

Libraries in C crash on some damaged files, and a huge image may use up the memory. A unit of work
that was ended once while decoding continues in this way, and finds the image at fault.
"""

import contextlib
import pickle
import select
import signal
import subprocess
import sys
from typing import Any

from mmray.images.decoding import Decoded, decode
from mmray.system.processes import of_module


class IsolatedDecoder:
    """A decoder like `decode` in a process of its own; an image that ends it gets an error.

    Parameters
    ----------
    seconds : after which the process is ended, as if the image had; None: it may take any time
    """

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = seconds
        self._process: subprocess.Popen[bytes] | None = None

    def __call__(self, data: bytes, **options: Any) -> Decoded:
        if self._process is None:
            # It ends by itself when this process does: its input is closed then.
            self._process = subprocess.Popen(
                **of_module(__spec__.name),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            pickle.dump((data, options), self._process.stdin)
            self._process.stdin.flush()
            if self._seconds is not None:
                poll = select.poll()
                poll.register(self._process.stdout, select.POLLIN)
                if not poll.poll(1000 * self._seconds):
                    self._process.kill()
            decoded: Decoded = pickle.load(self._process.stdout)
        except (BrokenPipeError, EOFError):
            return Decoded(None, 0, 0, f"decoding it ended a process ({self._end()})")
        return decoded

    def close(self) -> None:
        if self._process is not None:
            self._end()

    def _end(self) -> str:
        """Wait for the process to end; return how it ended."""
        process, self._process = self._process, None
        assert process is not None
        with contextlib.suppress(BrokenPipeError):  # input that it did not take
            process.__exit__(None, None, None)
        code = process.wait()
        return signal.Signals(-code).name if code < 0 else f"status {code}"


def serve(requests: Any, answers: Any) -> None:
    """Decode the images that arrive on a stream, until the stream is closed."""
    while True:
        try:
            data, options = pickle.load(requests)
        except EOFError:
            return
        pickle.dump(decode(data, **options), answers)
        answers.flush()


if __name__ == "__main__":
    # Ctrl-C reaches all processes of a terminal: this one ends when its input does.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    serve(sys.stdin.buffer, sys.stdout.buffer)
