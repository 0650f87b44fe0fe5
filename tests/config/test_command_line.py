"""The command line is made of the settings, and its defaults are the preset's."""

import io
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "jobs"))

import retrieval

from mmray.config.command_line import exit_status
from mmray.config.command_line import parse as parse_for
from mmray.config.learning import FinegrainedConfig
from mmray.config.presets import (
    DEMO,
    FINEGRAINED_ABLATIONS,
    FINEGRAINED_PRESETS,
    MINE_PRESETS,
    PRESETS,
    RETRIEVAL,
    RETRIEVAL_ABLATIONS,
    preset,
    with_defaults,
)
from mmray.config.sections import MiningConfig
from mmray.system.errors import InputError, MachineError


def parse(arguments):
    return parse_for(PRESETS, arguments, "")


def test_without_arguments_the_demonstration_runs():
    assert parse([]) == DEMO


@pytest.mark.parametrize("arguments", [["--preset", "retrieval"], ["--preset=retrieval"]])
def test_a_preset_brings_its_defaults(arguments):
    assert parse(arguments) == RETRIEVAL


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "retrieval", "--recipe", "paper"],
        ["--recipe=paper", "--preset=retrieval"],
    ],
)
def test_a_recipe_brings_its_defaults_to_any_preset(arguments):
    assert parse(arguments) == preset("retrieval", "paper")
    assert parse([*arguments, "--training.epochs", "2"]).training.epochs == 2
    assert parse(["--recipe", "paper"]) == preset("demo", "paper")


def test_a_file_of_tuples_brings_the_recipe_of_the_supervised_baseline():
    for arguments in (["--tuples", "t.pkl"], ["--tuples=t.pkl"]):
        config = parse([*arguments, "--images", "ims", "--training.epochs", "2"])
        supervised = preset("demo", "supervised")
        assert config.training == replace(supervised.training, epochs=2)
        assert (config.recipe, config.tuples) == ("supervised", "t.pkl")
    assert parse(["--tuples", "t.pkl", "--preset", "retrieval"]).training.negatives == 5
    assert parse(["--tuples", "t.pkl", "--recipe", "paper"]).recipe == "paper"  # refused later
    assert parse(["--tuples", "None"]) == DEMO


@pytest.mark.parametrize(
    "arguments",
    [["--images"], ["--images", "--preset", "demo"], ["--seed", "1", "--images"]],
)
def test_a_flag_without_a_value_is_refused_and_not_taken_for_the_demonstration(arguments):
    with pytest.raises(InputError, match=r"^--images is missing: it has no value"):
        parse(arguments)
    assert parse(["--seed", "1"]).images == ()


def test_flags_change_a_preset_wherever_they_stand():
    config = parse(["--mining.alpha", "0.9", "--images", "a", "b", "--preset", "retrieval"])
    assert config.mining.alpha == 0.9
    assert config.images == ("a", "b")
    assert config.mining.positive_k == RETRIEVAL.mining.positive_k


@pytest.mark.parametrize(
    "arguments",
    [
        ["--preset", "other"],
        ["--training.pooling", "macs"],
        ["--mining.alpha", "much"],
        ["--nonsense"],
    ],
)
def test_what_cannot_be_parsed_ends_with_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        parse(arguments)
    assert ended.value.code == 2
    assert arguments[-1].lstrip("-") in "".join(capsys.readouterr())


def test_an_impossible_setting_ends_with_status_2_and_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["retrieval.py", "--training.batch-size", "0"])
    assert retrieval.main() == 2
    output = capsys.readouterr()
    assert output.err == "error: --training.batch-size 0: choose a value from 1 to 1e+06\n"
    assert output.out == ""


def test_a_job_of_other_settings_has_its_own_presets():
    config = parse_for(MINE_PRESETS, ["--preset", "finegrained", "--features", "x.npy"], "")
    assert (config.features, config.mining.negative_k) == ("x.npy", 100)
    assert (config.mining.component, config.mining.selection, config.mining.anchors) == (
        "all",
        "all",
        None,
    )
    assert parse_for(MINE_PRESETS, ["--features", "x.npy"], "").mining == MiningConfig()


@pytest.fixture
def sigterm():
    """A job takes the signal for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("sigterm")
def test_what_happened_to_a_job_is_its_status(capsys):
    def refuse():
        raise InputError("no such file")

    def interrupt():
        raise KeyboardInterrupt

    def break_down():
        raise MachineError("no room on the disk")

    def fail():
        raise RuntimeError("a bug")

    assert exit_status(lambda: None) == 0
    assert exit_status(refuse) == 2
    assert exit_status(break_down) == 1
    told = "error: no such file\nerror: no room on the disk\n"
    assert capsys.readouterr().err == told
    assert exit_status(interrupt) == 130
    assert exit_status(lambda: os.kill(os.getpid(), signal.SIGTERM)) == 143
    assert exit_status(interrupt) == 130
    with pytest.raises(RuntimeError):
        exit_status(fail)


@pytest.mark.process
@pytest.mark.parametrize("arguments", [("retrieval", "--help"), ("--help",), ("minw",)])
def test_a_job_whose_output_nobody_reads_ends_in_silence(arguments):
    """The help is longer than what a pipe takes unread, in `mmray retrieval --help | head`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "mmray", *arguments]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True)
    os.close(writing)
    if arguments == ("minw",):  # nothing is printed there
        assert (done.returncode, done.stderr.count("error: ")) == (2, 1)
    else:
        assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.usefixtures("sigterm")
def test_a_connection_that_breaks_is_not_taken_for_a_reader_that_left():
    def connection():
        raise BrokenPipeError("of a server")

    with pytest.raises(BrokenPipeError, match="of a server"):
        exit_status(connection)


def test_fine_grained_presets_and_recipes_bring_their_defaults():
    def parsed(*arguments):
        return parse_for(FINEGRAINED_PRESETS, list(arguments), "")

    assert parsed() == FINEGRAINED_PRESETS["demo"]
    assert parsed("--preset", "finegrained") == FINEGRAINED_PRESETS["finegrained"]
    wanted = with_defaults(FinegrainedConfig(preset="finegrained", recipe="paper"))
    paper = parsed("--preset=finegrained", "--recipe", "paper", "--dim", "32")
    assert paper == replace(wanted, dim=32)


def test_an_ablation_has_the_flags_and_defaults_of_its_application():
    birds = parse_for(FINEGRAINED_ABLATIONS, ["--rows", "weighted", "--dim", "8"], "")
    assert (birds.rows, birds.dim, birds.application) == (("weighted",), 8, "finegrained")
    photos = parse_for(RETRIEVAL_ABLATIONS, ["--recipe", "paper", "--seeds", "1", "2"], "")
    assert (photos.seeds, photos.application) == ((1, 2), "retrieval")
    assert photos.training == preset("demo", "paper").training


def test_the_error_of_a_job_is_one_line_without_control_characters(capsys):
    def job():
        raise InputError("photos\n\x1b[2J|\u202e.jpg: no such file")

    assert exit_status(job) == 2
    assert capsys.readouterr().err == "error: photos\\n\\x1b[2J|\\u202e.jpg: no such file\n"


def test_a_terminal_that_lacks_a_letter_shows_its_number(monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, "ascii"))
    assert exit_status(lambda: print("日.jpg", flush=True)) == 0
    assert written.getvalue().splitlines() == [b"\\u65e5.jpg"]
