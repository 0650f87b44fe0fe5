"""Nodes that speak TLS by the certificates of cluster/certificates.py, and one that has none."""

import os
import shutil
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from ray.util import get_node_ip_address

from tests.end_to_end.clusters import (
    command_of,
    descendants,
    free_port,
    listening,
    running_head,
    start_node,
    stop,
)
from tests.end_to_end.small_job import SMALL, Ended, run_apart, table

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "certificates.py"

JOB = """
import ray
ray.init(log_to_driver=False)
spot = ray.remote(num_cpus=0, resources={"spot": 1})
print(len(ray.nodes()), "nodes:", ray.get(spot(lambda: "ran").remote()))
"""


def made(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    kind, *addresses = arguments
    command = [sys.executable, str(SCRIPT), kind, str(folder), *addresses]
    return subprocess.run(command, capture_output=True, text=True)


def settings(folder: Path) -> dict[str, str]:
    return {
        "RAY_USE_TLS": "1",
        "RAY_TLS_SERVER_CERT": str(folder / "tls.crt"),
        "RAY_TLS_SERVER_KEY": str(folder / "tls.key"),
        "RAY_TLS_CA_CERT": str(folder / "ca.crt"),
    }


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A folder with the certificates of a node at 127.0.0.2."""
    assert made(tmp_path / "node", "authority").returncode == 0
    assert made(tmp_path / "node", "node", "127.0.0.2", "worker.internal").returncode == 0
    return tmp_path / "node"


def test_keys_are_their_owners_and_an_authority_is_made_once(node, tmp_path):
    for name in ("ca.key", "tls.key"):
        assert (node / name).stat().st_mode & 0o777 == 0o600
    before = (node / "ca.key").read_bytes()
    again = made(node, "authority")
    assert (again.returncode, "ca.key: File exists" in again.stderr) == (2, True)
    assert (node / "ca.key").read_bytes() == before
    without = made(tmp_path / "empty", "node", "127.0.0.2")
    assert (without.returncode, "ca.key: No such file" in without.stderr) == (2, True)


@pytest.mark.parametrize(
    ("name", "accepted"), [("127.0.0.2", True), ("worker.internal", True), ("127.0.0.3", False)]
)
def test_a_node_is_known_by_its_own_addresses_alone(node, name, accepted):
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=node / "ca.crt")
    server.load_cert_chain(node / "tls.crt", node / "tls.key")
    server.verify_mode = ssl.CERT_REQUIRED
    client = ssl.create_default_context(cafile=node / "ca.crt")
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_cert_chain(node / "tls.crt", node / "tls.key")
    hear, say = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        server.wrap_bio(hear, say, server_side=True),
        client.wrap_bio(say, hear, server_hostname=name),
    ]
    refused = None
    for _ in range(4):
        for end in reversed(ends):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
            except ssl.SSLError as error:
                refused = refused or error
    assert (refused is None) == accepted


@pytest.fixture
def network(tmp_path, monkeypatch) -> Iterator[tuple[str, dict[str, str]]]:
    """A head and a machine with certificates and a token: the address, and a job's environment."""
    here = get_node_ip_address()
    assert made(tmp_path / "good", "authority").returncode == 0
    assert made(tmp_path / "good", "node", here).returncode == 0
    secret = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "a" * 64}
    for name, value in (settings(tmp_path / "good") | secret).items():
        monkeypatch.setenv(name, value)
    with running_head(tmp_path, port=free_port(), cpus=2, dashboard=True) as head:
        port = int(head.partition(":")[2])
        address = f"{here}:{port}"
        worker = start_node(
            *(f"--address={address}", "--num-cpus=2", "--resources", '{"spot": 1}'),
            *("--object-store-memory", 200_000_000),
            log=tmp_path / "worker",
        )
        try:
            yield address, os.environ | {"RAY_ADDRESS": address}
        finally:
            stop(worker)


@pytest.mark.slow
def test_nodes_with_certificates_work_together_and_others_are_refused(network, tmp_path):
    address, environment = network
    host, port = address.split(":")
    shutil.copytree(tmp_path / "good", tmp_path / "other")
    (tmp_path / "other" / "ca.key").unlink()
    assert made(tmp_path / "other", "authority").returncode == 0
    assert made(tmp_path / "other", "node", host).returncode == 0
    job = [sys.executable, "-c", JOB]
    ran = subprocess.run(job, env=environment, capture_output=True, text=True, timeout=120)
    assert ran.stdout == "2 nodes: ran\n", ran.stderr
    there = host, int(port)
    assert answered(there, tmp_path / "good")
    assert not answered(there, tmp_path / "other")
    assert not answered(there, tmp_path / "good", certificate=False)
    assert not answered(there, None)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_whole_job_runs_with_certificates_and_a_token_and_not_without(network, tmp_path):
    _, environment = network

    def job(name: str, **changes: str) -> Ended:
        return run_apart(
            *("retrieval", "--storage", tmp_path / name, *SMALL), env=environment | changes
        )

    alone = job("alone", RAY_ADDRESS="local", RAY_USE_TLS="0", RAY_AUTH_MODE="disabled")
    assert table(job("together").succeeded.stdout) == table(alone.succeeded.stdout)
    for changes in (
        {"RAY_AUTH_TOKEN": "b" * 64},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_USE_TLS": "0"},
    ):
        assert "cannot be joined" in job("refused", **changes).error
    # Images are rendered and listed by the job itself; nothing ran on the cluster.
    done = {path.parent.name.partition("-")[0] for path in tmp_path.glob("refused/*/_SUCCESS.json")}
    assert done <= {"demo", "list"}


# Of docs/cluster.md, "What listens": by a part of its command line, where each process listens.
LISTENERS = {
    "gcs/gcs_server": {"all"},
    "raylet/raylet": {"all"},
    "ray.util.client.server": {"node", "loopback"},
    "autoscaler/_private/monitor.py": {"all"},
    "dashboard/dashboard.py": {"loopback", "all"},
    "ray::DashboardAgent": {"all", "loopback", "node"},
    "ray::RuntimeEnvAgent": {"node"},
    "ray::IDLE": {"all"},
}


@pytest.mark.slow
def test_nothing_listens_but_what_the_manual_names(network):
    node = network[0].partition(":")[0]
    kinds = {"::": "all", "0.0.0.0": "all", "127.0.0.1": "loopback", node: "node"}
    found: dict[str, set[str]] = {}
    for pid in descendants(os.getpid()):
        with suppress(OSError):  # it has ended
            command, addresses = command_of(pid), listening(pid)
            name = next((name for name in LISTENERS if name in command), command)
            if addresses:
                found.setdefault(name, set()).update(kinds.get(at, at) for at in addresses)
    assert {"gcs/gcs_server", "raylet/raylet", "ray::DashboardAgent"} <= found.keys()
    beyond = {name: at - LISTENERS.get(name, set()) for name, at in found.items()}
    assert not {name: at for name, at in beyond.items() if at}


def answered(address: tuple[str, int], folder: Path | None, *, certificate: bool = True) -> bool:
    """Tell whether the head's GCS answers HTTP/2, over TLS if a folder of certificates is given."""
    with socket.create_connection(address, timeout=10) as connection:
        if folder:
            # Whoever the head is: here it is the head that chooses.
            client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
            client.set_alpn_protocols(["h2"])
            if certificate:
                client.load_cert_chain(folder / "tls.crt", folder / "tls.key")
            connection = client.wrap_socket(connection)
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0]))
        try:
            return bool(connection.recv(1))
        except (ConnectionResetError, ssl.SSLError):
            return False
