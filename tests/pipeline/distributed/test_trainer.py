"""Training on Ray follows that of one process without Ray: by one worker or two, cut or not."""

import copy
import dataclasses
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pyarrow import fs
from ray.train.torch import TorchTrainer

from mmray.config.sections import TrainingConfig
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.weights import load
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.ranking import Query
from mmray.images.collection import Collection
from mmray.images.decoding import load_image
from mmray.images.pixel_shards import PixelShards, arrow_file, pixel_table
from mmray.pipeline.distributed.cluster import TrainingWorkers
from mmray.pipeline.distributed.trainer import _ddp_options, fine_tune
from mmray.system.errors import DamagedFileError, InputError
from mmray.system.folder import Folder
from mmray.training.fine_tuning import FineTuning
from tests.made import synthetic

pytestmark = pytest.mark.usefixtures("ray_cluster")

CONFIG = TrainingConfig(
    epochs=2,
    anchors_per_epoch=4,
    batch_size=3,
    learning_rate=1e-3,
    decay_epochs=1,
    longest_side=64,
    held_out=0.2,
)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    """With a labelled set of the same photos."""
    made = synthetic.training_job(tmp_path_factory.mktemp("photos"), CONFIG)
    query = Query("q", "00.png", None, positives=np.array([4, 5]), junk=np.array([1]))
    labelled = LabelledSet(database=made.images, queries=made.images[:1], ground_truth=[query])
    return dataclasses.replace(made, labelled=labelled)


def trained(job, path, workers=1):
    count = TrainingWorkers(fewest=workers, most=workers, resources={"CPU": 1.0})
    left = fine_tune(job, folder=Folder(str(path)), workers=count)
    return left.last.state_dict(), left.history


def assert_same(left, right, *, rel):
    """The metrics of all epochs are equal, the times they took aside."""
    for one, other in zip(left, right, strict=True):
        assert one.keys() == other.keys()
        for name in one.keys() - {"embed_seconds", "image_seconds", "train_seconds"}:
            assert one[name] == pytest.approx(other[name], rel=rel), name


def weights(path, epoch):
    return load(Folder(str(path / "checkpoints" / f"epoch-{epoch:03d}"))).state_dict()


def assert_near(left, right, atol):
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        torch.testing.assert_close(right[name], tensor, atol=atol, rtol=0)


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """Weights after the first epoch and the last, and the metrics of all."""

    first: dict[str, torch.Tensor]
    last: dict[str, torch.Tensor]
    history: list[dict[str, Any]]


