"""Decoders in processes of their own, shared by the threads of a server."""

from concurrent.futures import ThreadPoolExecutor
from functools import partial
from queue import LifoQueue
from typing import Any

from mmray.images.decoding import Decoded
from mmray.images.isolated_decoding import IsolatedDecoder

_SECONDS = 60.0  # for one image, several times the CPU time that `bombs` allows


class DecoderPool:
    """Threads, each of which has a decoder in a process of its own.

    Whatever bytes a client sends, the worst that decoding them can do is to end that process: the
    image then has an error, and the next one a new process.

    Attributes
    ----------
    executor : threads for work that decodes, as many as there are decoders
    """

    def __init__(self, count: int, name: str) -> None:
        self.executor = ThreadPoolExecutor(count, thread_name_prefix=name)
        self._idle: LifoQueue[IsolatedDecoder] = LifoQueue()
        self._decoders = [IsolatedDecoder(_SECONDS) for _ in range(count)]
        for decoder in self._decoders:
            self._idle.put(decoder)

    def decode(self, data: bytes, **options: Any) -> Decoded:
        """Decode one image; data and options as of `images.decoding.decode`."""
        decoder = self._idle.get()
        try:
            return decoder(data, **options)
        finally:
            self._idle.put(decoder)

    def start(self) -> None:
        """Start the processes ahead of the first request; it does not wait for them."""
        for _ in self._decoders:
            self.executor.submit(partial(self.decode, b"", longest_side=1))

    def close(self) -> None:
        """Wait for the work that runs, drop the rest, and end the processes."""
        self.executor.shutdown(cancel_futures=True)
        for decoder in self._decoders:
            decoder.close()
