"""A local S3 server of which each request takes some milliseconds more, as one far away does.

    python -m tests.made.slow_bucket 20

It prints the URI of a bucket, whose query says where the server is, and serves until it is stopped.
"""

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

import boto3
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import make_server


def serve(milliseconds: float) -> None:
    """Serve a bucket until this process is stopped."""
    backend = DomainDispatcherApplication(create_backend_app)

    def delayed(environment: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        time.sleep(milliseconds / 1000)
        return backend(environment, start)

    server = make_server("127.0.0.1", 0, delayed, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    address = f"127.0.0.1:{server.port}"
    client = boto3.client("s3", endpoint_url=f"http://{address}", region_name="us-east-1")
    client.create_bucket(Bucket="bucket")
    print(f"s3://bucket?scheme=http&region=us-east-1&endpoint_override={address}", flush=True)
    thread.join()


if __name__ == "__main__":
    os.environ |= {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    serve(float(sys.argv[1]))
