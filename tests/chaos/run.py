"""Whole runs that are killed, stopped and damaged at random, until they end as if nothing had been.

    python tests/chaos/run.py --rounds 50 --seed 0 --storage /tmp/chaos

A round is a storage of its own and the same command again and again. While it runs, one of its
processes is killed or stopped; between two runs, one of the newest files may be damaged. The last
run is left alone, and what it leaves is compared with an undisturbed run. Rounds that are done are
kept in the folder and not run again, so that 50 can be run in pieces (--minutes).
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.chaos import job, processes
from tests.chaos.damage import damage_newest
from tests.chaos.table import table_of

DISTURBED = 6  # most runs of a round that are disturbed
LIMIT = 240.0  # seconds that a run may take longer than an undisturbed one: Ray waits a minute
POLL = 0.05
DAMAGE = 0.75  # probability that a file is damaged between two runs
AGAIN = 0.5  # probability that one is damaged after a run that came to its end, and it is run again
TRACKER = 0.1  # probability that it is one of MLflow then
ACTIONS = (
    *(("driver", name) for name in ("KILL",) * 4 + ("TERM",) * 2 + ("STOP",)),  # these end a run
    *((victim, name) for victim in list(processes.VICTIMS)[1:] for name in ("KILL", "STOP")),
)
EXPECTED = {"KILL": {-9}, "TERM": {130, 143, -15}}  # exit status of a driver after a signal


@dataclass(frozen=True)
class Run:
    """One run of the command: what was done to it, and how it ended."""

    status: int | None  # None: it hung and was ended
    seconds: float
    stage: str = ""  # that was done last when it was disturbed, or "train" in it
    done_to: str = ""  # such as "driver KILL"; "": it was left alone

    @property
    def line(self) -> str:
        ended = "hung" if self.status is None else f"status {self.status}"
        done_to = f"{self.done_to} in {self.stage}, " if self.done_to else ""
        return f"{done_to}{ended} after {self.seconds:.0f} s"


def main() -> int:
    """Run the rounds that are not done, print a line for each and the table; 1 if one failed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this round alone, in this process")
    parser.add_argument("--storage", type=Path, required=True, help="folder of all rounds")
    parser.add_argument("--parallel", type=int, default=1, help="rounds at a time")
    parser.add_argument("--minutes", type=float, default=1e6, help="begin no round after these")
    parser.add_argument(
        "--kill-after", type=float, default=1e6, help="minutes; ends rounds halfway"
    )
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    signal.signal(signal.SIGALRM, lambda *_: sys.exit(142))
    folder = given.storage.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    if given.only is not None:
        return _in_this_process(folder, given.only, given.seed)
    started = time.monotonic()
    if not _file(folder, -1).exists():
        _in_new_process(folder, -1, given.seed)
    with ThreadPoolExecutor(given.parallel) as pool:

        def run(number: int) -> None:
            if time.monotonic() - started < 60 * given.minutes:
                left = 60 * given.kill_after - (time.monotonic() - started)
                _in_new_process(folder, number, given.seed, timeout=left)

        list(pool.map(run, [n for n in range(given.rounds) if not _file(folder, n).exists()]))
    files = [_file(folder, n) for n in range(given.rounds)]
    rounds = [json.loads(file.read_text()) for file in files if file.exists()]
    print(table_of(rounds))
    return int(any(round_["findings"] for round_ in rounds))


def _file(folder: Path, number: int) -> Path:
    """Return the file of what came of a round; -1 is the undisturbed run."""
    return folder / ("reference.json" if number < 0 else f"round-{number:03d}.json")


def _in_new_process(folder: Path, number: int, seed: int, timeout: float = 3600) -> None:
    """Run a round in a process of its own, which knows what belongs to it by its descendants."""
    arguments = ("--only", str(number), "--seed", str(seed), "--storage", str(folder))
    process = subprocess.Popen([sys.executable, __file__, *arguments])
    try:
        process.wait(timeout)
    except subprocess.TimeoutExpired:
        print(f"round {number}: ended halfway, time is up", flush=True)
    finally:
        process.terminate()
        process.wait()


def _in_this_process(folder: Path, number: int, seed: int) -> int:
    processes.adopt_orphans()
    try:
        done = reference(folder) if number < 0 else disturbed_round(folder, number, seed)
    finally:
        processes.kill_descendants()
    _file(folder, number).write_text(json.dumps(done, indent=1))
    return int(bool(done["findings"]))


def reference(folder: Path) -> dict[str, Any]:
    """Run the job twice undisturbed: the first fills caches, the second is timed and kept."""
    photos, storage = folder / "photos", folder / "reference"
    job.render(photos)
    for _ in range(2):
        shutil.rmtree(storage, ignore_errors=True)
        ran = _run(photos, storage, folder / "reference-run", 600)
        assert ran.status == 0, (folder / "reference-run.err").read_text()
    findings = _of_undisturbed(ran, folder / "reference-run")
    outcome = job.Outcome.of(storage, folder / "reference-run")
    findings += outcome.differences(outcome)
    print(f"reference: {ran.line} {findings}", flush=True)
    return {"seconds": ran.seconds, "findings": findings}


