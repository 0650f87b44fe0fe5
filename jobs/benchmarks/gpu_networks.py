"""Networks on a GPU: alone, in a unit of extraction, in training.

The networks have random weights and the images are noise: nothing here depends on either.
"""

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import get_args
from unittest import mock

import numpy as np
import pyarrow as pa
import ray
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.gpu_trial import Trial, photos
from mmray.config.choices import Descriptor, Network, Precision, TrainingPrecision
from mmray.descriptors.embedding import allow_tf32, as_batch
from mmray.descriptors.inference import fused
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.images.decoding import same_shape_batches
from mmray.pipeline.distributed import describing
from mmray.pipeline.distributed.decoding import ABOUT, ImageGroup
from mmray.pipeline.distributed.describing import ExtractionWorker
from mmray.system.arrays import Pixels
from mmray.training.epoch import train_epoch
from mmray.training.image_source import ImageSource, embed_ids
from mmray.training.optimization import make_optimizer
from mmray.training.steps import StepRule, TupleSteps
from mmray.training.tuples import Tuples

BOTH: tuple[Descriptor, ...] = ("rmac", "mac")
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
NETWORKS: tuple[Network, ...] = ("vgg16", "resnet50", "efficientnet_lite0")  # of `shapes`
LAYOUTS = {"contiguous": torch.contiguous_format, "channels last": torch.channels_last}
_TUPLES_IN_STEP = 5


def net(trial: Trial) -> None:
    """Time VGG16 in batches of one shape, and see how far TF32 and bfloat16 are from float32."""
    torch.manual_seed(0)
    model = EmbeddingNet("vgg16", "mac")
    count, height, width = (64, 272, 362) if trial.full else (4, 48, 64)
    shape = (count, height, width, 3)
    pixels = torch.randint(0, 255, shape, dtype=torch.uint8).to(trial.device).permute(0, 3, 1, 2)
    rows = {}
    for name in PRECISIONS:
        allow_tf32(name == "tf32")
        with torch.inference_mode():
            ready = fused(model, precision=name).on(trial.torch_device)
            rows[name] = ready.descriptors(pixels, BOTH).double()
            for batch in (1, 4, 16, 64) if trial.full else (1, 4):
                _time_batch(trial, name, ready, pixels[:batch])
    allow_tf32(False)
    for name in PRECISIONS[1:]:
        cosines = torch.nn.functional.cosine_similarity(rows[name], rows["float32"], dim=-1)
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


def shapes(trial: Trial) -> None:
    """Time the first and the second pass of shapes that are new, by the layout of memory.

    On a GPU each new shape costs EfficientNet-Lite0 seconds where channels are last.
    """
    allow_tf32(False)
    rng, side = np.random.default_rng(0), 256 if trial.full else 48
    kinds = [
        (name, layout, precision, trains)
        for name in (NETWORKS if trial.full else NETWORKS[-1:])
        for layout in LAYOUTS
        for precision in ("float32", "bfloat16")
        for trains in (False, True)
    ]
    for number, (name, layout, precision, trains) in enumerate(kinds):
        step = _pass_of(trial, name, layout, half=precision == "bfloat16", trains=trains)
        passes = []
        for shape in range(3 if trial.full else 1):
            # Each kind has shapes of its own, which no library has seen.
            height, width = side + 2 * (len(kinds) * shape + number), side
            pixels = rng.integers(0, 255, (4, height, width, 3), dtype=np.uint8)
            batch = as_batch(pixels, trial.torch_device)
            passes.append([_seconds_of(trial, partial(step, batch)) for _ in range(2)])
        first, second = np.array(passes).T * 1e3
        trial.say(
            "shapes",
            network=name,
            layout=layout,
            precision=precision,
            trains=trains,
            first_ms=float(first.mean()),
            slowest_ms=float(first.max()),
            second_ms=float(second.mean()),
        )


def _pass_of(
    trial: Trial, name: Network, layout: str, *, half: bool, trains: bool
) -> Callable[[Tensor], None]:
    """Return a pass of a network: forward, or forward and backward as in training."""
    torch.manual_seed(0)
    model = EmbeddingNet(name, "mac")
    if not trains:
        model = fused(model, precision="bfloat16" if half else "float32")
    model.layout = LAYOUTS[layout]
    model.backbone.to(memory_format=model.layout)
    model.to(trial.device)

    def run(batch: Tensor) -> None:
        if trains:
            model.zero_grad()
            with torch.autocast(trial.device, torch.bfloat16, enabled=half):
                loss = model(batch).sum()
            loss.backward()
        else:
            with torch.inference_mode():
                model.descriptors(batch, BOTH[1:])

    return run


