"""Metrics of mmray for Prometheus, which reads them from each node by Ray: see cluster/README.md.

Ray adds `ray_` to the names, and the node and the process to the labels.
"""

import threading
import time
from collections.abc import Mapping
from functools import cache
from types import TracebackType

from ray.util.metrics import Counter, Gauge, Histogram

from mmray.system.arrays import Floats
from mmray.system.progress import Progress

STAGE, DEVICE = "stage", "device"  # labels


@cache
def images_done() -> Counter:
    about = "Images of a stage that are done; of k-NN its queries, of the diffusion its anchors."
    return Counter("mmray_images_total", about, (STAGE,))


@cache
def bytes_read() -> Counter:
    about = "Bytes of the files of images that are done."
    return Counter("mmray_image_bytes_total", about, (STAGE,))


@cache
def device_busy() -> Counter:
    about = "Seconds in which a worker had work on its device, instead of waiting for images."
    return Counter("mmray_device_busy_seconds_total", about, (DEVICE,))


@cache
def diffusion_residual() -> Histogram:
    about = "Relative residual of eq. (3) at which the diffusion of an anchor ended."
    return Histogram("mmray_diffusion_residual", about, [10.0**power for power in range(-12, 1)])


@cache
def training_epoch() -> Gauge:
    return Gauge("mmray_training_epoch", "Epochs of training that are done.")


@cache
def training_speed() -> Gauge:
    about = "Images a second that all ranks trained on in the last epoch, validation not counted."
    return Gauge("mmray_training_images_per_second", about)


class CountedProgress(Progress):
    """Progress of a stage whose images and bytes are counted for Prometheus too."""

    def advance(self, items: int, **amounts: int) -> None:
        super().advance(items, **amounts)
        stage = {STAGE: self.label.partition(" ")[0]}  # without the part of "k-NN 1/8"
        for counter, amount in ((images_done(), items), (bytes_read(), amounts.get("bytes", 0))):
            if amount:
                counter.inc(amount, stage)


class BusyDevice:
    """Counts the seconds in which at least one thread of a block uses a device.

    >>> busy = BusyDevice("cuda")
    >>> with busy:
    ...     compute()
    """

    def __init__(self, device: str) -> None:
        self.label = {DEVICE: device}
        self.lock, self.threads, self.since = threading.Lock(), 0, 0.0

    def __enter__(self) -> None:
        with self.lock:
            if not self.threads:
                self.since = time.monotonic()
            self.threads += 1

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with self.lock:
            now = time.monotonic()
            if now > self.since:
                device_busy().inc(now - self.since, self.label)
            self.threads, self.since = self.threads - 1, now


def count_residuals(residuals: Floats) -> None:
    """Count the residuals (a,) of anchors."""
    for residual in residuals.tolist():
        diffusion_residual().observe(residual)


def show_epoch(epoch: int, images: int, figures: Mapping[str, float]) -> None:
    """Show how far training is, and how fast the last epoch went over its images."""
    training_epoch().set(epoch)
    if images and figures.get("train_seconds"):
        training_speed().set(images / figures["train_seconds"])