def disturbed_round(folder: Path, number: int, seed: int) -> dict[str, Any]:
    """Run a round, and return what was done, what came of it and the findings."""
    rng = np.random.default_rng([seed, number])
    photos, storage = folder / "photos", folder / f"round-{number:03d}"
    shutil.rmtree(storage, ignore_errors=True)
    whole = float(json.loads(_file(folder, -1).read_text())["seconds"])
    lines, findings, tracker_damaged = list[str](), list[str](), False
    runs, ended, started = 0, False, time.monotonic()
    while not ended:
        runs += 1
        output = folder / f"round-{number:03d}-run-{runs}"
        if runs <= DISTURBED:
            # Stages that are done are not run again: later runs are shorter.
            delay = rng.uniform(0, whole if runs == 1 else 0.6 * whole)
            victim, name = ACTIONS[rng.integers(len(ACTIONS))]
            ran = _run(photos, storage, output, whole + LIMIT, delay, victim, name)
        else:
            ran = _run(photos, storage, output, whole + LIMIT)
        processes.kill_descendants()
        lines.append(ran.line)
        error = _error(output)
        told = tracker_damaged and ran.status == 2 and "MLflow" in error
        if told:
            lines[-1] += f", told: {error}"
        elif problems := _of_run(ran, output):
            findings += [f"run {runs}: {problem}" for problem in problems]
        elif error:
            lines[-1] += f", {error}"
        damaged = runs <= DISTURBED and rng.random() < (AGAIN if ran.status == 0 else DAMAGE)
        ended = told or (ran.status == 0 and not damaged) or runs >= DISTURBED + 3
        if damaged and not ended:
            tracker = rng.random() < TRACKER
            done = damage_newest(storage, rng, tracker=tracker)
            tracker_damaged |= tracker and bool(done)
            lines += [f"damaged: {done}"] if done else []
    if ran.status == 0:
        expected = job.Outcome.of(folder / "reference", folder / "reference-run")
        findings += job.Outcome.of(storage, output).differences(expected)
    seconds = time.monotonic() - started
    verdict = "; ".join(findings) or "as undisturbed" * (ran.status == 0) or "told of MLflow"
    print(f"round {number}: {'; '.join(lines)}; {seconds:.0f} s: {verdict}", flush=True)
    if not findings:
        shutil.rmtree(storage)
    return {
        **{"round": number, "seconds": seconds, "runs": runs, "lines": lines},
        **{"findings": findings, "tracker": tracker_damaged, "told": ran.status != 0},
    }


def _run(
    photos: Path,
    storage: Path,
    output: Path,
    limit: float,
    delay: float = 0.0,
    victim: str = "",
    name: str = "",
) -> Run:
    """Run the command once; after `delay` seconds a victim gets a signal, once it is there."""
    started = time.monotonic()
    process, stage, done_to = job.start(photos, storage, output), "", ""
    while process.poll() is None and time.monotonic() - started < limit:
        if victim and not done_to and time.monotonic() - started > delay:
            pid = processes.find(victim, process.pid)
            if pid is not None:
                stage, done_to = job.stage_of(output), f"{victim} {name}"
                processes.disturb(pid, name)
        time.sleep(POLL)
    return Run(process.poll(), time.monotonic() - started, stage, done_to)


def _of_run(ran: Run, output: Path) -> list[str]:
    """List what should not have come of a run."""
    if ran.status is None:
        return [f"hung after {ran.done_to or 'nothing was done to it'}"]
    if not ran.done_to:
        return _of_undisturbed(ran, output)
    victim, name = ran.done_to.split()
    if victim == "driver" and name in EXPECTED and ran.status not in {0} | EXPECTED[name]:
        return [f"status {ran.status} after {ran.done_to}: {_error(output)}"]
    if victim != "driver" and ran.status != 0 and not _error(output).startswith("error: "):
        return [f"no sentence after {ran.done_to}: {_error(output)}"]
    return []


def _of_undisturbed(ran: Run, output: Path) -> list[str]:
    traced = "Traceback" in output.with_suffix(".err").read_text(errors="replace")
    findings = ["a traceback although nothing was done to it"] if traced else []
    if ran.status != 0:
        findings.append(f"status {ran.status} although nothing was done to it: {_error(output)}")
    return findings


def _error(output: Path) -> str:
    """Return the sentence that a job ended with, or the last line of its traceback."""
    lines = output.with_suffix(".err").read_text(errors="replace").splitlines()
    for line in reversed(lines):
        if line.startswith("error: "):
            return line
    if any(line.startswith("Traceback") for line in lines):
        return f"traceback: {lines[-1][:200]}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
