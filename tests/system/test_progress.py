"""Progress goes to a log as lines, with the time left."""

import time

import numpy as np
import pytest

from mmray.system import progress
from mmray.system.progress import Progress


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_every_ten_seconds_and_one_at_the_end(clock, capsys):
    with Progress("extract", total=100, done=20) as shown:
        for _ in range(4):
            clock[0] += 6
            shown.advance(20)
    lines = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in lines] == [
        "extract: 60/100, 3.3/s, 12 s, 12 s left",
        "extract: 100/100, 3.3/s, 24 s",
    ]


def test_the_time_left_goes_by_what_was_done_since_workers_had_started(clock, capsys):
    """They start for 60 s and do 10 items in 3 s each."""
    figures = []
    with Progress("extract", total=1050, done=1000, report=figures.append) as shown:
        clock[0] += 63
        for _ in range(5):
            shown.advance(10)
            clock[0] += 3 if shown.done < 1020 else 11
    lines = [line.strip() for line in capsys.readouterr().err.splitlines()]
    assert lines[0] == "extract: 1010/1050, 0.2/s, 63 s"
    assert lines[1] == "extract: 1030/1050, 0.4/s, 77 s, 14 s left"
    assert [figure.get("seconds_left") for figure in figures] == [None, 14, 8.333333333333334, 0]
    assert figures[0]["per_second"] == pytest.approx(10 / 63)


def test_a_bar_shows_the_same_time_left(clock, capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with Progress("extract", total=40) as shown:
        for _ in range(4):
            clock[0] += 3 if shown.done else 60
            shown.advance(10, bytes=1000)
            shown.bar.refresh()
    bars = capsys.readouterr().err.split("\r")
    assert any("20/40" in bar and "2 kB, 6 s left]" in bar for bar in bars)
    assert not any("10/40" in bar and "left" in bar for bar in bars)
    assert "40/40" in bars[-1]
    assert bars[-1].rstrip().endswith("4 kB]")


def _advances(workers: int, units: int, seed: int) -> list[float]:
    """The times at which workers, which start for about 20 s, finish units of 2 to 6 s."""
    rng = np.random.default_rng(seed)
    free = list(20 + rng.uniform(0, 2, workers))
    times = []
    for _ in range(units):
        worker = int(np.argmin(free))
        free[worker] += rng.uniform(2, 6)
        times.append(free[worker])
    return sorted(times)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("workers", [1, 4, 32])
def test_the_time_left_is_right_within_30_percent_after_ten_seconds_of_work(clock, workers, seed):
    times = _advances(workers, 60 * workers, seed)
    shown, told = Progress("extract", total=len(times), silent=True, parallel=workers), []
    for now in times:
        clock[0] = now
        shown.advance(1)
        left = shown.figures().get("seconds_left")
        if times[0] + 10 < now < times[-1] - 20 and left is not None:
            told.append(left / (times[-1] - now))
    assert len(told) > 0.8 * len(times) - 3 * workers
    assert 0.7 < min(told) <= max(told) < 1.3


def test_what_several_workers_finish_at_once_tells_no_speed(clock):
    shown = Progress("extract", total=100, silent=True, parallel=4)
    clock[0] += 20
    for _ in range(4):
        shown.advance(5)
    assert "seconds_left" not in shown.figures()
    clock[0] += 20
    for _ in range(4):
        shown.advance(5)
    assert shown.figures()["seconds_left"] == pytest.approx(60)


def test_an_interrupted_stage_claims_no_end(clock, capsys):
    with pytest.raises(KeyboardInterrupt), Progress("mine", total=2):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == ""


def test_sums_are_shown_and_reported_with_the_rate_and_the_time_left(clock, capsys):
    figures = []
    with Progress("extract", total=100, done=20, report=figures.append) as shown:
        clock[0] += 20
        shown.advance(40, bytes=1_234_567)
        clock[0] += 20
        shown.advance(40, bytes=1000, bad=2)
    lines = capsys.readouterr().err.splitlines()
    assert [line.strip() for line in lines] == [
        "extract: 60/100, 2.0/s, 20 s, 1.23 MB",
        "extract: 100/100, 2.0/s, 40 s, 1.24 MB, 2 bad",
    ]
    assert figures[0] == {"done": 60, "per_second": 2, "bytes": 1_234_567}
    assert figures[-1]["bad"] == 2
    assert figures[-1]["seconds_left"] == 0


@pytest.mark.parametrize(
    ("count", "text"), [(7, "7 B"), (1500, "1.5 kB"), (99e9, "99 GB"), (2e15, "2e+03 TB")]
)
def test_bytes_are_said_in_a_fitting_unit(clock, capsys, count, text):
    with Progress("x", total=1) as shown:
        shown.advance(1, bytes=int(count))
    assert text in capsys.readouterr().err


def test_the_time_left_counts_what_follows_at_the_same_speed(clock):
    """Half of the second of three epochs is done, at 2 s an item; a check of 7 s follows each."""
    shown = Progress("epoch 2 of 3", total=20, silent=True, then=(20, 14.0))
    for _ in range(5):
        clock[0] += 4
        shown.advance(2)
    assert shown.figures()["seconds_left"] == pytest.approx(2 * (10 + 20) + 14)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"),
        (99, "99 s"),
        (99.7, "1.7 min"),
        (5961, "99.3 min"),
        (5971, "1.7 h"),
        (9e5, "250.0 h"),
    ],
)
def test_durations_are_told_within_a_twentieth(seconds, said):
    assert progress.duration(seconds) == said
    number, unit = said.split()
    told = float(number) * {"s": 1, "min": 60, "h": 3600}[unit]
    assert told == pytest.approx(seconds, rel=0.05)


