"""Fine-tuning measures, keeps the best network, ends in time, and goes on where it was."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mmray.config.sections import TrainingConfig
from mmray.descriptors.embedding import embed
from mmray.descriptors.weights import build, load
from mmray.evaluation.benchmarks.labelled_set import LabelledSet
from mmray.evaluation.ranking import Query
from mmray.images.cropping import center_crop
from mmray.images.decoding import load_image
from mmray.system.folder import Folder
from mmray.training import fine_tuning, tuples
from mmray.training.checkpoints import last_measured, renamed_history, saved_history
from mmray.training.fine_tuning import FineTuning
from mmray.training.job import epoch_seconds
from mmray.training.validation import ManifoldValidation
from tests import oracles
from tests.made import synthetic

pytestmark = pytest.mark.usefixtures("shallow_networks")
CPU = torch.device("cpu")
TIMES = {"embed_seconds", "image_seconds", "train_seconds"}
CONFIG = TrainingConfig(
    epochs=2,
    anchors_per_epoch=2,
    batch_size=1,
    learning_rate=1e-3,
    decay_epochs=1,
    longest_side=64,
    held_out=0.4,
    monitor_every=0,
)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    return tmp_path_factory.mktemp("photos")


@pytest.fixture
def job(photos):
    """Two of five anchors are held out; a network of its own for every test."""
    return synthetic.training_job(photos, CONFIG)


def with_config(job, **changes):
    return dataclasses.replace(job, config=dataclasses.replace(job.config, **changes))


def started(job):
    """With a network that no other fine-tuning trains."""
    fresh = build("efficientnet_lite0", pooling=job.config.pooling)
    return FineTuning(dataclasses.replace(job, model=fresh), CPU)


def run(tuning, report=lambda: None):
    """Train to the end; the epochs that were reported."""
    reported = []

    def reporting():
        reported.append(tuning.epoch)
        report()

    tuning.run(tuning.network, reporting)
    return reported


def weights(network):
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}


def first_weight(network):
    return float(next(iter(network.state_dict().values())).flatten()[0])


def differ(one, other):
    return any(not torch.equal(one[name], other[name]) for name in one)


def timeless(history):
    return [{k: v for k, v in epoch.items() if k not in TIMES} for epoch in history]


def prescribe(monkeypatch, values):
    """`manifold_map` of the network after epoch i is values[i], and its only figure."""
    left = iter(values)
    monkeypatch.setattr(fine_tuning, "agreement", lambda shared, initially: {})
    monkeypatch.setattr(
        ManifoldValidation, "measure", lambda *_, **__: {"manifold_map": next(left)}
    )


def without_training(monkeypatch):
    """An epoch adds 1 to a weight, and nothing is embedded."""

    def train_epoch(model, optimizers, steps, source, rule, **options):
        with torch.no_grad():
            next(model.parameters()).add_(1)
        return {"loss": 0.5}

    def embed_ids(model, source, ids, *arguments, **options):
        return np.eye(len(source.items), model.dim, dtype=np.float32)[ids]

    monkeypatch.setattr(fine_tuning, "train_epoch", train_epoch)
    monkeypatch.setattr(fine_tuning, "embed_ids", embed_ids)


def noting(train_epoch, drawn):
    """The same, with the tuples that it is given added to a list."""

    def noted(model, optimizers, steps, *arguments, **options):
        drawn.append(steps.tuples)
        return train_epoch(model, optimizers, steps, *arguments, **options)

    return noted


def assert_restored_goes_on(job, folder):
    """Every checkpoint of a whole run, restored into a fresh state, ends as the whole run did."""
    whole = started(job)
    run(whole, lambda: whole.save(folder / str(whole.epoch)))
    for epoch in range(job.config.epochs + 1):
        again = started(job)
        again.restore(folder / str(epoch))
        assert again.epoch == epoch
        assert timeless(again.history) == timeless(whole.history[: epoch + 1])
        assert run(again) == list(range(epoch + 1, job.config.epochs + 1))
        assert timeless(again.history) == timeless(whole.history)
        for kept in ("network", "measured", "best"):
            one, other = weights(getattr(again, kept)), weights(getattr(whole, kept))
            torch.testing.assert_close(one, other, atol=0, rtol=0)
    return whole


def test_every_checkpoint_restored_goes_on_bit_for_bit(job, tmp_path):
    start = weights(job.model)
    whole = assert_restored_goes_on(with_config(job, normalized_weights=True), tmp_path)
    assert differ(start, weights(whole.network))
    assert saved_history(tmp_path / "1") == whole.history[:2]


def test_means_go_on_too(job, tmp_path):
    whole = assert_restored_goes_on(with_config(job, average=True), tmp_path)
    for epoch in (1, 2):
        folder = tmp_path / str(epoch)
        torch.testing.assert_close(
            weights(last_measured(folder)), weights(load(Folder(str(folder / "measured"))))
        )
    assert differ(weights(whole.measured), weights(whole.network))


def test_the_mean_is_of_the_network_before_and_after_every_epoch(job):
    tuning, networks = started(with_config(job, average=True, epochs=3)), []
    alone, without = started(with_config(job, epochs=3)), []
    run(tuning, lambda: networks.append((weights(tuning.network), weights(tuning.measured))))
    run(alone, lambda: without.append(weights(alone.network)))
    for epoch, (network, measured) in enumerate(networks):
        torch.testing.assert_close(network, without[epoch], rtol=0, atol=0)  # training is the same
        for name, mean in measured.items():
            wanted = np.mean([each[name].numpy() for each in without[: epoch + 1]], axis=0)
            np.testing.assert_allclose(mean, wanted, rtol=1e-5, atol=1e-7)
    assert differ(networks[0][1], networks[1][1])
    assert alone.measured is alone.network


def test_the_mean_is_what_is_measured_and_kept(job, monkeypatch):
    """A weight w is w, w + 1, w + 2 .. after the epochs: its mean rises by a half."""
    without_training(monkeypatch)
    embedded = []

    def embed_ids(model, source, ids, *arguments, **options):
        embedded.append(first_weight(model) - initial)
        return np.eye(len(source.items), model.dim, dtype=np.float32)[ids]

    monkeypatch.setattr(fine_tuning, "embed_ids", embed_ids)
    prescribe(monkeypatch, [0.1, 0.2, 0.4, 0.3])
    tuning = started(with_config(job, average=True, epochs=3, hard_negatives=1))
    initial = first_weight(tuning.network)
    run(tuning)
    # Whole images once each time, also to find the hard negatives; and the parts of some.
    np.testing.assert_allclose(embedded, np.repeat([0, 0.5, 1, 1.5], 2), atol=1e-5)
    assert first_weight(tuning.best) - initial == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize(("seconds", "epochs"), [(None, 5), (1000, 5), (35, 3), (25, 2), (1, 1)])
def test_training_ends_with_the_last_epoch_that_fits_its_time(job, monkeypatch, seconds, epochs):
    """Epochs of ten seconds; one is always trained."""
    without_training(monkeypatch)
    clock = iter(range(0, 10_000, 5))  # 5 s to embed, 5 s to train
    monkeypatch.setattr(fine_tuning, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    prescribe(monkeypatch, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    tuning = started(dataclasses.replace(with_config(job, epochs=5), seconds=seconds))
    run(tuning)
    assert tuning.epoch == epochs
    assert [epoch_seconds(metrics) for metrics in tuning.history] == [0, *[10] * epochs]


@pytest.mark.parametrize("average", [False, True])
def test_a_learned_exponent_of_gem_moves_is_kept_and_goes_on(job, tmp_path, average):
    gem = with_config(job, pooling="gem", gem_rate=10.0, learning_rate=1e-2, average=average)
    whole = assert_restored_goes_on(gem, tmp_path)
    exponents = [3.0, *(epoch["gem_p"] for epoch in whole.history[1:])]
    assert abs(exponents[1] - 3) > 1e-4
    for epoch, p in enumerate(exponents):
        measured = last_measured(tmp_path / str(epoch))
        assert load(Folder(str(tmp_path / str(epoch)))).variant.p == p
        mean = np.mean(exponents[: epoch + 1]) if average else p
        assert measured.variant.p == pytest.approx(mean, rel=1e-6)
    assert whole.network.variant.p == exponents[-1]
    assert whole.best.variant.p == pytest.approx(
        last_measured(tmp_path / str(whole.best_epoch)).variant.p, rel=0
    )
    constant = started(dataclasses.replace(gem, config=dataclasses.replace(gem.config, gem_rate=0)))
    run(constant)
    assert constant.network.p is None
    assert constant.network.variant.p == 3
    assert all("gem_p" not in epoch for epoch in constant.history)


def test_adam_goes_on_with_its_averages(job, tmp_path):
    config = {"optimizer": "adam", "learning_rate": 1e-4, "epochs": 2, "schedule": "cosine"}
    whole = assert_restored_goes_on(with_config(job, **config), tmp_path)
    (state,) = torch.load(tmp_path / "1" / "optimizer.pt", weights_only=True)
    assert float(state["state"][0]["exp_avg_sq"].abs().max()) > 0
    assert whole.history[-1]["learning_rate"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("baseline", ["soft-triple", "distance-weighted"])
def test_a_rival_goes_on_with_what_its_loss_has_learned(job, tmp_path, baseline):
    labelled = synthetic.class_job(job, baseline)
    whole = assert_restored_goes_on(with_config(labelled, epochs=2, held_out=0), tmp_path)
    assert (tmp_path / "1" / "rival.pt").exists()
    centres = [parameter.detach().clone() for parameter in whole.baseline.parameters()]
    start = list(started(labelled).baseline.parameters())
    assert len(centres) == (1 if baseline == "soft-triple" else 0)
    assert all(not torch.equal(*pair) for pair in zip(centres, start, strict=True))


def test_a_rival_sees_as_many_images_as_tuples_have_and_whole_classes(job, monkeypatch):
    without_training(monkeypatch)
    seen = []

    def spy(model, optimizers, steps, *arguments, **options):
        seen.append(steps)
        return {"loss": 0.5}

    monkeypatch.setattr(fine_tuning, "train_epoch", spy)
    labelled = synthetic.class_job(job, "proxy-nca")
    run(started(with_config(labelled, epochs=2, anchors_per_epoch=8, batch_size=2, held_out=0)))
    assert [steps.batches.shape for steps in seen] == [(4, 6), (4, 6)]  # 24 images an epoch
    assert [steps.first for steps in seen] == [0, 4]
    assert not np.array_equal(seen[0].batches, seen[1].batches)
    for steps in seen:
        classes = (steps.batches // 3).reshape(4, 3, 2)
        assert np.all(classes[..., 0] == classes[..., 1])


def test_the_history_begins_with_the_initial_network_and_has_every_epoch(job):
    tuning, reports = started(job), []
    run(tuning, lambda: reports.append((tuning.epoch, len(tuning.history), tuning.finished)))
    assert reports == [(0, 1, False), (1, 2, False), (2, 3, True)]
    measured = {"view_agreement", "manifold_map", "held_out_loss", "triplet_accuracy", "spread"}
    measured |= {"view_agreement_error", "manifold_map_error"}
    trained = {"loss", "gradient_norm", "learning_rate"} | TIMES
    assert tuning.history[0].keys() == measured
    assert [epoch.keys() for epoch in tuning.history[1:]] == [measured | trained] * 2
    assert [epoch["learning_rate"] for epoch in tuning.history[1:]] == pytest.approx([1e-3, 1e-4])
    assert all(epoch["loss"] > 0 and 0 < epoch["manifold_map"] <= 1 for epoch in tuning.history[1:])
    assert tuning.history[0]["held_out_loss"] != tuning.history[2]["held_out_loss"]


def test_the_initial_network_is_reported_before_it_is_trained(job, monkeypatch):
    without_training(monkeypatch)
    tuning, seen = started(job), []
    initial = weights(tuning.network)
    run(tuning, lambda: seen.append(differ(initial, weights(tuning.network))))
    assert seen == [False, True, True]


@pytest.mark.parametrize(
    ("values", "best"),
    [([0.5, 0.4, 0.7, 0.6], 2), ([0.5, 0.5, 0.4, 0.5], 0), ([0.1, 0.2, 0.3, 0.4], 3)],
)
def test_the_best_network_is_that_of_the_best_epoch(job, monkeypatch, values, best):
    without_training(monkeypatch)
    prescribe(monkeypatch, values)
    tuning, networks = started(with_config(job, epochs=3)), []
    run(tuning, lambda: networks.append(weights(tuning.network)))
    assert len(networks) == 4
    assert tuning.best_epoch == best
    torch.testing.assert_close(weights(tuning.best), networks[best], atol=0, rtol=0)
    torch.testing.assert_close(weights(tuning.network), networks[-1], atol=0, rtol=0)
    assert sum(not differ(networks[best], network) for network in networks) == 1


def test_a_checkpoint_of_an_earlier_version_goes_on_by_the_manifold(job, tmp_path):
    """It does not have what the agreement of its initial network was."""
    tuning = started(with_config(job, epochs=2))
    run(tuning, lambda: tuning.save(tmp_path / str(tuning.epoch)))
    state = json.loads((tmp_path / "1/state.json").read_text())
    assert len(state.pop("initially")) > 2
    (tmp_path / "1/state.json").write_text(json.dumps(state))
    again = started(with_config(job, epochs=2))
    again.restore(tmp_path / "1")
    run(again)
    assert ["view_agreement" in epoch for epoch in again.history] == [True, True, False]
    maps = [epoch["manifold_map"] for epoch in tuning.history]
    assert [epoch["manifold_map"] for epoch in again.history] == maps
    errors = [epoch["manifold_map_error"] for epoch in tuning.history]
    sure = [m if m - 2 * e > maps[0] else 0 for m, e in zip(maps[1:], errors[1:], strict=True)]
    assert again.best_epoch == int(np.argmax([maps[0], *sure]))


def test_a_restored_best_network_outlives_worse_epochs(job, monkeypatch, tmp_path):
    without_training(monkeypatch)
    prescribe(monkeypatch, [0.5, 0.7, 0.6])
    tuning = started(job)
    run(tuning, lambda: tuning.save(tmp_path / str(tuning.epoch)))
    kept = weights(tuning.best)
    again = started(job)
    again.restore(tmp_path / "2")
    assert (again.best_epoch, again.epoch, again.finished) == (1, 2, True)
    torch.testing.assert_close(weights(again.best), kept, atol=0, rtol=0)
    assert differ(weights(again.best), weights(again.network))


@pytest.mark.parametrize(
    ("patience", "values", "epochs"),
    [
        (2, [0.5, 0.4, 0.45, 0.9], 2),
        (2, [0.5, 0.6, 0.4, 0.6, 0.9], 3),
        (1, [0.5, 0.6, 0.7, 0.7, 0.9], 3),
        (3, [0.5, 0.4, 0.4, 0.6, 0.5, 0.5], 5),
        (None, [0.5, 0.4, 0.4, 0.4, 0.4, 0.4], 5),
    ],
)
def test_training_ends_after_so_many_epochs_without_a_better_network(
    job, monkeypatch, patience, values, epochs
):
    without_training(monkeypatch)
    prescribe(monkeypatch, values)
    tuning = started(with_config(job, epochs=5, patience=patience))
    assert run(tuning) == list(range(epochs + 1))
    assert tuning.finished
    assert tuning.epoch == epochs
    assert len(tuning.history) == epochs + 1


@pytest.mark.parametrize("patience", [None, 1])
def test_nothing_is_done_after_the_end(job, monkeypatch, tmp_path, patience):
    without_training(monkeypatch)
    prescribe(monkeypatch, [0.5, 0.4, 0.3])
    tuning = started(with_config(job, patience=patience))
    run(tuning, lambda: tuning.save(tmp_path / str(tuning.epoch)))
    again = started(with_config(job, patience=patience))
    assert not again.finished
    again.restore(tmp_path / str(tuning.epoch))
    assert again.finished
    before = weights(again.network)
    assert run(again) == []
    assert again.history == tuning.history
    assert not differ(before, weights(again.network))


def test_more_epochs_go_on_from_where_fewer_ended(job, monkeypatch, tmp_path):
    """A checkpoint of the last of two epochs is one of the second of three."""
    without_training(monkeypatch)
    tuning = started(job)
    run(tuning, lambda: tuning.save(tmp_path / str(tuning.epoch)))
    longer = started(with_config(job, epochs=3))
    longer.restore(tmp_path / "2")
    assert not longer.finished
    assert run(longer) == [3]


def test_held_out_anchors_are_never_trained_on(job, monkeypatch):
    without_training(monkeypatch)
    trained_on = []

    def spy(model, optimizers, steps, *arguments, **options):
        trained_on.extend(steps.tuples.anchors.tolist())
        return {"loss": 0.5}

    monkeypatch.setattr(fine_tuning, "train_epoch", spy)
    for seed in range(3):
        trained_on.clear()
        tuning = started(dataclasses.replace(with_config(job, epochs=8), seed=seed))
        held_out = tuning.validation.held_out.anchors.tolist()
        run(tuning)
        assert len(held_out) == 2
        assert set(trained_on) == set(range(5)) - set(held_out)
        assert len(trained_on) == 16


def test_negatives_are_the_nearest_in_the_embedding_as_it_is(job, monkeypatch):
    """Which changes from epoch to epoch: so do they."""
    without_training(monkeypatch)
    trained_on = []

    def table(epoch):
        return synthetic.clouds(epoch, len(job.images))

    def spy(model, optimizers, steps, *arguments, **options):
        trained_on.append(steps.tuples)
        return {"loss": 0.5}

    monkeypatch.setattr(fine_tuning, "train_epoch", spy)
    monkeypatch.setattr(
        fine_tuning,
        "embed_ids",
        lambda model, source, ids, *_, **__: table(len(trained_on))[ids],
    )
    run(started(with_config(job, epochs=6, anchors_per_epoch=3, hard_negatives=1)))
    assert len(trained_on) == 6
    chosen = set()
    for epoch, drawn in enumerate(trained_on):
        for anchor, (negative,) in zip(drawn.anchors, drawn.negatives, strict=True):
            pool = job.pools.negatives[anchor].tolist()
            assert [negative] == oracles.hard_negatives(table(epoch)[anchor], table(epoch), pool, 1)
            chosen.add((int(anchor), int(negative)))
    assert len(chosen) > 3


def test_under_labels_negatives_are_the_nearest_of_other_clusters(job, monkeypatch):
    """And nothing is held out or checked, for want of a graph; the last network is kept."""
    without_training(monkeypatch)
    trained_on = []

    def spy(model, optimizers, steps, *arguments, **options):
        trained_on.append(steps.tuples)
        return {"loss": 0.5}

    monkeypatch.setattr(fine_tuning, "train_epoch", spy)
    clusters = np.array([0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 5, 6])
    labelled = synthetic.labelled_job(job, clusters, [(0, 1), (2, 3), (4, 5), (4, 6)])
    config = {"negatives": 3, "hard_negatives": 3, "negative_pool": 9, "anchors_per_epoch": 3}
    tuning = started(with_config(labelled, epochs=4, **config))
    run(tuning)
    rows, pools = np.eye(12, 1280, dtype=np.float32), []
    for drawn in trained_on:
        assert drawn.negatives.shape == (3, 3)
        for anchor, negatives in zip(drawn.anchors, drawn.negatives.tolist(), strict=True):
            chosen = clusters[[anchor, *negatives]].tolist()
            assert len(set(chosen)) == 4
            # All are equally near: the first of each cluster, by id, that the pool has.
            every = oracles.labelled_negatives(anchor, rows, negatives, clusters.tolist(), 3)
            assert negatives == every
        pools.append(str(drawn.negatives))
    assert len(set(pools)) > 1
    assert [set(epoch) & {"manifold_map", "triplet_accuracy"} for epoch in tuning.history] == [
        set()
    ] * 5
    assert all("spread" in epoch for epoch in tuning.history)


def test_the_loss_is_a_mean_of_pairs_where_the_settings_say_so(job, monkeypatch):
    """The loss of the tuples, the rate being 0, is that of the network as it was."""
    drawn = []
    monkeypatch.setattr(fine_tuning, "train_epoch", noting(fine_tuning.train_epoch, drawn))
    labelled = synthetic.labelled_job(job, np.arange(12) // 2, [(0, 1), (2, 3)])
    options = {"negatives": 2, "hard_negatives": 2, "mean_of_pairs": True, "margin": 1.5}
    options |= {"learning_rate": 0.0, "epochs": 1}
    tuning = started(with_config(labelled, **options))
    rows = tuning._embedded(tuning.network, tuning.source, np.arange(12))
    run(tuning)
    (tuples_of_epoch,) = drawn
    columns = (tuples_of_epoch.anchors, tuples_of_epoch.positives, tuples_of_epoch.negatives)
    values = [
        oracles.siamese_loss(rows[query], rows[positive], rows[negatives], 1.5)
        for query, (positive,), negatives in zip(*columns, strict=True)
    ]
    assert tuning.history[1]["loss"] == pytest.approx(np.mean(values), rel=1e-3)


def test_what_is_drawn_depends_on_the_seed_and_the_epoch(job, monkeypatch):
    without_training(monkeypatch)
    drawn, sample_pairs = [], tuples.sample_pairs

    def spy(*arguments, **options):
        pairs = sample_pairs(*arguments, **options)
        drawn.append((pairs.anchors.tolist(), pairs.positives.tolist()))
        return pairs

    monkeypatch.setattr(tuples, "sample_pairs", spy)
    runs = []
    for seed in (3, 3, 4):
        drawn.clear()
        run(started(dataclasses.replace(with_config(job, epochs=6), seed=seed)))
        runs.append(list(drawn))
    assert runs[0] == runs[1] != runs[2]
    assert len({str(epoch) for epoch in runs[0]}) > 3


def test_a_network_that_trains_on_crops_embeds_central_ones(job, monkeypatch):
    """Random crops in training, of one size, new in each epoch; the middle for all else."""
    seen, train_epoch = [], fine_tuning.train_epoch

    def spy(model, optimizers, steps, source, *arguments, **options):
        keys = np.arange(len(steps.images))
        (crops,) = source.groups([np.full(len(keys), 0)], [keys])
        seen.append(crops)
        return train_epoch(model, optimizers, steps, source, *arguments, **options)

    monkeypatch.setattr(fine_tuning, "train_epoch", spy)
    tuning = started(with_config(job, augmentation="crop", crop_size=48, resize_size=52))
    ids = np.array([4, 0, 7])
    middles = [
        center_crop(load_image(job.images[i], longest_side=64, max_pixels=10**6).pixels, 48, 52)
        for i in ids.tolist()
    ]
    wanted = embed(tuning.network, middles, ["mac"], batch_size=1, device=CPU)[:, 0]
    np.testing.assert_allclose(
        tuning._embedded(tuning.network, tuning.source, ids), wanted, atol=1e-5
    )
    run(tuning)
    assert len(seen) == 2
    assert {crop.shape for crops in seen for crop in crops} == {(48, 48, 3)}
    assert len({crop.tobytes() for crops in seen for crop in crops}) == 12
    assert middles[1].tobytes() not in {crop.tobytes() for crops in seen for crop in crops}


def test_crops_are_the_same_again_after_a_restart(job, tmp_path):
    assert_restored_goes_on(with_config(job, augmentation="crop", crop_size=32, epochs=1), tmp_path)


def test_the_labelled_set_is_measured_every_so_many_epochs_and_changes_nothing(job, monkeypatch):
    without_training(monkeypatch)
    query = Query("q", "00.png", None, positives=np.array([4, 5]), junk=np.array([0]))
    images = job.images
    labelled = LabelledSet(database=images, queries=images[:1], ground_truth=[query])
    job = with_config(job, epochs=4)
    plain = started(job)
    run(plain)
    measured = {}
    for every in (0, 1, 2):
        watched = dataclasses.replace(with_config(job, monitor_every=every), labelled=labelled)
        tuning = started(watched)
        run(tuning)
        measured[every] = {e: m["map"] for e, m in enumerate(tuning.history) if "map" in m}
        rest = [{k: v for k, v in epoch.items() if k != "map"} for epoch in tuning.history]
        assert timeless(rest) == timeless(plain.history)
    # The query is like none of the images, so that they are ranked by id.
    expected = oracles.average_precision(list(range(10)), {4, 5}, junk={0})
    assert [list(epochs) for epochs in measured.values()] == [[], [0, 1, 2, 3, 4], [0, 2, 4]]
    assert list(measured[1].values()) == pytest.approx([expected] * 5)


def test_a_history_of_an_earlier_version_has_the_names_of_this_one():
    old = [{"health": 0.5, "ordered": 0.75, "loss": 1.0}, {}]
    assert renamed_history(old) == [
        {"manifold_map": 0.5, "triplet_accuracy": 0.75, "loss": 1.0},
        {},
    ]
