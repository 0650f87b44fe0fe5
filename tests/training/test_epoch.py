"""Training takes the gradient of the paper's loss over the whole batch, whatever the shapes."""

import dataclasses
import io

import numpy as np
import pytest
import torch
from PIL import Image
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook

from mmray.descriptors.embedding import embed
from mmray.descriptors.weights import build
from mmray.images.collection import ImageFile
from mmray.images.cropping import RandomCrop
from mmray.system.errors import InputError
from mmray.training.epoch import train_epoch
from mmray.training.image_source import ImageSource, embed_ids
from mmray.training.losses import contrastive_loss, triplet_loss
from mmray.training.steps import StepRule, TupleSteps
from mmray.training.tuples import Tuples

pytestmark = pytest.mark.usefixtures("shallow_networks")
CPU = torch.device("cpu")
SHAPES = [(64, 48), (48, 64), (64, 64), (33, 64)]


@pytest.fixture(autouse=True)
def one_thread():
    """Sums in one order: rounding may swap the greatest of nearly equal values, which MAC takes."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def tiny():
    """The first block of the packaged EfficientNet-Lite0: real weights, with BatchNorm."""
    return build("efficientnet_lite0", pooling="mac")


@pytest.fixture
def photos(tmp_path):
    """Twelve files of noise over a gradient, of four shapes."""
    rng, items = np.random.default_rng(0), []
    for index in range(12):
        height, width = SHAPES[index % len(SHAPES)]
        ramp = np.linspace(0, 1, width)[None, :, None] * rng.integers(40, 200, (1, 1, 3))
        pixels = (ramp + rng.integers(0, 50, (height, width, 3))).astype(np.uint8)
        path = tmp_path / f"{index}.png"
        Image.fromarray(pixels).save(path)
        items.append(ImageFile(uri=str(path), name=path.name, size=path.stat().st_size))
    return items


def tuples_of(anchors, positives, negatives, weights=None):
    columns = [np.array(ids, np.int64) for ids in (anchors, positives, negatives)]
    weights = np.ones(len(anchors)) if weights is None else weights
    return Tuples(
        anchors=columns[0],
        positives=columns[1][:, None],
        negatives=columns[2][:, None],
        weights=np.array(weights, np.float32)[:, None],
        related=tuple(np.array([*ids], np.int64) for ids in zip(anchors, positives, strict=True)),
    )


def test_a_batch_of_mixed_shapes_embeds_as_one_image_at_a_time(photos):
    source, model = ImageSource(photos, longest_side=64), tiny()
    (images,) = source.groups([np.arange(12)])
    together = embed(model, images, ["mac", "rmac"], batch_size=3, device=CPU)
    alone = [embed(model, [image], ["mac", "rmac"], batch_size=1, device=CPU) for image in images]
    assert together.shape == (12, 2, model.dim)
    np.testing.assert_allclose(together, np.concatenate(alone), atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(together, axis=2), 1, atol=1e-5)
    assert np.abs(together[0] - together[4]).max() > 1e-3  # the images do differ


def test_embedding_by_id_keeps_the_order_of_the_ids(photos, monkeypatch):
    monkeypatch.setattr("mmray.training.image_source.CHUNK", 3)
    source, model = ImageSource(photos, longest_side=64), tiny()
    ids = np.array([7, 0, 11, 3, 3])
    rows = embed_ids(model, source, ids, batch_size=2, device=CPU)
    (images,) = source.groups([ids])
    wanted = embed(model, images, ["mac"], batch_size=1, device=CPU)
    np.testing.assert_allclose(rows, wanted[:, 0], atol=1e-5)


def test_a_network_that_diverged_is_said_when_it_embeds(photos):
    source, model = ImageSource(photos, longest_side=64), tiny()
    torch.nn.init.constant_(next(model.parameters()), float("nan"))
    message = r"image 7 is not finite \(2 of 2 images\): .*; lower --training\.learning-rate"
    with pytest.raises(InputError, match=message):
        embed_ids(model, source, np.array([7, 0]), batch_size=2, device=CPU)


@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_equals_a_plain_loop_of_one_image_at_a_time(photos, loss, weighted):
    drawn = tuples_of([0, 1, 2, 3, 8], [4, 5, 6, 7, 0], [9, 10, 11, 1, 2], [1, 2, 0.5, 3, 0])
    margin, rate = 1.1, 0.01
    model, plain = tiny(), tiny()
    source = ImageSource(photos, longest_side=64)
    rule = StepRule(loss=loss, margin=margin, weighted=weighted, batch_size=2)
    mean = train_epoch(
        model,
        [torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)],
        TupleSteps(drawn, rule),
        source,
        rule,
        device=CPU,
    )["loss"]
    function = {"contrastive": contrastive_loss, "triplet": triplet_loss}[loss]
    optimizer, total = torch.optim.SGD(plain.parameters(), lr=rate, momentum=0.9), 0.0
    (images,) = source.groups([np.arange(12)])
    one = [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images]
    plain.train()
    for step in ([0, 1], [2, 3], [4]):
        optimizer.zero_grad()
        for index in step:
            ids = (drawn.anchors[index], drawn.positives[index, 0], drawn.negatives[index, 0])
            value = function(*(plain(one[i]) for i in ids), margin=margin)[0]
            value = value * float(drawn.weights[index, 0]) if weighted else value
            (value / len(step)).backward()
            total += value.item()
        optimizer.step()
    assert mean == pytest.approx(total / 5, rel=1e-4)
    assert total > 0.1
    start = tiny().state_dict()
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(tensor, plain.state_dict()[name], atol=2e-5, rtol=1e-3)
        if "running" in name:
            torch.testing.assert_close(tensor, start[name], msg=f"{name} is not frozen")
    moved = [float((after - start[name]).abs().max()) for name, after in model.state_dict().items()]
    assert max(moved) > 1e-3


def test_a_loss_that_is_not_finite_ends_training_with_the_remedy(photos):
    model = tiny()
    rule = StepRule(loss="triplet", margin=None, weighted=True, batch_size=1)
    with pytest.raises(InputError, match=r"loss became nan.*--training.learning-rate"):
        train_epoch(
            model,
            [torch.optim.SGD(model.parameters(), lr=0.1)],
            TupleSteps(tuples_of([0], [1], [2], [np.nan]), rule),
            ImageSource(photos, longest_side=64),
            rule,
            device=CPU,
        )


def test_an_image_that_vanished_is_named(photos, tmp_path):
    (tmp_path / "3.png").unlink()
    source = ImageSource(photos, longest_side=64)
    with pytest.raises(InputError, match=r"3\.png: FileNotFoundError.*restore it"):
        list(source.groups([np.array([2]), np.array([3])]))


def test_a_query_is_cut_to_its_box_before_it_is_reduced(tmp_path):
    pixels = np.zeros((100, 200, 3), np.uint8)
    pixels[:, 100:] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    path = tmp_path / "q.png"
    path.write_bytes(buffer.getvalue())
    item = ImageFile(uri=str(path), name="q.png", size=1, box=(100.0, 0.0, 180.0, 60.0))
    ((image,),) = ImageSource([item], longest_side=100).groups([np.array([0])])
    assert image.shape == (30, 40, 3)
    assert image.min() == 255


def one_image_each(source, count=12):
    """The images as the batches (1, 3, h, w) of a plain loop."""
    (images,) = source.groups([np.arange(count)])
    return [torch.from_numpy(image).permute(2, 0, 1)[None] for image in images]


def trained(model, drawn, source, *, rate=0.01, learning_rate=None, **rule):
    """The figures of an epoch of plain SGD, in steps of two tuples."""
    of_steps = StepRule(
        **{"loss": "contrastive", "margin": 1.1, "weighted": True, "batch_size": 2} | rule
    )
    return train_epoch(
        model,
        [torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9)],
        TupleSteps(drawn, of_steps),
        source,
        of_steps,
        device=CPU,
        learning_rate=learning_rate,
    )


def plain_epoch(model, one, drawn, loss, *, rates, clip_norm=None):
    """The same by one image at a time and one pair at a time, the norm summed by hand."""
    function = {"contrastive": contrastive_loss, "triplet": triplet_loss}[loss]
    optimizer, total, norms = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9), 0.0, []
    model.train()
    for start, rate in zip(range(0, len(drawn.anchors), 2), rates, strict=True):
        optimizer.zero_grad()
        step = range(start, min(start + 2, len(drawn.anchors)))
        for index in step:
            pairs = [
                (positive, negative, float(weight))
                for positive, weight in zip(
                    drawn.positives[index], drawn.weights[index], strict=True
                )
                for negative in drawn.negatives[index]
            ]
            for positive, negative, weight in pairs:
                ids = (drawn.anchors[index], positive, negative)
                value = function(*(model(one[i]) for i in ids), margin=1.1)[0] * weight
                (value / len(pairs) / len(step)).backward()
                total += value.item() / len(pairs)
        squares = [float(p.grad.double().square().sum()) for p in model.parameters()]
        norms.append(sum(squares) ** 0.5)
        factor = 1.0 if clip_norm is None else min(1.0, clip_norm / norms[-1])
        for parameter in model.parameters():
            parameter.grad *= factor
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
    return total / len(drawn.anchors), norms


def moved(model):
    """The change of all weights since the start, as one vector."""
    start = tiny().state_dict()
    return torch.cat([(v - start[k]).double().flatten() for k, v in model.state_dict().items()])


SINGLE = tuples_of([0, 1, 8], [4, 5, 3], [9, 10, 1], [1, 0.5, 2])
SEVERAL = Tuples(
    anchors=np.array([0, 1, 8]),
    positives=np.array([[4, 5], [5, 6], [3, 10]]),
    negatives=np.array([[9, 10, 9], [2, 11, 0], [1, 1, 4]]),
    weights=np.array([[1, 2], [0.5, 3], [0, 2]], np.float32),
    related=(np.array([0, 4, 5]), np.array([1, 5, 6, 9]), np.array([3, 8, 10])),
)


@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
def test_several_positives_and_negatives_equal_a_plain_loop_over_the_pairs(photos, loss):
    source, model, plain = ImageSource(photos, longest_side=64), tiny(), tiny()
    figures = trained(model, SEVERAL, source, loss=loss)
    wanted, norms = plain_epoch(plain, one_image_each(source), SEVERAL, loss, rates=[0.01, 0.01])
    assert figures["loss"] == pytest.approx(wanted, rel=1e-4)
    assert figures["gradient_norm"] == pytest.approx(np.mean(norms), rel=1e-3)
    assert norms[0] != pytest.approx(norms[1], rel=5e-3)
    torch.testing.assert_close(moved(model), moved(plain), atol=2e-5, rtol=1e-3)
    assert moved(plain).abs().max() > 1e-3


def test_infonce_compares_with_all_images_of_a_step_that_are_not_related(photos):
    source, model, plain = ImageSource(photos, longest_side=64), tiny(), tiny()
    figures = trained(model, SEVERAL, source, loss="infonce", temperature=0.1)
    one, total = one_image_each(source), 0.0
    optimizer = torch.optim.SGD(plain.parameters(), lr=0.01, momentum=0.9)
    plain.train()
    for step in ([0, 1], [2]):
        optimizer.zero_grad()
        members = [
            image
            for i in step
            for image in (SEVERAL.anchors[i], *SEVERAL.positives[i], *SEVERAL.negatives[i])
        ]
        loss = torch.zeros(())
        for i in step:
            anchor = plain(one[SEVERAL.anchors[i]])[0]
            negatives = [image for image in members if image not in SEVERAL.related[i]]
            far = sum(torch.exp(anchor @ plain(one[image])[0] / 0.1) for image in negatives)
            pairs = list(zip(SEVERAL.positives[i], SEVERAL.weights[i], strict=True))
            for positive, weight in pairs:
                near = torch.exp(anchor @ plain(one[positive])[0] / 0.1)
                loss = loss - torch.log(near / (near + far)) * float(weight) / len(pairs)
        (loss / len(step)).backward()
        total += loss.item()
        optimizer.step()
    assert figures["loss"] == pytest.approx(total / 3, rel=1e-4)
    torch.testing.assert_close(moved(model), moved(plain), atol=2e-5, rtol=1e-3)
    assert moved(plain).abs().max() > 1e-3


@pytest.mark.parametrize("micro_batch_size", [1, 2, 3])
def test_accumulated_gradients_move_the_weights_as_those_of_whole_steps_do(
    photos, micro_batch_size
):
    """In steps of three tuples and of one; fewer images are in a pass."""
    drawn = Tuples(
        anchors=np.tile(SEVERAL.anchors, 2)[:4],
        positives=np.tile(SEVERAL.positives, (2, 1))[:4],
        negatives=np.tile(SEVERAL.negatives, (2, 1))[1:5],
        weights=np.tile(SEVERAL.weights, (2, 1))[:4],
        related=(SEVERAL.related * 2)[:4],
    )
    source, whole, parts, seen = ImageSource(photos, longest_side=64), tiny(), tiny(), []
    parts.register_forward_pre_hook(lambda _, given: seen.append(sum(map(len, given[0]))))
    expected = trained(whole, drawn, source, batch_size=3)
    figures = trained(parts, drawn, source, batch_size=3, micro_batch_size=micro_batch_size)
    passes = {1: [1, 1, 1, 1], 2: [2, 1, 1], 3: [3, 1]}[micro_batch_size]
    assert seen == [6 * tuples for tuples in passes]  # an anchor, two positives, three negatives
    for name in ("loss", "gradient_norm"):
        assert figures[name] == pytest.approx(expected[name], rel=1e-4)
    torch.testing.assert_close(moved(parts), moved(whole), atol=2e-5, rtol=1e-3)
    assert moved(whole).abs().max() > 1e-3


@pytest.mark.parametrize("size", [1, 2, 3, 6])
@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 4])
def test_the_shares_of_all_passes_of_all_ranks_are_the_loss(monkeypatch, size, micro_batch_size):
    """Seven tuples in steps of five and two: some ranks have fewer passes to make, or none."""
    t, rng = 7, np.random.default_rng(0)
    ids = rng.integers(0, 12, (t, 3))
    drawn = tuples_of(ids[:, 0], ids[:, 1], ids[:, 2], rng.uniform(0.5, 2, t))
    rows = torch.nn.functional.normalize(torch.from_numpy(rng.normal(size=(3 * t, 8))))

    def steps_of(rank, ranks, limit):
        monkeypatch.setattr("mmray.training.steps.rank_and_size", lambda: (rank, ranks))
        rule = StepRule(loss="triplet", margin=1.0, weighted=True, batch_size=5)
        return TupleSteps(drawn, dataclasses.replace(rule, micro_batch_size=limit))

    def shares(steps, step):
        passes = steps.micro_batches(step)
        assert all(1 <= len(places) // 3 <= (micro_batch_size or 5) for places in passes)
        return [float(steps.loss(step, i, rows[places])) for i, places in enumerate(passes)]

    one, ranks = steps_of(0, 1, None), [steps_of(i, size, micro_batch_size) for i in range(size)]
    for step in range(2):
        (places,) = one.micro_batches(step)
        of_ranks = [shares(each, step) for each in ranks]
        assert len({*map(len, of_ranks)}) == 1
        assert np.sum(of_ranks) == pytest.approx(float(one.loss(step, 0, rows[places])), rel=1e-9)
        assert np.sum(of_ranks) > 0.1


def test_ranks_average_the_gradients_once_a_step_however_many_passes_it_has(photos, tmp_path):
    source, averaged = ImageSource(photos, longest_side=64), []

    def average(state, bucket):
        averaged.append(bucket.index())
        return allreduce_hook(None, bucket)

    store = f"file://{tmp_path / 'store'}"
    torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    try:
        counts = []
        for micro_batch_size in (None, 1):
            model = torch.nn.parallel.DistributedDataParallel(tiny())
            model.register_comm_hook(None, average)
            rule = {"batch_size": 3, "micro_batch_size": micro_batch_size}
            trained(model, SINGLE, source, **rule)
            counts.append(len(averaged))
            averaged.clear()
    finally:
        torch.distributed.destroy_process_group()
    assert counts[0] == counts[1] > 0


def test_infonce_in_micro_batches_is_refused():
    rule = StepRule(loss="infonce", margin=None, weighted=False, batch_size=2, micro_batch_size=1)
    with pytest.raises(ValueError, match="InfoNCE compares all images of a step"):
        TupleSteps(SINGLE, rule)


def test_a_gradient_is_scaled_down_to_the_limit_and_its_norm_is_told_unscaled(photos):
    source = ImageSource(photos, longest_side=64)
    one, free, plain, model = one_image_each(source), tiny(), tiny(), tiny()
    _, norms = plain_epoch(free, one, SINGLE, "contrastive", rates=[0.01, 0.01])
    limit = min(norms) / 2
    _, norms = plain_epoch(plain, one, SINGLE, "contrastive", rates=[0.01] * 2, clip_norm=limit)
    figures = trained(model, SINGLE, source, clip_norm=limit)
    assert figures["gradient_norm"] == pytest.approx(np.mean(norms), rel=1e-3)
    assert figures["gradient_norm"] > 1.9 * limit
    torch.testing.assert_close(moved(model), moved(plain), atol=2e-5, rtol=1e-3)
    assert moved(model).norm() < 0.6 * moved(free).norm()
    high = tiny()
    trained(high, SINGLE, source, clip_norm=1e6)
    torch.testing.assert_close(moved(high), moved(free), atol=2e-5, rtol=1e-3)


def test_every_step_takes_the_learning_rate_of_the_share_that_is_done_after_it(photos):
    source, model, plain = ImageSource(photos, longest_side=64), tiny(), tiny()
    shares, rates = [], iter([0.02, 0.001])

    def rate(share):
        shares.append(share)
        return next(rates)

    trained(model, SINGLE, source, rate=99.0, learning_rate=rate)
    assert shares == pytest.approx([2 / 3, 1])
    plain_epoch(plain, one_image_each(source), SINGLE, "contrastive", rates=[0.02, 0.001])
    torch.testing.assert_close(moved(model), moved(plain), atol=2e-5, rtol=1e-3)


def test_half_precision_moves_the_weights_nearly_as_single_precision_does(photos):
    """In one step: the second would start from other weights."""
    source, single, half = ImageSource(photos, longest_side=64), tiny(), tiny()
    one = trained(single, SEVERAL, source, batch_size=3)
    other = trained(half, SEVERAL, source, batch_size=3, precision="bfloat16")
    assert {p.dtype for p in half.parameters()} == {torch.float32}
    assert other["loss"] == pytest.approx(one["loss"], rel=0.05)
    assert other["loss"] != one["loss"]
    cosine = torch.nn.functional.cosine_similarity(moved(half), moved(single), dim=0)
    assert 0.9 < cosine < 1 - 1e-5
    assert moved(half).norm() == pytest.approx(float(moved(single).norm()), rel=0.2)


def test_an_image_is_seen_by_its_place_in_the_epoch_whatever_the_threads(photos, monkeypatch):
    """The crop of an image depends on its key alone, so that the weights do not on the threads."""
    crop, moves, keys = RandomCrop(size=48), [], []

    def view(pixels, key):
        keys.append(key)
        return crop(pixels, np.random.default_rng([7, key]))

    for threads in (1, 2, 5):
        monkeypatch.setattr("mmray.training.image_source.THREADS", threads)
        model = tiny()
        trained(model, SEVERAL, ImageSource(photos, longest_side=64).seen_as(view))
        assert sorted(keys) == list(range(SEVERAL.anchors.size * 6))
        keys.clear()
        moves.append(moved(model))
    whole = tiny()
    trained(whole, SEVERAL, ImageSource(photos, longest_side=64))
    assert (moves[0] - moved(whole)).abs().max() > 1e-4
    for other in moves[1:]:
        torch.testing.assert_close(moves[0], other, atol=0, rtol=0)


def test_views_are_given_the_key_of_each_image(photos):
    """Anchor, positives, negatives, tuple by tuple: an image that comes twice has two views."""
    source = ImageSource(photos, longest_side=64)
    marked = source.seen_as(lambda pixels, key: np.full((1, 1, 3), key, np.uint8))
    groups = [np.array([3, 3]), np.array([0]), np.empty(0, np.int64)]
    keyed = marked.groups(groups, [np.array([5, 9]), np.array([2]), np.empty(0, np.int64)])
    assert [[int(image[0, 0, 0]) for image in group] for group in keyed] == [[5, 9], [2], []]
    (plain,) = source.groups([np.array([3])])  # the first source is as it was
    assert plain[0].shape[:2] == SHAPES[3]
