"""Learning in one process: the notebook as it stands, and what its functions refuse."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from mmray import evaluate, fine_tune, mine
from mmray.mining import mine_pools, nearest_neighbors, reciprocal_knn_graph, select_anchors
from mmray.serving import ImageEncoder
from mmray.system.errors import InputError
from tests.made.bad_images import encoded, scene

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebook.ipynb"


def clustered(groups=30, each=6, dims=16, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((groups, dims)).astype(np.float32).repeat(each, axis=0)
    rows = centres + rng.standard_normal(centres.shape).astype(np.float32) / 2
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


FEWER = {"objects=12, photos=10": "objects=6, photos=6", "per_epoch=45": "per_epoch=15"}


@pytest.mark.parametrize("fewer", [FEWER, pytest.param({}, marks=pytest.mark.slow)])
def test_the_notebook_runs_and_its_network_gets_better_by_the_check(capsys, fewer):
    """The cells run one after the other, and load neither Ray nor MLflow."""
    text = NOTEBOOK.read_text()
    for written, instead in fewer.items():
        assert text.count(written) == 1, written
        text = text.replace(written, instead)
    cells = json.loads(text)["cells"]
    names: dict[str, object] = {}
    before = {name for name in ("ray", "mlflow") if name in sys.modules}
    for cell in cells:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), str(NOTEBOOK), "exec"), names)
    assert {name for name in ("ray", "mlflow") if name in sys.modules} == before
    history = names["tuned"].history
    assert len(history) == 3, "of the initial network and of two epochs"
    assert history[2]["manifold_map"] > history[0]["manifold_map"]
    assert f"epoch {names['tuned'].epoch} is kept" in capsys.readouterr().out
    # The network from before is as it was, which is kept where no epoch was surely better.
    assert (names["tuned"].epoch == 0) == (names["after"] == names["before"])
    assert names["photos"][0].name in names["found"], "a photo finds itself by the saved model"
    shown = [cell for cell in cells if cell.get("outputs")]
    assert len(shown) == 6, "what the cells show is kept with them"


def test_pools_are_those_of_the_steps_one_by_one():
    rows = clustered()
    mined = mine(rows, graph_k=6, positive_k=10, negative_k=60, selection="walk", anchors=9)
    found = nearest_neighbors(rows, rows, 6)
    graph = reciprocal_knn_graph(found.ids, found.similarities)
    assert (graph != mined.graph).nnz == 0
    anchors = select_anchors(graph, 9)
    pools = mine_pools(
        rows, graph, anchors, positive_k=10, negative_k=60, max_negatives=mined.config.max_negatives
    )
    assert mined.pools.anchors.tolist() == anchors.tolist()
    for one, other in (
        (mined.pools.positives, pools.positives),
        (mined.pools.negatives, pools.negatives),
    ):
        assert [ids.tolist() for ids in one] == [ids.tolist() for ids in other]
    assert any(map(len, pools.positives))


def test_numbers_of_neighbours_are_chosen_and_a_component_can_be_left():
    rows = clustered()
    mined = mine(rows)
    assert None not in mined.config.sizes
    largest = mine(rows, component="largest", graph_k=4)
    assert 0 < len(largest.items) < len(rows)
    assert set(largest.pools.anchors) <= set(largest.items)
    near = largest.neighbors_of_some(5, 3, seed=0)
    assert set(near.items) <= set(largest.items)
    assert max(map(len, near.neighbors)) <= 3


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"graph_kk": 3}, "no setting graph_kk; did you mean graph_k"),
        ({"alpha": 1.5}, "--alpha 1.5: choose a value from 0 to"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, said):
    with pytest.raises(InputError, match=said):
        mine(clustered(), **changes)


def test_too_little_to_learn_from_is_said(tmp_path):
    with pytest.raises(InputError, match="2 rows; 3 at least"):
        mine(clustered()[:2])
    photos = []
    for seed in range(4):
        photos.append(tmp_path / f"{seed}.png")
        photos[-1].write_bytes(encoded(scene(64 + 8 * seed, 48), "PNG"))
    with pytest.raises(InputError, match=r"labels: 1 for 4 images|labels is missing"):
        evaluate(ImageEncoder, photos, ["a"])
    photos[2].write_bytes(b"no image")
    with pytest.raises(InputError, match=r"2\.png"):
        fine_tune(photos, longest_side=64)
