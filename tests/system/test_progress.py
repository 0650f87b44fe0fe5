"""Progress goes to a log as lines, with the time left."""

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


def test_what_several_workers_finish_at_once_tells_no_speed(clock):
    shown = Progress("extract", total=100, silent=True)
    clock[0] += 20
    for _ in range(4):
        shown.advance(5)
    assert "seconds_left" not in shown.figures()
    clock[0] += 20
    for _ in range(4):
        shown.advance(5)
    assert shown.figures()["seconds_left"] == pytest.approx(60 * 20 / 35)


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


def test_what_is_announced_is_one_line_without_control_characters(capsys):
    progress.announce("list: photos\n\x1b[31m\u2028, 3 image files")
    assert capsys.readouterr().err == "list: photos\\n\\x1b[31m\\u2028, 3 image files\n"
