"""The command `mmray` runs every job by its name."""

import sys

import pytest

from mmray.__main__ import JOBS, main


@pytest.fixture(autouse=True)
def own_arguments(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["mmray"])


def test_every_job_has_a_line_of_help(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == list(JOBS)
    assert all(len(line) > 30 for line in lines[2:])
    assert main([]) == 0


def test_a_job_that_does_not_exist_is_named(capsys):
    assert main(["minw"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert "error: no job 'minw'" in told.err
    assert "{retrieval,finegrained,mine," in told.err


@pytest.mark.parametrize("name", [name for name in JOBS if name != "benchmark"])
def test_the_help_of_a_job_is_that_of_the_command(name, capsys):
    with pytest.raises(SystemExit) as ended:
        main([name, "--help"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: mmray {name} ")


def test_a_job_ends_with_its_status(tmp_path, capsys):
    assert main(["figure1", "--output", str(tmp_path / "figure.jpg")]) == 2
    assert "error: --output" in capsys.readouterr().err
