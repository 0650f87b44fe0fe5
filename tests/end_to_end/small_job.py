"""Jobs as their tests run them: small settings, in this process or another, and what they print."""

import io
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import mlflow

from mmray import __main__ as jobs

ROOT = Path(__file__).resolve().parents[2]

# The demonstration made small: 8 objects, 36 photos in each part, the same path through all stages.
SMALL = shlex.split(
    """
    --demo.objects 4 --demo.photos 8 --demo.distractors 4 --demo.longest-side 96
    --extraction.longest-side 96 --extraction.shard-size 12 --training.longest-side 96
    --evaluation.longest-side 96 --mining.graph-k 6 --mining.component all
    --mining.selection all --mining.anchors 24 --mining.anchor-block 6 --mining.positive-k 6
    --mining.negative-k 12 --training.epochs 2 --training.anchors-per-epoch 8 --rounds 1
    """
)
ONE = ("--max-workers", "1")  # an actor more takes seconds to start, and these jobs none to do


@dataclass(frozen=True)
class Ended:
    """A job that ended: its exit status and what it printed."""

    returncode: int
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        """The one sentence of a job that cannot use its input."""
        assert self.returncode == 2, self.stdout + self.stderr
        assert "Traceback" not in self.stderr
        (sentence,) = [line for line in self.stderr.splitlines() if line.startswith("error: ")]
        return sentence

    @property
    def succeeded(self) -> "Ended":
        assert self.returncode == 0, self.stdout + self.stderr
        return self


def run_here(job: str, *arguments: object) -> Ended:
    """Run a job in this process, on the Ray of the tests: it takes no time to start."""
    return _heard(lambda: jobs.run(job, list(map(str, arguments))))


def _heard(job: Callable[[], int]) -> Ended:
    with (
        redirect_stdout(io.StringIO()) as out,
        redirect_stderr(io.StringIO()) as err,
        _sigterm_as_it_was(),
    ):
        try:
            status = job()
        except SystemExit as end:  # of the command line
            status = end.code if isinstance(end.code, int) else 1
    return Ended(status, out.getvalue(), err.getvalue())


@contextmanager
def _sigterm_as_it_was() -> Iterator[None]:
    """A job takes the signal for itself."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def command(job: str, *arguments: object) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *map(str, arguments)]


def run_apart(job: str, *arguments: object, env: dict[str, str] | None = None) -> Ended:
    """Run a job as a user does, in a new process."""
    done = subprocess.run(command(job, *arguments), capture_output=True, text=True, env=env)
    return Ended(done.returncode, done.stdout, done.stderr)


def counted(told: str) -> int:
    """The number of stages that a job said it has; it said so of each, in order."""
    found = re.findall(r"^stage (\d+) of (\d+): .+ \((?:[\w]+-\w+)\)$", told, re.MULTILINE)
    numbers, totals = zip(*((int(number), int(total)) for number, total in found), strict=True)
    assert numbers == tuple(range(1, len(numbers) + 1)), told
    assert {*totals} == {len(numbers)}, told
    return len(numbers)


def table(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("|")]


def cells(text: str) -> list[list[str]]:
    """Cells of a table, the rule under its head left out."""
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table(text)]
    return [*rows[:1], *rows[2:]]


def the_run(uri: str) -> tuple[mlflow.MlflowClient, mlflow.entities.Run]:
    """The one MLflow run there is, and what reads it."""
    client = mlflow.MlflowClient(uri)
    (experiment,) = client.search_experiments(filter_string="name = 'mmray'")
    (run,) = client.search_runs([experiment.experiment_id])
    return client, run
