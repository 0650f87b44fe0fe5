"""Small whole jobs in environments that users have: each ends well, or with one sentence.

    python -m tests.environments [--only NAME]...

Needs root and Linux: each environment is a mount namespace of its own.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from tests.end_to_end.small_job import ROOT, SMALL, command, table
from tests.environments.cases import ENVIRONMENTS, Environment
from tests.environments.machine import Disk, RayBeside, memory_limit

LIMIT = 240  # seconds of one job


def arguments(job: str, scratch: Path, storage: Path) -> list[str]:
    """Return the command of a small job."""
    kept = ("--storage", storage, "--max-workers", 1)
    if job == "retrieval":
        short = ("--training.epochs", 1, "--demo.distractors", 0)
        return command(job, *SMALL, *short, *kept)
    if job == "index":
        photos = scratch / "Füße"
        photos.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for name in ("é.png", "日本.png", "c.png"):
            Image.fromarray(rng.integers(0, 255, (48, 64, 3), np.uint8)).save(photos / name)
        from tests.made.exported import model_folder

        model = model_folder(scratch)
        return command("search", "index", "--model", model, "--images", photos, *kept)
    np.save(scratch / "features.npy", np.random.default_rng(0).normal(size=(300, 16)))
    mining = "--mining.graph-k 6 --mining.component all --mining.anchors 24 --mining.positive-k 6"
    return command(
        job, "--features", scratch / "features.npy", *mining.split(), *kept,
        "--mining.negative-k", 12, "--mining.selection", "all",
    )  # fmt: skip


def fault(status: int | str, out: str, err: str, case: Environment) -> str:
    """Tell what is not well about the end of a job, or ""."""
    errors = [line for line in err.splitlines() if line.startswith("error: ")]
    if status not in case.statuses:
        return f"status {status}"
    if "Traceback" in err:
        return "a traceback"
    if status == 0:
        return "" if table(out) else "no table"
    if len(errors) != 1 or not err.rstrip().splitlines()[-1].startswith("error: "):
        return f"{len(errors)} sentences"
    return "" if case.says in errors[0] else f"another sentence than {case.says!r}"


def finished(words: list[str], env: dict[str, str], scratch: Path) -> tuple[int | str, str, str]:
    """Run a job to its end, or stop it when its time is over."""
    with (scratch / "out").open("w+") as out, (scratch / "err").open("w+") as err:
        job = subprocess.Popen(
            words, env=env, cwd=scratch, stdout=out, stderr=err, start_new_session=True
        )
        status: int | str
        try:
            status = job.wait(LIMIT)
        except subprocess.TimeoutExpired:
            status = f"hung ({LIMIT} s)"
            os.killpg(job.pid, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                job.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
    read = {name: (scratch / name).read_text(errors="replace") for name in ("out", "err")}
    return status, read["out"], read["err"]


def fill_when(disk: Disk, folder: Path, pattern: str, ended: threading.Event) -> None:
    while not ended.wait(0.01):
        if any(folder.glob(pattern)):
            disk.fill()
            return


def meet(name: str, scratch: Path) -> dict[str, object]:
    """Run the job in an environment, and again after room was made; inside its namespace."""
    case = ENVIRONMENTS[name]
    (scratch / "tmp").mkdir(mode=0o777)
    (scratch / "home").mkdir()
    env = os.environ | {"TMPDIR": str(scratch / "tmp"), "PYTHONPATH": str(ROOT)}
    env |= {"PYTHONDONTWRITEBYTECODE": "1", "RAY_AUTH_MODE": "disabled"}
    env.pop("RAY_ADDRESS", None)
    for variable, value in case.environ.items():
        env.pop(variable, None)
        if value is not None:
            env[variable] = value
    if not env["TMPDIR"].startswith("/"):
        env["TMPDIR"] = str(scratch / env["TMPDIR"])
        Path(env["TMPDIR"]).mkdir(parents=True)
    storage = scratch / case.storage
    words = arguments(case.job, scratch, storage)
    with ExitStack() as stack:
        made = case.prepare(scratch)
        if isinstance(made, RayBeside):
            stack.callback(made.stop)
        prefix = list(case.prefix)
        if prefix[:1] == ["4G"]:
            prefix = stack.enter_context(memory_limit("4G"))
        ended = threading.Event()
        if isinstance(made, Disk) and case.fills_at:
            watch = threading.Thread(target=fill_when, args=(made, storage, case.fills_at, ended))
            watch.start()
            stack.callback(ended.set)
        begun = time.monotonic()
        status, out, err = finished([*prefix, *words], env, scratch)
        seconds = time.monotonic() - begun
        ended.set()
        wrong = fault(status, out, err, case)
        again: int | str = "-"
        if isinstance(made, Disk):
            made.make_room()
            well = Environment(what="")
            again, out2, err2 = finished([*prefix, *words], env, scratch)
            if fault(again, out2, err2, well):
                wrong += f"; again: {fault(again, out2, err2, well)}"
                err += "\n--- again\n" + err2
    said = [line for line in err.splitlines() if line.startswith("error: ")]
    sentence = said[0] if said and status else ""
    return {
        "status": status, "again": again, "wrong": wrong, "seconds": round(seconds),
        "said": sentence, "stderr": err[-6000:] if wrong else "", "table": table(out),
    }  # fmt: skip


def run(name: str) -> dict[str, object]:
    """Meet an environment in a mount namespace of its own."""
    # Short, as Ray's sockets lie in it; removed with all disks, which vanish with the namespace.
    scratch = Path(tempfile.mkdtemp(prefix="env-"))
    scratch.chmod(0o777)
    try:
        words = [sys.executable, "-m", "tests.environments", "--inside", name]
        done = subprocess.run(
            ["unshare", "-m", *words, "--scratch", str(scratch)],
            stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        result: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return result
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=ENVIRONMENTS)
    parser.add_argument("--inside", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.inside:
        print(json.dumps(meet(given.inside, given.scratch)))
        return 0
    rows, wrong = [], 0
    for name in given.only or ENVIRONMENTS:
        result = run(name)
        wrong += bool(result["wrong"])
        print(name, {k: v for k, v in result.items() if k != "stderr"}, flush=True)
        print(result["stderr"], file=sys.stderr, flush=True)
        ends = f"{result['status']} | {result['again']} | {result['wrong'] or 'well'}"
        said = str(result["said"]).replace("|", "\\|")
        rows.append(f"| {ENVIRONMENTS[name].what} | {result['seconds']} s | {ends} | {said} |")
    print("| environment | took | status | after room was made | ended | sentence |")
    print("|---|---:|---:|---:|---|---|")
    print("\n".join(rows))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
