"""Progress goes to a log as lines, with the time left."""

import pytest

from mmray import progress
from mmray.progress import Progress


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