@pytest.fixture(scope="module")
def alone(job):
    """The core without Ray, in as many threads as a rank has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    own = dataclasses.replace(job, model=copy.deepcopy(job.model))
    tuning, states = FineTuning(own, torch.device("cpu")), []
    tuning.run(tuning.network, lambda: states.append(copy.deepcopy(tuning.network.state_dict())))
    torch.set_num_threads(threads)
    return Trajectory(states[1], states[2], tuning.history)


def test_pytorch_knows_the_options_of_its_wrapper_and_warns_of_none(tmp_path):
    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        with warnings.catch_warnings(action="error"):
            network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2))
            torch.nn.parallel.DistributedDataParallel(network, **_ddp_options())
    finally:
        torch.distributed.destroy_process_group()


def test_training_moves_the_network_and_notes_every_epoch(job, alone):
    start = job.model.state_dict()
    assert max(float((alone.last[k] - start[k]).abs().max()) for k in start) > 1e-4
    assert len(alone.history) == 3
    assert [round(epoch["learning_rate"], 9) for epoch in alone.history[1:]] == [1e-3, 1e-4]
    assert all(epoch["loss"] > 0 for epoch in alone.history[1:])
    assert all(0 < epoch["map"] <= 1 and 0 < epoch["manifold_map"] <= 1 for epoch in alone.history)


@pytest.mark.slow  # two workers whose images are in a bucket do by default
@pytest.mark.parametrize(("workers", "micro_batch_size"), [(2, 1), (3, None)])
def test_more_workers_follow_the_trajectory_of_one(job, alone, tmp_path, workers, micro_batch_size):
    config = dataclasses.replace(CONFIG, micro_batch_size=micro_batch_size)
    given = dataclasses.replace(job, config=config)
    state, history = trained(given, tmp_path, workers=workers)
    assert_near(alone.first, weights(tmp_path, 1), atol=1e-5)
    assert_near(alone.last, state, atol=1e-5)
    assert_same(alone.history, history, rel=1e-3)


@pytest.mark.slow
def test_two_workers_follow_one_under_labels_too(job, tmp_path):
    labelled = synthetic.labelled_job(job, np.arange(12) // 2, [(0, 1), (2, 3), (4, 5), (4, 7)])
    changes = {"negatives": 2, "hard_negatives": 2, "negative_pool": 7, "epochs": 1}
    labelled = dataclasses.replace(labelled, config=dataclasses.replace(CONFIG, **changes))
    (one, first), (two, second) = (
        trained(labelled, tmp_path / str(workers), workers=workers) for workers in (1, 2)
    )
    assert_near(one, two, atol=1e-5)
    assert_same(first, second, rel=1e-3)


@pytest.mark.slow
def test_two_workers_learn_the_exponent_of_gem_that_one_learns(job, tmp_path):
    changes = {"pooling": "gem", "gem_rate": 10.0, "learning_rate": 1e-2, "micro_batch_size": 1}
    config, network = dataclasses.replace(CONFIG, **changes), EmbeddingNet(job.model.network, "gem")
    network.backbone.load_state_dict(job.model.backbone.state_dict())
    gem = dataclasses.replace(job, config=config, model=network)
    (one, first), (two, second) = (
        trained(gem, tmp_path / str(workers), workers=workers) for workers in (1, 2)
    )
    assert_near(one, two, atol=2e-5)
    assert_same(first, second, rel=1e-3)
    assert abs(first[-1]["gem_p"] - 3) > 1e-4


@pytest.mark.slow
def test_two_workers_share_the_negatives_of_a_step_and_follow_one(job, tmp_path):
    # Their stripes of a step are 2 and 1 tuples, then 1 and none.
    shared = dataclasses.replace(
        job, config=dataclasses.replace(CONFIG, loss="infonce", temperature=0.5, epochs=1)
    )
    (one, first), (two, second) = (
        trained(shared, tmp_path / str(workers), workers=workers) for workers in (1, 2)
    )
    start = job.model.state_dict()
    assert max(float((one[k] - start[k]).abs().max()) for k in one) > 1e-5
    assert_near(one, two, atol=2e-5)
    assert_same(first, second, rel=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("rival", ["proxy-nca", "distance-weighted"])
def test_workers_share_a_batch_of_classes_and_follow_one(job, tmp_path, rival):
    # Eight images a step: the stripes of three workers are 3, 3 and 2.
    changes = {"epochs": 1, "held_out": 0, "learning_rate": 1e-4}
    labelled = synthetic.class_job(job, rival)
    labelled = dataclasses.replace(labelled, config=dataclasses.replace(CONFIG, **changes))
    (one, first), (three, third) = (
        trained(labelled, tmp_path / str(workers), workers=workers) for workers in (1, 3)
    )
    start = labelled.model.state_dict()
    assert max(float((one[k] - start[k]).abs().max()) for k in one) > 1e-5
    assert_near(one, three, atol=2e-5)
    assert_same(first, third, rel=1e-2)


@pytest.mark.slow  # in end_to_end/ a job that is killed in training goes on
def test_training_goes_on_where_it_stopped_bit_for_bit(job, alone, tmp_path):
    """Where images vanished in between, which ends it with one sentence, and a disk failed, too."""
    first = dataclasses.replace(job, config=dataclasses.replace(CONFIG, epochs=1))
    _, short = trained(first, tmp_path)
    assert len(short) == 2
    assert_near(alone.first, weights(tmp_path, 1), atol=0)
    with pytest.raises(InputError, match=r"00\.png\.gone: FileNotFoundError.*restore it"):
        trained(without_images(job), tmp_path)
    optimizer = tmp_path / "checkpoints" / "epoch-001" / "optimizer.pt"
    optimizer.write_bytes(optimizer.read_bytes()[:-1])
    state, history = trained(job, tmp_path)
    assert_near(alone.last, state, atol=0)
    assert_same(alone.history, history, rel=0)


def without_images(job):
    rows = [dataclasses.replace(item, uri=f"{item.uri}.gone") for item in job.images]
    return dataclasses.replace(job, images=Collection.of(rows))


@pytest.mark.slow
def test_a_bucket_keeps_the_checkpoints_and_ray_no_credentials(job, alone, s3, monkeypatch):
    bucket = fs.FileSystem.from_uri(f"s3://test:test@trained{s3}&allow_bucket_creation=true")[0]
    bucket.create_dir("trained")
    given = []

    def noting(*arguments, **options):
        given.append(str((arguments[1:], {**options, "train_loop_config": None})))
        return TorchTrainer(*arguments, **options)

    monkeypatch.setattr("mmray.pipeline.distributed.trainer.TorchTrainer", noting)
    state, history = trained(job, f"s3://KEY:SECRET@trained/x{s3}")
    assert_near(state, alone.last, 1e-5)
    assert len(history) == 3
    assert "trained/x" in given[0]
    assert "SECRET" not in given[0]
    (network, _) = bucket.get_file_info(
        [f"trained/x/checkpoints/epoch-{epoch:03d}/model.safetensors" for epoch in (2, 3)]
    )
    assert network.is_file


@pytest.fixture
def in_bucket(job, s3, tmp_path):
    """The job with its images as two files in a bucket."""
    folder = Folder(f"s3://caches/cache-{tmp_path.name}{s3}&allow_bucket_creation=true")
    pixels = [load_image(image, longest_side=CONFIG.longest_side).pixels for image in job.images]
    folder.write("a.arrow", arrow_file(pixel_table(pixels[:5])))
    folder.write("b.arrow", arrow_file(pixel_table(pixels[5:])))
    counts = {"a.arrow": 5, "b.arrow": len(pixels) - 5}
    return dataclasses.replace(job, images=PixelShards(folder, counts))


@pytest.mark.slow
def test_images_in_a_bucket_are_copied_to_the_machine_and_train_the_same(
    in_bucket, alone, tmp_path
):
    # Four tuples in steps of three, two steps an epoch: the stripes of two workers are 2 and 1,
    # then 1 and none.
    state, history = trained(in_bucket, tmp_path / "train-a", workers=2)
    assert_near(alone.first, weights(tmp_path / "train-a", 1), atol=1e-5)
    assert_near(alone.last, state, atol=1e-5)
    assert_same(alone.history, history, rel=1e-3)
    own = Path(tempfile.gettempdir()) / f"mmray-{os.getuid()}"
    assert own.stat().st_mode & 0o77 == 0
    assert not (own / f"train-a-cache-{tmp_path.name}").exists()


@pytest.mark.slow
def test_a_damaged_image_is_said_by_the_name_that_it_has_in_the_bucket(in_bucket, tmp_path):
    folder = in_bucket.images.folder
    content, last = folder.read("b.arrow"), [*in_bucket.images][-1]
    folder.write("b.arrow", content.replace(last.tobytes(), bytes(last.nbytes)))
    with pytest.raises(DamagedFileError) as caught:
        trained(in_bucket, tmp_path / "train-b", workers=2)
    assert caught.value.location == folder.location("b.arrow")


@pytest.mark.slow
def test_images_that_were_never_there_leave_the_initial_network_to_begin_with(job, tmp_path):
    with pytest.raises(InputError, match=r"00\.png\.gone: FileNotFoundError.*restore it"):
        trained(without_images(job), tmp_path)
    first = dataclasses.replace(job, config=dataclasses.replace(CONFIG, epochs=1))
    state, _ = trained(first, tmp_path)
    assert_near(job.model.state_dict(), weights(tmp_path, 0), atol=0)
    again, _ = trained(first, tmp_path)  # nothing is left to do
    assert_near(state, again, atol=0)