def test_a_log_has_one_line_of_a_short_work_and_one_more_of_a_long_one(capsys, monkeypatch):
    with progress.timed("stage 1 of 2: list the images", "list-12ab"):
        progress.announce("list: photos, 3 image files")
    assert capsys.readouterr().err.splitlines() == [
        "list: photos, 3 image files",
        "stage 1 of 2: list the images: 0 s (list-12ab)",
    ]
    monkeypatch.setattr(progress, "LOG_EVERY", 0.01)
    with progress.timed("stage 2 of 2: mine", "mine-12ab"):
        time.sleep(0.2)
    assert capsys.readouterr().err.splitlines() == [
        "stage 2 of 2: mine",
        "stage 2 of 2: mine: 0 s (mine-12ab)",
    ]


def test_work_that_fails_says_that_it_is_not_finished(capsys):
    with pytest.raises(KeyboardInterrupt), progress.timed("stage 1 of 2: mine", "mine-12ab"):
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "stage 1 of 2: mine: not finished, after 0 s\n"


def test_a_terminal_is_told_of_a_work_when_it_begins_and_when_it_is_done(capsys, monkeypatch):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    with progress.timed("stage 1 of 2: list the images", "list-12ab"):
        assert capsys.readouterr().err == "stage 1 of 2: list the images\n"
    assert capsys.readouterr().err == "  done in 0 s (list-12ab)\n"


def test_quietly_neither_lines_nor_bars_are_shown_but_figures_are_reported(
    clock, capsys, monkeypatch
):
    monkeypatch.setattr(progress.sys.stderr, "isatty", lambda: True)
    figures = []
    with progress.quietly(), progress.timed("mine", "mine-12ab"):
        with Progress("mine", total=1, report=figures.append) as shown:
            shown.advance(1)
        progress.announce("pools: 3")
    assert capsys.readouterr() == ("", "")
    assert figures[0]["done"] == 1
    with progress.quietly(False):
        progress.announce("heard")
    assert capsys.readouterr().err == "heard\n"


def test_what_is_announced_is_one_line_without_control_characters(capsys):
    progress.announce("list: photos\n\x1b[31m\u2028, 3 image files")
    assert capsys.readouterr().err == "list: photos\\n\\x1b[31m\\u2028, 3 image files\n"
