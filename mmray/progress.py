"""Progress of long work: a bar on a terminal, a line now and then in a log."""

import sys
import time
from types import TracebackType

from tqdm import tqdm

LOG_EVERY = 10.0  # seconds between two lines where there is no terminal


def announce(line: str) -> None:
    """Tell the user, in a way that a Ray worker passes on once (Ray Train doubles `print`)."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


class Progress:
    """Counts items that are done out of a total, with the rate and the time left.

    >>> with Progress("extract", total=600) as progress:
    ...     progress.advance(32)
    """

    def __init__(self, label: str, *, total: int, done: int = 0, silent: bool = False) -> None:
        self.label, self.total, self.done, self.silent = label, total, done, silent
        self.resumed, self.start = done, time.monotonic()
        self.last = self.start
        self.bar = (
            tqdm(total=total, initial=done, desc=f"{label:>9}", unit="", dynamic_ncols=True)
            if sys.stderr.isatty() and not silent
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None:
            self._line()

    def advance(self, items: int) -> None:
        self.done += items
        if self.bar is not None:
            self.bar.update(items)
        elif time.monotonic() - self.last > LOG_EVERY:
            self._line()

    def _line(self) -> None:
        if self.silent:
            return
        self.last = time.monotonic()
        elapsed = self.last - self.start
        rate = (self.done - self.resumed) / max(elapsed, 1e-9)
        missing = self.total - self.done
        left = f", {missing / rate:.0f} s left" if rate and missing else ""
        announce(f"{self.label:>9}: {self.done}/{self.total}, {rate:.1f}/s, {elapsed:.0f} s{left}")
