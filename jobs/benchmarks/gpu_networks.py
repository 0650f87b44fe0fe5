"""Networks on a GPU: alone, in a unit of extraction, in training.

The networks have random weights and the images are noise: nothing here depends on either.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args
from unittest import mock

import numpy as np
import ray
import torch
from torch import Tensor

from benchmarks.gpu_trial import Trial, photos
from mmray.config.choices import Descriptor, Precision
from mmray.descriptors.embedding import as_batch, embed
from mmray.descriptors.inference import fused
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.images.decoding import same_shape_batches
from mmray.pipeline.distributed import extraction
from mmray.pipeline.distributed.decoding import unpacked
from mmray.pipeline.distributed.extraction import ExtractionWorker
from mmray.pipeline.distributed.units import ITEMS, UNIT
from mmray.system.arrays import Pixels
from mmray.training.epoch import train_epoch
from mmray.training.image_source import ImageSource, embed_ids
from mmray.training.optimization import make_optimizer
from mmray.training.steps import StepRule, TupleSteps
from mmray.training.tuples import Tuples

BOTH: tuple[Descriptor, ...] = ("rmac", "mac")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
_TUPLES_IN_STEP = 5


def net(trial: Trial) -> None:
    """Time VGG16 in batches of one shape, and see how far TF32 and bfloat16 are from float32."""
    torch.manual_seed(0)
    model = EmbeddingNet("vgg16", "mac")
    count, height, width = (64, 272, 362) if trial.full else (4, 48, 64)
    shape = (count, height, width, 3)
    pixels = torch.randint(0, 255, shape, dtype=torch.uint8).to(trial.device).permute(0, 3, 1, 2)
    rows = {}
    for name, dtype, tf32 in (
        ("fp32", torch.float32, False),
        ("tf32", torch.float32, True),
        ("bf16", torch.bfloat16, True),
    ):
        with _convolutions_in_tf32(tf32), torch.inference_mode():
            ready = fused(model, dtype=dtype).to(trial.device)
            rows[name] = ready.descriptors(pixels, BOTH).double()
            for batch in (1, 4, 16, 64) if trial.full else (1, 4):
                _time_batch(trial, name, ready, pixels[:batch])
    for name in ("tf32", "bf16"):
        cosines = torch.nn.functional.cosine_similarity(rows[name], rows["fp32"], dim=-1)
        trial.say("deviation", of=name, one_minus_cosine_max=float((1 - cosines).max()))


def _time_batch(trial: Trial, precision: str, model: EmbeddingNet, pixels: Tensor) -> None:
    for poolings in (BOTH, BOTH[1:]):
        call = partial(model.descriptors, pixels, poolings)
        seconds = trial.seconds(call, 10 if trial.full else 1)
        trial.say(
            "net",
            precision=precision,
            batch=len(pixels),
            poolings="+".join(poolings),
            ms=1e3 * seconds,
            images_s=len(pixels) / seconds,
        )


@contextmanager
def _convolutions_in_tf32(allowed: bool) -> Iterator[None]:
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = allowed
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def extract(trial: Trial) -> None:
    """Time a unit of images of mixed shapes in the actor's own code, step by step, without Ray."""
    images = _noise(trial, 256 if trial.full else 16)
    if trial.cuda:
        torch.cuda.reset_peak_memory_stats()
    n, repeats = len(images), 3 if trial.full else 1
    unit = _unit(images)
    batches = same_shape_batches([image.shape[:2] for image in images], 32)
    stacks = [[images[place] for place in batch] for batch in batches]
    shapes, size = len({image.shape for image in images}), len(unit["pixels"]) / 1e6
    trial.say("unit", images=n, shapes=shapes, batches=len(batches), mb=size)
    steps: dict[str, Callable[[], object]] = {
        "unpack": lambda: unpacked(unit["pixels"], unit["shape"]),
        "stack": lambda: [np.stack(stack) for stack in stacks],
        "stack+to device": lambda: [as_batch(stack, trial.torch_device) for stack in stacks],
    }
    for step, call in steps.items():
        trial.say("unit", step=step, ms=1e3 * trial.seconds(call))
    for precision in PRECISIONS:
        settings = settings_of(trial, precision)
        # The worker asks Ray for the network and the GPU; here no Ray runs.
        with (
            mock.patch.object(ray, "get", return_value=network(trial)),
            mock.patch.object(extraction, "assigned_gpus", return_value=["0"]),
        ):
            worker = ExtractionWorker([mock.Mock()], settings, 1)
        for step, call in (
            ("whole worker", partial(worker, unit)),
            ("embed", partial(_embed, worker, images)),
        ):
            seconds = trial.seconds(call, repeats)
            figures = {"ms": 1e3 * seconds, "images_s": n / seconds}
            trial.say("unit", step=step, precision=precision, **figures)
        if trial.cuda:
            trial.say("unit", gpu_peak_gb=torch.cuda.max_memory_allocated() / 1e9)


