"""Training takes the gradient of the paper's loss over the whole batch, whatever the shapes."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from mmray.collection import ImageFile
from mmray.errors import InputError
from mmray.losses import contrastive_loss, triplet_loss
from mmray.models import build
from mmray.training import ImageSource, StepRule, embed, embed_ids, train_epoch
from mmray.tuples import Tuples

CPU = torch.device("cpu")
SHAPES = [(64, 48), (48, 64), (64, 64), (33, 64)]


def tiny():
    """The packaged EfficientNet-Lite0: real weights, with BatchNorm."""
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
    monkeypatch.setattr("mmray.training.CHUNK", 3)
    source, model = ImageSource(photos, longest_side=64), tiny()
    ids = np.array([7, 0, 11, 3, 3])
    rows = embed_ids(model, source, ids, "mac", batch_size=2, device=CPU)
    (images,) = source.groups([ids])
    wanted = embed(model, images, ["mac"], batch_size=1, device=CPU)[:, 0]
    np.testing.assert_allclose(rows, wanted, atol=1e-5)


@pytest.mark.parametrize("loss", ["contrastive", "triplet"])
@pytest.mark.parametrize("weighted", [False, True])
def test_an_epoch_equals_a_plain_loop_of_one_image_at_a_time(photos, loss, weighted):
    drawn = tuples_of([0, 1, 2, 3, 8], [4, 5, 6, 7, 0], [9, 10, 11, 1, 2], [1, 2, 0.5, 3, 0])
    margin, rate = 1.1, 0.01
    model, plain = tiny(), tiny()
    source = ImageSource(photos, longest_side=64)
    mean = train_epoch(
        model,
        torch.optim.SGD(model.parameters(), lr=rate, momentum=0.9),
        drawn,
        source,
        StepRule(loss=loss, margin=margin, weighted=weighted, batch_size=2),
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
    with pytest.raises(InputError, match=r"loss became nan.*--training.learning-rate"):
        train_epoch(
            model,
            torch.optim.SGD(model.parameters(), lr=0.1),
            tuples_of([0], [1], [2], [np.nan]),
            ImageSource(photos, longest_side=64),
            StepRule(loss="triplet", margin=None, weighted=True, batch_size=1),
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
