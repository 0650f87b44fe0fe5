"""Drain this Ray node when its cloud announces that the spot machine will be taken away.

    python cluster/drain_on_notice.py aws --address $RAY_HEAD_IP:6379

It asks the metadata service every few seconds, runs beside `ray start`, and ends when the node has
been drained. A drained node gets no new tasks or actors, and the autoscaler looks for another at
once; what runs goes on until the machine is gone. A machine on demand never hears of a notice.
"""

import argparse
import sys
import time
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

# Seconds between a notice and the end: two minutes on AWS, half a one on Google Cloud.
CLOUDS = {"aws": ("http://169.254.169.254", 120), "gcp": ("http://metadata.google.internal", 30)}
SECONDS = 5.0


def main() -> int:
    """Wait for a notice and drain the node; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cloud", choices=CLOUDS)
    parser.add_argument("--address", required=True, help="of the head's GCS: host:port")
    parser.add_argument("--node-ip", help="this node's address, where Ray found another")
    parser.add_argument("--metadata", help="address of the metadata service, for tests")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="between two questions")
    arguments = parser.parse_args()
    usual, deadline = CLOUDS[arguments.cloud]
    metadata = arguments.metadata or usual
    while not noticed(arguments.cloud, metadata):
        time.sleep(arguments.seconds)
    return drain(arguments.address, arguments.node_ip, deadline)


def noticed(cloud: str, metadata: str) -> bool:
    """Tell whether the machine will be taken away; False too while the service does not answer."""
    try:
        if cloud == "gcp":
            value = ask(f"{metadata}/computeMetadata/v1/instance/preempted", GOOGLE)
            return value == "TRUE"
        token = ask(f"{metadata}/latest/api/token", {TOKEN + "-ttl-seconds": "60"}, method="PUT")
        return bool(ask(f"{metadata}/latest/meta-data/spot/instance-action", {TOKEN: token}))
    except HTTPError as error:
        if error.code != 404:  # which is how AWS says that there is no notice
            print(f"drain_on_notice: {metadata} answers {error}", file=sys.stderr, flush=True)
    except OSError as error:
        print(f"drain_on_notice: {metadata}: {error}", file=sys.stderr, flush=True)
    return False


GOOGLE, TOKEN = {"Metadata-Flavor": "Google"}, "X-aws-ec2-metadata-token"


def ask(url: str, headers: dict[str, str], method: str = "GET") -> str:
    """Return what the metadata service answers; a proxy is never asked for it."""
    request = Request(url, headers=headers, method=method)
    with build_opener(ProxyHandler({})).open(request, timeout=2) as reply:
        return str(reply.read().decode()).strip()


def drain(address: str, mine: str | None, deadline: int) -> int:
    """Drain the node of this machine, as `ray drain-node` does; return 0 if Ray accepts it."""
    from ray._private.services import get_node_ip_address
    from ray._raylet import GcsClient  # type: ignore[attr-defined]  # compiled
    from ray.core.generated.autoscaler_pb2 import (  # type: ignore[attr-defined]  # generated
        DRAIN_NODE_REASON_PREEMPTION,
    )
    from ray.core.generated.gcs_pb2 import GcsNodeInfo  # type: ignore[attr-defined]

    mine = mine or get_node_ip_address(address)
    gcs = GcsClient(address=address)
    nodes = [
        identity.hex()
        for identity, node in gcs.get_all_node_info().items()
        if node.state == GcsNodeInfo.ALIVE and node.node_manager_address == mine
    ]
    why, until = "the cloud takes the machine away", time.time_ns() // 10**6 + deadline * 1000
    answers = [gcs.drain_node(n, DRAIN_NODE_REASON_PREEMPTION, why, until) for n in nodes]
    for node, (accepted, reason) in zip(nodes, answers, strict=True):
        print(f"drain_on_notice: {mine}, {node}: {reason or 'drained'}, {deadline} s left")
        if not accepted:
            return 1
    if not nodes:
        print(f"drain_on_notice: Ray has no node at {mine}; see --node-ip", file=sys.stderr)
    return 0 if nodes else 1


if __name__ == "__main__":
    sys.exit(main())