def _embed(worker: ExtractionWorker, images: list[Pixels]) -> None:
    """Do what a worker does with the images of a unit, and no more."""
    settings = worker.settings
    embed(
        worker.reduced or worker.exact,
        images,
        settings.poolings,
        batch_size=settings.batch_size,
        device=worker.device,
        scales=settings.preprocessing.scales,
        regions=worker.regions,
    )


def _noise(trial: Trial, n: int) -> list[Pixels]:
    """Images in about 50 shapes, most of them 3:4 or 2:3, as photos of tourists have."""
    rng, longest = np.random.default_rng(0), trial.longest_side
    kinds, flips = rng.random(n), rng.random(n)
    others = rng.uniform(0.5, 1.0, n)
    ratios = np.where(kinds < 0.45, 0.75, np.where(kinds < 0.6, 2 / 3, others)).round(2)
    sizes = [(round(longest * ratio), longest) for ratio in ratios.tolist()]
    return [
        rng.integers(0, 255, (*(size if flip < 0.7 else size[::-1]), 3), dtype=np.uint8)
        for size, flip in zip(sizes, flips, strict=True)
    ]


def _unit(images: list[Pixels]) -> dict[str, Any]:
    """A unit of work as `decoding.Decoder` leaves it."""
    n = len(images)
    return {
        UNIT: 0,
        ITEMS: n,
        "first": 0,
        "uri": ["x"] * n,
        "width": [1] * n,
        "height": [1] * n,
        "digest": [bytes(32)] * n,
        "error": [None] * n,
        "known": [False] * n,
        "descriptors": b"",
        "shape": [list(image.shape) for image in images],
        "pixels": b"".join(image.tobytes() for image in images),
    }


def train(trial: Trial) -> None:
    """Time training steps on JPEG files, and embedding before an epoch."""
    rng, t = np.random.default_rng(0), 150 if trial.full else 5
    model = network(trial).to(trial.device)
    with photos(600 if trial.full else 30, trial.longest_side) as images:
        source = ImageSource(images, longest_side=trial.longest_side)
        members = rng.integers(0, len(images), (t, 3))
        tuples = Tuples(
            anchors=members[:, 0],
            positives=members[:, 1:2],
            negatives=members[:, 2:],
            weights=np.ones((t, 1), np.float32),
            related=tuple(members[:, :2]),
        )
        for precision in PRECISIONS:
            seconds = _time_epoch(trial, model, tuples, source, precision)
            steps = t / _TUPLES_IN_STEP
            trial.say(
                "train", precision=precision, steps_s=steps / seconds, images_s=3 * t / seconds
            )
            embedding = partial(
                embed_ids,
                model,
                source,
                np.arange(len(images)),
                batch_size=32,
                device=trial.torch_device,
                precision=precision,
            )
            seconds = trial.seconds(embedding, 1)
            step = "embed_ids (two reading threads)"
            trial.say("train", step=step, precision=precision, images_s=len(images) / seconds)


def _time_epoch(
    trial: Trial, model: EmbeddingNet, tuples: Tuples, source: ImageSource, precision: Precision
) -> float:
    rule = StepRule(
        loss="triplet",
        margin=0.5,
        weighted=True,
        batch_size=_TUPLES_IN_STEP,
        precision=precision,
    )
    optimizer = make_optimizer(
        model.parameters(), name="sgd", learning_rate=1e-4, momentum=0.9, weight_decay=5e-4
    )
    steps = TupleSteps(tuples, rule)
    return trial.seconds(
        lambda: train_epoch(model, [optimizer], steps, source, rule, device=trial.torch_device), 1
    )


def settings_of(trial: Trial, precision: Precision) -> DescriptorSettings:
    """Describe by R-MAC and MAC, in units of the usual size where it is measured."""
    return DescriptorSettings(
        preprocessing=Preprocessing(trial.longest_side),
        poolings=BOTH,
        precision=precision,
        shard_size=256 if trial.full else 16,
    )


def network(trial: Trial) -> EmbeddingNet:
    """Make the network that all parts but `net` run, with random weights."""
    torch.manual_seed(0)
    return EmbeddingNet("vgg16" if trial.full else "efficientnet_lite0", "mac")
