"""cluster/drain_on_notice.py before doubles of the metadata services, and on two nodes of Ray."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.end_to_end.clusters import free_port, running_head, start_node, stop

SCRIPT = Path(__file__).resolve().parents[2] / "cluster" / "drain_on_notice.py"


class Metadata:
    """Answer as both metadata services do; the test sets `notice`."""

    def __init__(self) -> None:
        self.notice, self.asked = False, 0

    def answer(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        if (method, path) == ("PUT", "/latest/api/token"):
            assert int(headers["x-aws-ec2-metadata-token-ttl-seconds"]) > 0
            return 200, "a-token"
        self.asked += 1
        if path == "/latest/meta-data/spot/instance-action":
            if headers.get("x-aws-ec2-metadata-token") != "a-token":
                return 401, ""  # as with HttpTokens: required
            return (200, '{"action": "terminate"}') if self.notice else (404, "")
        if path == "/computeMetadata/v1/instance/preempted":
            if headers.get("metadata-flavor") != "Google":
                return 403, ""
            return 200, "TRUE" if self.notice else "FALSE"
        return 500, ""


@contextmanager
def served(metadata: Metadata) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            headers = {name.lower(): value for name, value in self.headers.items()}
            status, body = metadata.answer(self.command, self.path, headers)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def do_PUT(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def started(cloud: str, metadata: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [
            *(sys.executable, str(SCRIPT), cloud, "--metadata", metadata),
            *("--seconds", "0.1", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_a_notice_is_heard_and_nothing_else_is_one(cloud, monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import drain_on_notice

    metadata = Metadata()
    with served(metadata) as address:
        assert not drain_on_notice.noticed(cloud, address)
        metadata.notice = True
        assert drain_on_notice.noticed(cloud, address)
        assert metadata.asked == 2
    assert not drain_on_notice.noticed(cloud, f"http://127.0.0.1:{free_port()}")


def test_an_answer_without_a_token_is_no_notice_and_said(monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import drain_on_notice

    metadata = Metadata()
    metadata.notice = True
    monkeypatch.setattr(drain_on_notice, "TOKEN", "x-aws-ec2-metadata-token")
    monkeypatch.setattr(metadata, "answer", lambda *_: (401, ""))
    with served(metadata) as address:
        assert not drain_on_notice.noticed("aws", address)
    assert "401" in capsys.readouterr().err


@pytest.mark.slow
def test_a_node_with_a_notice_is_drained_and_tasks_go_elsewhere(tmp_path):
    import ray

    metadata, port = Metadata(), free_port()
    with served(metadata) as service, running_head(tmp_path, port=port, cpus=1) as address:
        worker = start_node(
            *(f"--address={address}", "--num-cpus=1", "--node-ip-address=127.0.0.2"),
            *("--resources", '{"spot": 1}', "--object-store-memory", 100_000_000),
            log=tmp_path / "worker",
        )
        script = started("aws", service, "--address", address, "--node-ip", "127.0.0.2")
        try:
            ray.init(address, log_to_driver=False)
            where = ray.remote(lambda: ray.get_runtime_context().get_node_id())
            spot = ray.get(where.options(resources={"spot": 0.1}).remote())
            assert script.poll() is None
            metadata.notice = True
            assert script.wait(30) == 0, script.stderr.read()
            assert spot in script.stdout.read()
            time.sleep(1)
            tasks = [where.options(num_cpus=1).remote() for _ in range(4)]
            assert spot not in ray.get(tasks)
            waiting = where.options(resources={"spot": 0.1}).remote()
            assert ray.wait([waiting], timeout=2)[0] == []
        finally:
            ray.shutdown()
            script.kill()
            stop(worker)
