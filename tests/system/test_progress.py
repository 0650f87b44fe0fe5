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
        "extract: 100/100, 3.3/s, 24 s",
    ]


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
        "extract: 60/100, 2.0/s, 20 s, 1.23 MB, 20 s left",
        "extract: 100/100, 2.0/s, 40 s, 1.24 MB, 2 bad",
        "extract: 100/100, 2.0/s, 40 s, 1.24 MB, 2 bad",
    ]
    assert figures[0] == {"done": 60, "per_second": 2, "bytes": 1_234_567, "seconds_left": 20}
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
