"""The scale and device of the GPU benchmark, how it times, and the lines that it prints."""

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from mmray.images.collection import Collection
from mmray.images.sources import find
from mmray.system.arrays import Device

_DIGITS = 5  # of a figure, wherever its first one stands: deviations are as small as 1e-7


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One run of the GPU benchmark.

    Attributes
    ----------
    full : whether it measures; otherwise all is small, a test of the benchmark
    device : "cuda" or "cpu"
    started : when, by `time.perf_counter`
    """

    full: bool
    device: Device
    started: float = field(default_factory=time.perf_counter)

    @property
    def cuda(self) -> bool:
        return self.device == "cuda"

    @property
    def torch_device(self) -> torch.device:
        return torch.device(self.device)

    @property
    def longest_side(self) -> int:
        """Pixels of the longest side of an image that a network sees."""
        return 362 if self.full else 64

    def say(self, part: str, **figures: Any) -> None:
        """Print a line of JSON: seconds since the start, the part, and what it found."""
        shown = {
            name: float(f"{value:.{_DIGITS}g}") if isinstance(value, float) else value
            for name, value in figures.items()
        }
        seconds = round(time.perf_counter() - self.started)
        print(json.dumps({"t": seconds, "part": part} | shown), flush=True)

    def seconds(self, call: Callable[[], object], repeats: int = 3) -> float:
        """Mean seconds of a call, after one that warms up."""
        call()
        self._wait()
        start = time.perf_counter()
        for _ in range(repeats):
            call()
        self._wait()
        return (time.perf_counter() - start) / repeats

    def _wait(self) -> None:
        if self.cuda:
            torch.cuda.synchronize()


@contextmanager
def photos(count: int, longest_side: int) -> Iterator[Collection]:
    """JPEG files of smoothed noise in mixed shapes, in a folder that goes when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        # Threads: to fork beside CUDA, or beside a Ray that is connected, is not safe. PIL frees
        # the interpreter while it resizes and encodes.
        with ThreadPoolExecutor() as pool:
            write = partial(_write_photo, Path(folder), longest_side)
            list(pool.map(write, range(count)))
        yield find(folder).images


def _write_photo(folder: Path, width: int, number: int) -> None:
    rng = np.random.default_rng(number)
    height = int(width * rng.choice([0.75, 0.75, 0.667, rng.uniform(0.5, 1)]))
    noise = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
    photo = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    photo.save(folder / f"{number:06d}.jpg", quality=85)
