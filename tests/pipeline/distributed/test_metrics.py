"""What a job does can be read from Ray's metrics, as Prometheus reads them."""

import re
import time
from threading import Event, Thread
from urllib.request import urlopen

import numpy as np
import pyarrow as pa
import pytest
import ray

from mmray.mining.batches import MiningInput
from mmray.mining.diffusion.reordering import reorder
from mmray.mining.graph import normalize_graph, reciprocal_knn_graph
from mmray.mining.knn.exact import nearest_neighbors
from mmray.mining.pools import MiningMethod
from mmray.pipeline.distributed import metrics
from mmray.pipeline.distributed.metrics import BusyDevice, show_epoch
from mmray.pipeline.distributed.mining import MiningWorker
from mmray.pipeline.distributed.neighbors import QUERIES
from mmray.pipeline.distributed.units import ActorPool, run_units
from mmray.system.folder import Folder
from tests.made import synthetic


class Reading:
    """Finds ten bytes in each image."""

    def __call__(self, unit):
        unit["bytes"] = 10 * unit["items"]
        return pa.table({"read": [unit["items"]]})


def exported(worker=".*"):
    """The samples of a process, or their sums over all on this node, by name and own labels."""
    (node,) = ray.nodes()
    text = urlopen(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics").read().decode()
    sums = {}
    for name, labels, value in re.findall(r"^ray_(mmray_\w+){(.*)} (\S+)$", text, re.MULTILINE):
        if re.search(f'WorkerId="{worker}"', labels):
            own = re.findall(r'\b(?:stage|device|le)="([^"]*)"', labels)
            sums[name, *own] = sums.get((name, *own), 0.0) + float(value)
    return sums


def wait_for(condition):
    give_up = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < give_up, exported()
        time.sleep(0.2)


@pytest.mark.usefixtures("ray_cluster")
def test_prometheus_reads_the_images_and_bytes_of_a_stage_and_the_epochs(tmp_path):
    work, output = pa.table({"unit": range(3), "items": [2, 2, 1]}), Folder(str(tmp_path))
    for _ in range(2):  # what is there is not counted again
        run_units(work, Reading, (), output=output, pool=ActorPool(maximum=1), label="reading 1/2")
    show_epoch(0, 0, {"loss": 1.0})
    show_epoch(7, 600, {"train_seconds": 2.0})
    own = {
        ("mmray_images_total", "reading"): 5,
        ("mmray_image_bytes_total", "reading"): 50,
        ("mmray_training_epoch",): 7,
        ("mmray_training_images_per_second",): 300,
    }
    driver = ray.get_runtime_context().get_worker_id()
    wait_for(lambda: own.items() <= exported(driver).items())


@pytest.mark.usefixtures("ray_cluster")
def test_prometheus_reads_the_residuals_of_anchors_and_how_long_devices_worked(tmp_path):
    features = synthetic.curves(4)
    found = nearest_neighbors(features, features, 6)
    raw = reciprocal_knn_graph(found.ids, found.similarities)
    given = MiningInput.of(features, raw, reorder(normalize_graph(raw)), np.arange(len(features)))
    method = MiningMethod(positive_k=12, negative_k=60, max_negatives=9)
    worker = MiningWorker([ray.put(given)], method, None, {"threads": 2})  # in this process
    name, busy = "mmray_diffusion_residual", ("mmray_device_busy_seconds_total", "cpu")
    driver = ray.get_runtime_context().get_worker_id()
    before = exported(driver)
    worker({QUERIES: [0, 5, 7]})
    keys = (name + "_count",), (name + "_bucket", "0.01"), (name + "_bucket", "+Inf")
    wait_for(lambda: all(exported(driver).get(k, 0) >= before.get(k, 0) + 3 for k in keys))
    assert exported(driver)[busy] > before.get(busy, 0)
    lowest = (name + "_bucket", "1e-12")
    assert exported(driver)[lowest] - before.get(lowest, 0) < 3  # they are residuals, not zeros


def test_seconds_in_which_threads_share_a_device_are_counted_once(monkeypatch):
    counted = []

    class Seconds:
        def inc(self, seconds, labels):
            counted.append((seconds, labels))

    clock = iter([10.0, 13.0, 14.0, 20.0, 21.5])
    monkeypatch.setattr(metrics, "device_busy", Seconds)
    monkeypatch.setattr(metrics.time, "monotonic", lambda: next(clock))
    busy, entered = BusyDevice("cuda"), Event()

    def other():
        with busy:  # from 10, while the first is inside
            entered.set()
            first_left.wait()

    first_left = Event()
    thread = Thread(target=other)
    with busy:  # from 10 to 13
        thread.start()
        entered.wait()
    first_left.set()
    thread.join()  # to 14
    with busy:  # from 20 to 21.5
        pass
    assert counted == [
        (3.0, {"device": "cuda"}),
        (1.0, {"device": "cuda"}),
        (1.5, {"device": "cuda"}),
    ]
