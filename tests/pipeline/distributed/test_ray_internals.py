"""What mmray uses of Ray's private modules still is and does what it was written for."""

import os
import re
import signal
import time
from pathlib import Path

import pytest
import ray
import ray.data
from ray._private import ray_logging
from ray._private.authentication import authentication_token_setup

import mmray
from mmray.pipeline.distributed import ray_internals
from mmray.system.errors import InputError

PACKAGE = Path(mmray.__file__).parent
BROKEN = """\
Ray is now {found}, mmray/pipeline/distributed/ray_internals.py was written for {written}. The tests
below say what no longer holds; without it break:
- ExecutionCallback, set_callbacks: a stage without machines waits for ever, in silence;
- on_loopback, quiet_core, stop_processes_of, tidy_lines_of_workers: a Ray that a job starts listens
  to the network; lines of Ray's own appear between those of a job; tries to start leave processes;
- living_actors, available_resources_per_node: a stage that has workers is ended as one that has
  none, or the other way round;
- private_token: other users of the machine can read the token, and so run programs as this one;
- read_ray_address: a job starts a Ray of its own beside the one that `ray start` began.
Then change WRITTEN_FOR and the pin in requirements.txt."""


def test_they_are_of_the_version_that_they_were_written_for():
    written = ray_internals.WRITTEN_FOR
    assert ray.__version__ == written, BROKEN.format(found=ray.__version__, written=written)


def test_nothing_else_names_ray_s_private_modules():
    private = re.compile(r"\bray\.(?:\w+\.)*_[a-z]\w+|\bray\.\w+ import _|\w+_internal\(")
    folders = (PACKAGE, PACKAGE.parent / "jobs", PACKAGE.parent / "cluster")
    files = [path for folder in folders for path in folder.rglob("*.py")]
    users = [path.name for path in files if private.search(path.read_text())]
    # The second runs on machines beside jobs, and may find no mmray there.
    assert users == ["ray_internals.py", "drain_on_notice.py"]


@ray.remote(num_cpus=0)
class Idle:
    def ping(self):
        return True


@pytest.mark.usefixtures("ray_cluster")
def test_the_actors_of_this_job_are_known_by_their_class_while_they_live():
    def living():
        return ray_internals.living_actors().count("Idle")

    before, actor = living(), Idle.remote()
    assert ray.get(actor.ping.remote())
    assert living() == before + 1
    ray.kill(actor)  # which returns before the actor has died
    deadline = time.monotonic() + 60
    while living() > before:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@ray.remote(num_cpus=0.5)
class Starting:
    def __init__(self):
        time.sleep(2)


@pytest.mark.usefixtures("ray_cluster")
def test_an_actor_counts_while_its_process_starts_it_but_not_while_it_waits_for_resources():
    free = ray_internals.available_resources_per_node()
    assert all(machine["CPU"] >= 0.5 for machine in free.values())
    waiting = Starting.options(num_cpus=10**6).remote()
    starting = Starting.remote()
    deadline = time.monotonic() + 60
    while (counted := ray_internals.living_actors().count("Starting")) == 0:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert counted == 1
    ray.kill(starting)
    ray.kill(waiting)


def test_lines_of_the_core_of_ray_are_left_out_and_those_of_python_are_not(monkeypatch):
    for lines in (ray_logging.stdout_deduplicator, ray_logging.stderr_deduplicator):
        monkeypatch.setattr(lines, "skip_re", re.compile("of the user"))
    monkeypatch.setattr(ray_logging, "_color", ray_logging._color)
    monkeypatch.setenv("RAY_COLOR_PREFIX", "1")
    for _ in range(2):
        ray_internals.tidy_lines_of_workers(colours=False)
    error = "[2026-11-27 00:30:31,239 E 8164 8164] (gcs_server) gcs_actor_scheduler.cc:538: Failed"
    fatal = error.replace(" E ", " C ")
    said = ["Traceback (most recent call last):", error, fatal, "what the user skips: of the user"]
    (batch,) = ray_logging.stderr_deduplicator.deduplicate({"lines": said, "pid": 1, "ip": "x"})
    assert batch["lines"] == [said[0], fatal]
    assert "\x1b" not in ray_logging._color("repeated")


@pytest.mark.usefixtures("ray_cluster")
def test_a_callback_is_called_while_a_dataset_runs_and_may_end_it():
    steps = []

    class Counting(ray_internals.ExecutionCallback):
        def on_execution_step(self, executor):
            steps.append(1)

    class Ending(ray_internals.ExecutionCallback):
        def on_execution_step(self, executor):
            raise InputError("enough")

    dataset = ray.data.range(3).map(lambda row: row)
    ray_internals.set_callbacks(dataset, Counting)
    assert len([*dataset.iter_rows()]) == 3
    assert steps
    ended = ray.data.range(3).map(lambda row: row)
    ray_internals.set_callbacks(ended, Ending)
    with pytest.raises(InputError, match="enough"):
        [*ended.iter_rows()]


def test_ray_does_not_replace_the_handler_of_sigterm_while_it_starts():
    before = signal.getsignal(signal.SIGTERM)
    with ray_internals.kept_sigterm_handler():
        ray._private.utils.set_sigterm_handler(lambda signum, frame: None)
        assert signal.getsignal(signal.SIGTERM) == before
    try:
        ray._private.utils.set_sigterm_handler(signal.SIG_IGN)
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_address_that_ray_start_leaves_is_read_from_its_file(tmp_path):
    (tmp_path / "ray_current_cluster").write_text("10.0.0.1:6379")
    assert ray_internals.read_ray_address(str(tmp_path)) == "10.0.0.1:6379"
    assert ray_internals.read_ray_address(str(tmp_path / "none")) is None


def test_the_token_of_ray_is_its_owner_s_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    token = tmp_path / ".ray" / "auth_token"
    mask = os.umask(0o022)
    try:
        with ray_internals.private_token():
            authentication_token_setup.generate_and_save_token()
        assert token.stat().st_mode & 0o777 == 0o600
        made = token.read_text()
        token.chmod(0o644)  # as an earlier version left it
        with ray_internals.private_token():
            assert token.stat().st_mode & 0o777 == 0o600
        assert token.read_text() == made
        (tmp_path / "others").touch()
        assert (tmp_path / "others").stat().st_mode & 0o777 == 0o644
    finally:
        os.umask(mask)
