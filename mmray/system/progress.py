"""Progress of long work: a bar on a terminal, a line every few seconds in a log."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType

from tqdm import tqdm

from mmray.system.errors import printable
from mmray.system.uris import masked_text

# tqdm's own format without its time left, which counts the start of workers as work.
BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {rate_fmt}{postfix}]"
LOG_EVERY = 10.0  # seconds between two lines where there is no terminal, and between two reports

_quiet = False  # of this process


@contextmanager
def quietly(quiet: bool = True) -> Iterator[None]:
    """Show no progress within the block, if `quiet`: neither lines nor bars."""
    global _quiet
    before, _quiet = _quiet, _quiet or quiet
    try:
        yield
    finally:
        _quiet = before


def is_quiet() -> bool:
    """Tell whether this process shows no progress."""
    return _quiet


def announce(line: str) -> None:
    """Write one `printable` line to stderr, which a Ray worker passes on once.

    (Ray Train doubles `print`.) Credentials of URIs in it are hidden.
    """
    if _quiet:
        return
    text = printable(masked_text(line))
    if sys.stderr.isatty():
        tqdm.write(text, file=sys.stderr)  # above a bar, if one is there
        return
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def timed(what: str, where: str) -> Iterator[None]:
    """Say what is done within the block, how long it took, and where its result is.

    On a terminal that is a line before and one after; in a log one line, after the block, and one
    before it where the block takes longer than `LOG_EVERY`.
    """
    start, terminal = time.monotonic(), sys.stderr.isatty()
    begun = threading.Timer(LOG_EVERY, announce, [what])
    if terminal:
        announce(what)
    else:
        begun.daemon = True
        begun.start()
    try:
        yield
    except BaseException:
        announce(f"{what}: not finished, after {duration(time.monotonic() - start)}")
        raise
    finally:
        begun.cancel()
    said = "  done in" if terminal else f"{what}:"
    announce(f"{said} {duration(time.monotonic() - start)} ({where})")


def duration(seconds: float) -> str:
    """Format a duration with two digits or more.

    >>> duration(8), duration(200), duration(7200)
    ('8 s', '3.3 min', '2.0 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    if seconds < 99.5 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


class Progress:
    """A counter of finished items, with their rate, the time left and further sums.

    >>> with Progress("extract", total=600) as progress:
    ...     progress.advance(32, bytes=1_500_000, bad=1)

    Parameters
    ----------
    label : name of the work in the bar and the log
    total, done : number of all items, and of those that an earlier call finished
    silent : show neither bar nor log lines
    report
        Called with `figures()` every few seconds, and at the end.
    then : items and seconds of what follows at the same speed, which count for the time left
    parallel : number of workers, each of which has something to advance by
    """

    def __init__(
        self,
        label: str,
        *,
        total: int,
        done: int = 0,
        silent: bool = False,
        report: Callable[[Mapping[str, float]], None] | None = None,
        then: tuple[int, float] = (0, 0.0),
        parallel: int = 1,
    ) -> None:
        self.label, self.total, self.done, self.silent = label, total, done, silent or _quiet
        self.then, self._starting = then, parallel
        self.sums: dict[str, int] = {}
        self._report = report
        self.resumed, self.start = done, time.monotonic()
        self.last = self.start
        self._told: int | None = None  # items done at the last line and report
        # Time and items done of the first advance of all workers, and time of the last: until the
        # first, workers start, which is no part of the rate. What all of them finish at first they
        # have worked on before.
        self._first: tuple[float, int] | None = None
        self._latest = self.start
        self.bar = (
            tqdm(
                total=total,
                initial=done,
                desc=f"{label:>9}",
                unit="",
                dynamic_ncols=True,
                bar_format=BAR,
            )
            if sys.stderr.isatty() and not self.silent
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
        if kind is None and self._told != self.done:
            self._tell()

    def advance(self, items: int, **amounts: int) -> None:
        self.done += items
        self._latest = time.monotonic()
        self._starting -= 1
        if self._starting == 0:
            self._first = self._latest, self.done
        for name, amount in amounts.items():
            self.sums[name] = self.sums.get(name, 0) + amount
        if self.bar is not None:
            self.bar.set_postfix_str(", ".join(self._notes()), refresh=False)
            self.bar.update(items)
        if self._latest - self.last > LOG_EVERY:
            self._tell()

    def figures(self) -> dict[str, float]:
        """Return items done, items per second, the sums, and seconds left where they are known.

        The rate is that since the start. The seconds left go by the items after the first advances,
        one for each worker, which have waited for workers to start; they are unknown within a
        second of these.
        """
        elapsed = time.monotonic() - self.start
        rate = (self.done - self.resumed) / max(elapsed, 1e-9)
        figures = {"done": self.done, "per_second": rate, **self.sums}
        seconds_left = self._seconds_left()
        if seconds_left is not None:
            figures["seconds_left"] = seconds_left
        return figures

    def _seconds_left(self) -> float | None:
        more, later = self.then
        left = self.total - self.done + more
        if left <= 0:
            return later
        if self._first is None:
            return None
        time_of_first, done_then = self._first
        seconds, items = self._latest - time_of_first, self.done - done_then
        return left * seconds / items + later if seconds >= 1 and items else None

    def _tell(self) -> None:
        self.last, self._told = time.monotonic(), self.done
        figures = self.figures()
        if self._report is not None:
            self._report(figures)
        if self.silent or self.bar is not None:
            return
        elapsed = self.last - self.start
        line = f"{self.label:>9}: {self.done}/{self.total}, {figures['per_second']:.1f}/s"
        announce(", ".join([line, duration(elapsed), *self._notes()]))

    def _notes(self) -> list[str]:
        """Return the sums and, before the end, the time left, each with its unit."""
        notes = [
            _bytes(amount) if name == "bytes" else f"{amount} {name}"
            for name, amount in self.sums.items()
        ]
        seconds_left = self._seconds_left()
        if seconds_left:
            notes.append(f"{duration(seconds_left)} left")
        return notes


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
