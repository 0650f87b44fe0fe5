"""A job joins the cluster that is there, and says when it has to do without."""

import os
import re
import signal
import socket
import threading

import joblib
import pytest
import ray
from ray.util.state import get_actor

from mmray.pipeline.distributed import cluster
from mmray.pipeline.distributed.capacity import Capacity, machines, shared_memory
from mmray.pipeline.distributed.units import ActorPool
from mmray.system.errors import InputError, MachineError
from tests.end_to_end import clusters


@pytest.fixture
def nobody():
    """An address where nothing answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


def test_a_cluster_that_was_killed_is_not_waited_for(monkeypatch, nobody):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(cluster, "read_ray_address", lambda: nobody)
    assert cluster.running_cluster() is None


def test_a_cluster_that_answers_is_joined(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.delenv("RAY_ADDRESS", raising=False)
        monkeypatch.setattr(cluster, "read_ray_address", lambda: address)
        assert cluster.running_cluster() == address


@pytest.mark.parametrize(
    ("answer", "tls", "words"),
    [
        (b"", "0", "speaks TLS, this job does not: set RAY_USE_TLS=1"),
        (b"\0\0\6", "1", "does not speak TLS, this job does: unset RAY_USE_TLS"),
    ],
)
def test_a_cluster_that_speaks_otherwise_is_refused_at_once(monkeypatch, answer, tls, words):
    def answer_one() -> None:
        connection, _ = server.accept()
        with connection:
            connection.recv(100)
            connection.sendall(answer)

    monkeypatch.setenv("RAY_USE_TLS", tls)
    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=answer_one)
        thread.start()
        address = f"127.0.0.1:{server.getsockname()[1]}"
        with pytest.raises(
            InputError, match=rf"the Ray cluster {address} cannot be joined.*{words}"
        ):
            cluster._join(address)
        thread.join()


def test_a_named_cluster_that_does_not_answer_is_an_error(monkeypatch, nobody):
    monkeypatch.setenv("RAY_ADDRESS", nobody)
    with pytest.raises(InputError, match=rf"RAY_ADDRESS {nobody}: no cluster answers there"):
        cluster.running_cluster()


@pytest.mark.parametrize(
    ("named", "words"),
    [
        ("ray://head:10001", "Ray Client, .* ray job submit --address http://head:8265 --"),
        ("ray://[fd00::7]:10001", r"ray job submit --address http://\[fd00::7\]:8265 --"),
        ("ray://head", "ray job submit --address http://head:8265 --"),
        ("https://head:8265", "ray job submit --address https://head:8265 --"),
        ("head", "not an address; write HOST:PORT"),
        ("head:port", "not an address; write HOST:PORT"),
        ("[::1:6379", "not an address; write HOST:PORT"),
    ],
)
def test_an_address_that_cannot_be_joined_is_refused_with_the_remedy(monkeypatch, named, words):
    monkeypatch.setenv("RAY_ADDRESS", named)
    with pytest.raises(InputError, match=rf"RAY_ADDRESS {re.escape(named)}: .*{words}"):
        cluster.running_cluster()


def test_addresses_of_ipv6_are_understood(monkeypatch):
    asked = []

    def connect(address, timeout):
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)
    for named in ("[::1]:6379", "[fd00::7]:6380", "head.example:6379"):
        monkeypatch.setenv("RAY_ADDRESS", named)
        assert cluster.running_cluster() == named
    assert asked == [("::1", 6379), ("fd00::7", 6380), ("head.example", 6379)]


def test_local_asks_for_a_ray_of_this_machine_alone(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "local")
    monkeypatch.setattr(cluster, "read_ray_address", lambda: "127.0.0.1:6379")
    assert cluster.running_cluster() is None


def test_a_cluster_that_refuses_a_job_is_named_with_its_reason(monkeypatch):
    def refuse(**options):
        raise RuntimeError("Version mismatch: the cluster was started with Ray 2.9")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(cluster, "running_cluster", lambda: "head:6379")
    with pytest.raises(InputError, match="head:6379 cannot be joined: Version mismatch"):
        cluster.connect()


@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"given_cpus": 32, "given_gpus": 2}, "1 machine, 32 CPUs, 2 GPUs"),
        ({"given_cpus": 1, "given_gpus": 0}, "1 machine, 1 CPU, no GPU"),
    ],
)
def test_a_job_says_what_it_counts_on(given, text):
    assert cluster.summary(Capacity(**given)) == text
    own = joblib.cpu_count()
    assert cluster.summary(Capacity()).startswith(f"1 machine, {own} CPU{'s' * (own > 1)}, ")


@pytest.mark.usefixtures("ray_cluster")
def test_resources_are_shared_out_as_far_as_they_go():
    total = int(ray.cluster_resources()["CPU"])
    here = Capacity()
    one = cluster.training_workers(None, fewest=1, capacity=here)
    assert (one.fewest, one.most, one.resources) == (1, 1, {"CPU": total - 2})
    many = cluster.training_workers(total - 2, fewest=2, capacity=here)
    assert (many.fewest, many.most, many.resources) == (2, total - 2, {"CPU": 1})
    with pytest.raises(
        InputError, match=rf"--training.workers {total}: the cluster has {here.real_cpus}"
    ):
        cluster.training_workers(total, fewest=1, capacity=here)
    assert cluster.with_gpus(ActorPool()).gpus == 0
    with pytest.raises(InputError, match=r"--mining\.device cuda: the cluster has no GPU"):
        cluster.mining_device("cuda", here)


@pytest.mark.usefixtures("ray_cluster")
def test_a_cluster_that_starts_from_zero_is_planned_for_by_what_it_will_have():
    told = Capacity(given_cpus=64, given_gpus=4, timeout=7)
    workers = cluster.training_workers(None, fewest=2, capacity=told)
    assert (workers.fewest, workers.most, workers.timeout) == (2, 4, 7)
    assert workers.resources == {"GPU": 1, "CPU": 1}
    assert cluster.mining_device("auto", told) == "cuda"
    assert cluster.mining_device("cpu", told) == "cpu"
    # Without GPUs a worker has the CPUs of one machine, and of no machine more than there are.
    largest = Capacity().real_cpus
    wide = cluster.training_workers(2, fewest=1, capacity=Capacity(given_cpus=64))
    assert wide.resources == {"CPU": min(31, largest)}


@pytest.mark.usefixtures("ray_cluster")
def test_the_size_of_a_machine_that_is_not_there_yet_is_waited_for(monkeypatch):
    """The first answer is that of a head alone."""
    nodes, asked = ray.nodes(), []

    def answers():
        asked.append(1)
        head = {"Alive": True, "Resources": {"memory": 1.0}}
        return [head] if len(asked) == 1 else [head, *nodes]

    monkeypatch.setattr(ray, "nodes", answers)
    largest = joblib.cpu_count()
    workers = cluster.training_workers(2, fewest=1, capacity=Capacity(given_cpus=64))
    assert workers.resources == {"CPU": min(31, largest)}
    assert len(asked) == 2


@pytest.mark.parametrize(
    ("gpus", "fewest", "share"), [(0, 1, 0), (1, 1, 1), (4, 4, 1), (1, 2, 1 / 2), (2, 5, 1 / 3)]
)
def test_actors_share_gpus_where_more_are_wanted_than_there_are(monkeypatch, gpus, fewest, share):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 64.0, "GPU": float(gpus)})
    pool = cluster.with_gpus(ActorPool(minimum=fewest))
    assert pool.gpus == share
    assert pool.size() >= fewest


@pytest.mark.parametrize(
    ("machines", "cpus"),
    [
        ([{"CPU": 8}], 1),
        ([{"CPU": 16, "GPU": 1}], 14),
        ([{"CPU": 2}, {"CPU": 32, "GPU": 4}, {"CPU": 16, "GPU": 1}], 7),
        ([{"CPU": 2, "GPU": 1}], 1),
    ],
)
def test_an_actor_on_a_gpu_gets_its_share_of_the_machines_cpus(monkeypatch, machines, cpus):
    nodes = [{"Alive": True, "Resources": machine} for machine in machines]
    dead = {"Alive": False, "Resources": {"CPU": 2, "GPU": 8, "object_store_memory": 1}}
    monkeypatch.setattr(ray, "nodes", lambda: [*nodes, dead])
    total = {name: sum(m.get(name, 0) for m in machines) for name in ("CPU", "GPU")}
    monkeypatch.setattr(ray, "cluster_resources", lambda: total)
    assert cluster.cpus_beside_gpu() == cpus
    if total["GPU"]:
        pool = ActorPool(cpus=cpus, gpus=1)
        assert pool.size() == total["GPU"]


def test_the_least_shared_memory_of_a_machine_that_is_there_is_taken(monkeypatch):
    sizes = {3e9: True, 5e9: True, 1e9: False}
    nodes = [
        {"Alive": alive, "Resources": {"object_store_memory": size}}
        for size, alive in sizes.items()
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert shared_memory() == 3e9
    (one, other) = machines()
    assert (one.cpus, one.memory, one.shared, other.shared) == (0, float("inf"), 3e9, 5e9)


@pytest.mark.usefixtures("ray_cluster")
def test_ray_leaves_the_handler_of_sigterm_alone():
    assert signal.getsignal(signal.SIGTERM) in (signal.SIG_DFL, signal.default_int_handler)


@ray.remote(num_cpus=0)
class Watched:
    def lives(self):
        """As Ray Train asks about the actor that directs a training."""
        actor = get_actor(ray.get_runtime_context().get_actor_id(), timeout=30)
        return actor is not None and actor.state == "ALIVE"


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_a_local_ray_is_not_mistaken_for_another_on_the_machine(tmp_path):
    with clusters.running_head(tmp_path, port=26579, cpus=1, dashboard=True):
        watched = Watched.remote()
        assert ray.get(watched.lives.remote(), timeout=90)
        ray.kill(watched)


@ray.remote(num_cpus=0)
class Fragile:
    def die(self):
        os._exit(1)

    def fail(self):
        raise ValueError("a mistake in the code")


@pytest.mark.usefixtures("ray_cluster")
def test_a_process_that_ray_lost_is_a_failure_of_the_machine_and_a_mistake_in_the_code_is_none():
    with (
        pytest.raises(MachineError, match=r"\(ActorDiedError: .*died.*\); the same"),
        cluster.reporting_losses(),
    ):
        ray.get(Fragile.remote().die.remote())
    with pytest.raises(ValueError, match="a mistake in the code"), cluster.reporting_losses():
        ray.get(Fragile.remote().fail.remote())
