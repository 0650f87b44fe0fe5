"""Ray's private modules are those of the version that they were written for."""

import inspect
import re
from pathlib import Path

import ray
import ray.data

from mmray.pipeline.distributed import ray_internals

ROOT = Path(__file__).resolve().parents[3]


def test_the_version_is_the_one_that_this_was_written_for():
    assert ray.__version__ == ray_internals.WRITTEN_FOR, (
        f"Ray is {ray.__version__}, ray_internals.py was written for {ray_internals.WRITTEN_FOR}: "
        "the tests below say which of its private modules changed; when they pass, raise "
        "WRITTEN_FOR"
    )
    assert f"]=={ray_internals.WRITTEN_FOR}" in (ROOT / "requirements.txt").read_text()


def test_no_other_module_imports_what_is_private_in_ray():
    private = re.compile(r"^\s*(from|import) ray\.[\w.]*_(private|internal)", re.MULTILINE)
    importing = [p.name for p in (ROOT / "mmray").rglob("*.py") if private.search(p.read_text())]
    assert importing == ["ray_internals.py"]


def test_living_actors_are_listed_by_class_name(ray_cluster):
    class Canary:
        def sing(self):
            return "tweet"

    actor = ray.remote(Canary).options(num_cpus=0).remote()
    assert ray.get(actor.sing.remote()) == "tweet"
    assert any(name.endswith("Canary") for name in ray_internals.living_actors()), (
        "waiting for workers would never end: `ray._private.state.actors` has other names"
    )
    ray.kill(actor)


def test_a_callback_sees_every_step_and_ends_the_iteration(ray_cluster):
    assert (
        "executor"
        in inspect.signature(ray_internals.ExecutionCallback.on_execution_step).parameters
    ), "a stage without workers would wait for ever"
    steps = []

    class Counting(ray_internals.ExecutionCallback):
        def on_execution_step(self, executor):
            steps.append(1)

    dataset = ray.data.range(4).map(lambda row: row)
    ray_internals.set_callbacks(dataset, Counting)
    assert len(list(dataset.iter_rows())) == 4
    assert steps, "Ray Data does not call what `custom_execution_callback_classes` names"


def test_the_address_that_ray_start_left_can_be_read(tmp_path):
    assert ray_internals.read_ray_address(str(tmp_path)) is None
    (tmp_path / "ray_current_cluster").write_text("127.0.0.1:6379")
    assert ray_internals.read_ray_address(str(tmp_path)) == "127.0.0.1:6379", (
        "a job would start a Ray of its own beside the one that `ray start` started"
    )