def _seconds_of(trial: Trial, call: Callable[[], None]) -> float:
    start = time.perf_counter()
    call()
    if trial.cuda:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def extract(trial: Trial) -> None:
    """Time a unit of images of mixed shapes in the actor's own code, step by step, without Ray."""
    groups = _groups(_noise(trial, 256 if trial.full else 4))
    if trial.cuda:
        torch.cuda.reset_peak_memory_stats()
    n, repeats = sum(len(group.about) for group in groups), 3 if trial.full else 1
    shapes = len({pixels_of(group).shape[1:] for group in groups})
    size = sum(pixels_of(group).nbytes for group in groups) / 1e6
    trial.say("unit", images=n, shapes=shapes, groups=len(groups), mb=size)
    rows = [group.to_row() for group in groups]
    steps: dict[str, Callable[[], object]] = {
        "to rows and back": lambda: [ImageGroup.of_row(group.to_row()) for group in groups],
        "to device": lambda: [as_batch(pixels_of(group), trial.torch_device) for group in groups],
    }
    for step, call in steps.items():
        trial.say("unit", step=step, ms=1e3 * trial.seconds(call))
    received = [ImageGroup.of_row(row) for row in rows]
    for precision in PRECISIONS:
        for fixed in (False, True):
            settings = replace(settings_of(trial, precision), fixed_batches=fixed)
            # The worker asks Ray for the network and the GPU; here no Ray runs.
            with (
                mock.patch.object(ray, "get", return_value=network(trial)),
                mock.patch.object(describing, "assigned_gpus", return_value=["0"]),
            ):
                worker = ExtractionWorker([mock.Mock()], settings, 1)
            for threads in (1,) if fixed else (1, 2):
                seconds = trial.seconds(partial(_describe, worker, received, threads), repeats)
                trial.say(
                    "unit",
                    step="whole worker",
                    precision=precision,
                    fixed_batches=fixed,
                    calls_at_once=threads,
                    ms=1e3 * seconds,
                    images_s=n / seconds,
                )
        if trial.cuda:
            trial.say("unit", gpu_peak_gb=torch.cuda.max_memory_allocated() / 1e9)


def _describe(worker: ExtractionWorker, groups: Sequence[ImageGroup], threads: int) -> None:
    """Have a worker describe groups in blocks of some, as it gets them, by some threads."""
    blocks = [groups[start : start + 10] for start in range(0, len(groups), 10)]
    with ThreadPoolExecutor(threads) as calls:
        list(calls.map(worker, blocks))


def pixels_of(group: ImageGroup) -> NDArray[np.uint8]:
    assert group.pixels is not None
    return group.pixels


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


def _groups(images: list[Pixels]) -> list[ImageGroup]:
    """A unit of images in groups of one shape, as `decoding.Decoder` yields them."""
    groups = []
    for batch in same_shape_batches([image.shape[:2] for image in images], 32):
        rows = [{"unit": 0, "item": i, "uri": "x", "bytes": 0, "sample": i == 0} for i in batch]
        about = pa.Table.from_pylist(rows, ABOUT)
        groups.append(ImageGroup(about, np.stack([images[place] for place in batch])))
    return groups


def train(trial: Trial) -> None:
    """Time training steps on JPEG files, and embedding before an epoch."""
    rng, t = np.random.default_rng(0), 150 if trial.full else 5
    model = network(trial).on(trial.torch_device)
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
        for precision in get_args(TrainingPrecision):
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
    trial: Trial,
    model: EmbeddingNet,
    tuples: Tuples,
    source: ImageSource,
    precision: TrainingPrecision,
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
        batch_size=32 if trial.full else 2,
        shard_size=256 if trial.full else 16,
    )


def network(trial: Trial) -> EmbeddingNet:
    """Make the network that all parts but `net` run, with random weights."""
    torch.manual_seed(0)
    return EmbeddingNet("vgg16" if trial.full else "efficientnet_lite0", "mac")
