"""Starting a Ray on this machine alone: on loopback, with patience, in up to three tries."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import joblib
import ray

from mmray.pipeline.distributed.capacity import SPARE_CPUS
from mmray.pipeline.distributed.ray_internals import (
    ON_LOOPBACK,
    on_loopback,
    private_token,
    quiet_core,
    stop_processes_of,
    system_temp_dir,
    wait_for_dashboard,
)
from mmray.system.errors import InputError, MachineError
from mmray.system.progress import announce

TRIES = 3
# Seconds that Ray's processes wait for one another. By default these are 5 to 60, and a start on a
# machine with much else to do fails. What the user has set goes before.
PATIENCE = {
    "RAY_gcs_server_port_wait_time_s": "120",
    "RAY_raylet_start_wait_time_s": "120",
    "RAY_py_gcs_connect_timeout_s": "120",
    "RAY_gcs_rpc_server_connect_timeout_s": "60",
    "RAY_gcs_server_request_timeout_seconds": "120",
    "RAY_worker_register_timeout_seconds": "300",
}
# Ray Train would start a process that watches for machines that are taken away: this one is not.
ALONE = {"RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0"}
# Processes of PyTorch that train together meet there too.
LOOPBACK = ON_LOOPBACK | dict.fromkeys(
    ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo" if sys.platform == "linux" else "lo0"
)


def start(given_cpus: int | None = None) -> None:
    """Start a Ray that listens on loopback only, separate from other clusters on this machine.

    Parameters
    ----------
    given_cpus : logical CPUs of the cluster; None: two more than this machine has, at least four,
        as Ray Data waits for ever, in silence, when actors leave none to its tasks

    Raises
    ------
    InputError
        The path of the folder for temporary files is too long, or nothing can be written there.
    MachineError
        Ray did not start in three tries, each with other ports.
    """
    present = joblib.cpu_count()  # those that this process may use, in a container too
    cpus = given_cpus or max(4, present + 2)
    spare = 0 if given_cpus else cpus - present
    _check_temporary_folder()
    for tries_left in reversed(range(TRIES)):
        try:
            _try_to_start(cpus, spare)
        except Exception as error:  # Ray raises plain ones too
            stop_processes_of(error)
            ray.shutdown()
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            if "AF_UNIX path length" in reason:
                raise InputError(
                    f"TMPDIR {tempfile.gettempdir()}: Ray's sockets in it would have names of over "
                    "107 bytes; set TMPDIR to a folder with a shorter path"
                ) from error
            if not tries_left:
                raise MachineError(
                    f"Ray did not start on this machine in {TRIES} tries (the last: {reason}); its "
                    "logs are in ray/session_latest/logs in the folder for temporary files; type "
                    "the same command again when the machine has less to do"
                ) from error
            announce(f"ray: it did not start ({reason}); trying again with other ports")
        else:
            return


def _check_temporary_folder() -> None:
    """Refuse a folder for Ray's own files that is full or closed: Ray would wait minutes for one.

    Raises
    ------
    InputError
        Nothing can be written there.
    """
    folder = Path(system_temp_dir())
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(1 << 20))  # an empty file has room on a full disk
    except OSError as error:
        raise InputError(
            f"TMPDIR {folder}: Ray cannot write its files there ({error.strerror}); make room, or "
            "set TMPDIR to a folder that you can write to"
        ) from error


def _try_to_start(cpus: int, spare: int) -> None:
    """Start Ray once.

    Ray Train asks the dashboard whether the controller of the training is alive. Its process looks
    the address up again, and may find that of another cluster, which does not know the controller:
    the training would lose its resources halfway.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    # All processes of this Ray inherit the environment. This process may submit jobs elsewhere.
    wait_for_dashboard(180)
    given = {"RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}"} | LOOPBACK
    environment = _environment(PATIENCE | ALONE | os.environ | given)
    with environment, on_loopback(), quiet_core(), private_token():
        ray.init(
            address="local",
            num_cpus=cpus,
            resources={SPARE_CPUS: spare} if spare else None,
            # Some builds have no pages for it: Ray would wait a minute for one that cannot start.
            include_dashboard=(Path(ray.__file__).parent / "dashboard" / "client").is_dir(),
            dashboard_port=port,
            logging_level=logging.CRITICAL,  # what goes wrong is raised
        )
    logging.getLogger("ray").setLevel(logging.WARNING)


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set the environment of this process, and of those that are started in the block."""
    before = dict(os.environ)
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables.keys() - before.keys():
            os.environ.pop(name, None)
        os.environ.update({name: before[name] for name in variables.keys() & before.keys()})
