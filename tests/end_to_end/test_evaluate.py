"""`jobs/evaluate.py` as a user runs it, on miniatures in the official layouts."""

import json
import pickle

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mmray.config.tools import EvaluateJobConfig
from mmray.descriptors.embedding import embed
from mmray.descriptors.weights import build, save
from mmray.descriptors.whitening import lda_whitening, pca_whitening, write_whitening
from mmray.evaluation.clustering import clustering_nmi
from mmray.evaluation.expansion import expand
from mmray.evaluation.ranking import Query, mean_average_precision, rank
from mmray.evaluation.recall import recall_at_k
from mmray.images.decoding import decode
from mmray.pipeline.recipes.evaluation import read_candidate
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.end_to_end.small_job import ONE, cells, counted, run_here
from tests.made import synthetic
from tests.made.published import lw, save_cirtorch

BOX = (4, 8, 40, 44)
POSITIVES, JUNK = ([1, 5], [2, 3, 7]), ([9], [])  # of the queries 00 and 04
HARD = ([5], [7])
DIMS = ("--dims", "1281")


def evaluated(*arguments):
    return run_here("evaluate", *arguments, "--longest-side", "64", *ONE)


def rows(done):
    return cells(done.succeeded.stdout)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Oxford5k, its revisited ground truth and distractors; photos of two classes."""
    root = tmp_path_factory.mktemp("data")
    for folder, count in (("oxford5k/jpg", 12), ("oxc1_100k/part", 20), ("own/a", 4), ("own/b", 3)):
        (root / folder).mkdir(parents=True)
        synthetic.save_noise(root / folder, count, [(48, 64), (64, 48)])
    (root / "oxc1_100k" / "part" / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 cut off")
    texts = root / "oxford5k" / "gt"
    texts.mkdir()
    for name, image, positives, junk in zip(
        ("x_1", "x_2"), ("00", "04"), POSITIVES, JUNK, strict=True
    ):
        lines = {"query": [f"oxc1_{image} {' '.join(map(str, BOX))}"], "junk": junk, "ok": []}
        lines["good"] = positives
        for kind, content in lines.items():
            named = [f"{each:02}" if isinstance(each, int) else each for each in content]
            (texts / f"{name}_{kind}.txt").write_text("\n".join(named))
    names = [f"{i:02}" for i in range(12)]
    truths = [
        {"bbx": BOX, "easy": sorted(set(p) - set(h)), "hard": h, "junk": j}
        for p, h, j in zip(POSITIVES, HARD, JUNK, strict=True)
    ]
    truth = {"imlist": names, "qimlist": ["00", "04"], "gnd": truths}
    (root / "roxford5k").mkdir()
    (root / "roxford5k" / "gnd_roxford5k.pkl").write_bytes(pickle.dumps(truth))
    return root


def described(network, files, box=None):
    """(m, d) MAC, one image at a time."""
    images = [decode(f.read_bytes(), longest_side=64, box=box).pixels for f in files]
    device = torch.device("cpu")
    return embed(network, images, ["mac"], batch_size=1, device=device)[:, 0]


def truth(positives, junk):
    found = zip(positives, junk, strict=True)
    return [Query("", "", None, np.array(p), np.array(j, np.int64)) for p, j in found]


def metrics(storage):
    """Figures by (benchmark, measure, descriptor, whitening, search)."""
    found = {}
    for file in storage.glob("evaluate-*/metrics.json"):
        for score in json.loads(file.read_text()):
            key = ("benchmark", "measure", "descriptor", "whitening", "search")
            found[tuple(score[name] for name in key)] = score["value"]
    return found


def test_benchmarks_are_measured_by_their_rules_and_share_their_distractors(
    data, ray_cluster, tmp_path
):
    flags = ("--model", "net=efficientnet_lite0", "--storage", tmp_path, "--search", "plain", "aqe")
    command = (*flags, "--benchmark", "oxford5k", "oxford105k", "roxford5k", "--data", data)
    done = evaluated(*command)
    head, *body = rows(done)
    revisited = [f"roxford5k {m} {p}" for m in ("mAP", "mP@10") for p in ("Easy", "Medium", "Hard")]
    titles = ["descriptor", "network", "whitening", "search"]
    assert head == [*titles, "oxford5k", "oxford105k", *revisited]
    kinds = [["MAC", "net", "none", "plain"], ["MAC", "net", "none", "AQE"]]
    assert [row[:4] for row in body] == [*kinds, *(["R-MAC", *kind[1:]] for kind in kinds)]
    assert "12 images, 20 distractors; not the published numbers" in done.stderr
    assert done.stdout.endswith("|\n\nSettings (the paper's): --longest-side 64 (1024).\n")

    network = build("efficientnet_lite0", pooling="mac")
    jpgs = sorted((data / "oxford5k" / "jpg").iterdir())
    queries = described(network, [jpgs[0], jpgs[4]], BOX)
    database = described(network, jpgs)
    others = described(network, sorted((data / "oxc1_100k" / "part").glob("*.png")))
    both = np.concatenate([database, others])
    found, gold = metrics(tmp_path), truth(POSITIVES, JUNK)

    def wanted(images, sought=queries, gold=gold):
        return pytest.approx(mean_average_precision(rank(images, sought), gold)[0], abs=1e-6)

    assert found["oxford5k", "mAP", "mac", "none", "plain"] == wanted(database)
    assert found["oxford105k", "mAP", "mac", "none", "plain"] == wanted(both)
    expanded = expand(both, queries, np.array([-1, -1]), items=10, power=0)
    assert found["oxford105k", "mAP", "mac", "none", "aqe"] == wanted(both, expanded)
    hard = truth(HARD, [[*JUNK[0], 1], [*JUNK[1], 2, 3]])
    assert found["roxford5k", "mAP Hard", "mac", "none", "plain"] == wanted(database, gold=hard)
    assert found["roxford5k", "mAP Medium", "mac", "none", "plain"] == wanted(database)
    assert len({round(value, 6) for value in found.values()}) > 6  # they are not all the same

    counts = [len(pq.read_table(file)) for file in tmp_path.glob("extract-*/images.parquet")]
    assert counts.count(20) == 1
    again = evaluated(*command)
    assert rows(again) == [head, *body]
    # Three times the images, once the distractors, three times the figures.
    assert again.stderr.count("done before") == 3 + 1 + 3 == counted(again.stderr)
    assert counted(done.stderr) == 7

    # A page shows both queries; with a single network there is no change to show.
    (page,) = (tmp_path / "reports").glob("*.html")
    text = page.read_text()
    assert "Measured on oxford5k, oxford105k and roxford5k." in text
    assert all(f">{cell}<" in text for row in body for cell in row)
    assert ">Hardest</h3>" in text
    assert text.count("data:image/jpeg") == 2 * (1 + 10)
    assert "Points are those" not in text


def test_a_model_of_a_run_is_measured_with_its_whitenings_on_classes(data, ray_cluster, tmp_path):
    network = build("efficientnet_lite0", pooling="mac")
    files = sorted((data / "own").rglob("*.png"))
    features = described(network, files)
    lda = lda_whitening(features, np.array([0, 1, 4]), np.array([2, 3, 5]))
    folder = Folder(str(tmp_path / "model"))
    save(network, folder)
    write_whitening(folder, "whitening.npz", lda)
    done = evaluated(
        *("--model", tmp_path / "model", "--images", data / "own", "--storage", tmp_path),
        *("--poolings", "mac", "--pca-images", data / "oxford5k" / "jpg", "--dims", 8),
    )
    head, *body = rows(done)
    assert head[:3] == ["descriptor", "network", "whitening"]
    assert head[3:] == ["mAP", "R@1", "R@2", "R@4", "R@8", "NMI", "NMI sd"]
    assert [row[2] for row in body] == ["none", "PCA", "LDA"]

    labels = np.array([file.parent.name for file in files])
    pca = pca_whitening(described(network, sorted((data / "oxford5k" / "jpg").iterdir())))
    variants = {"none": features, "PCA": pca.apply(features, 8), "LDA": lda.apply(features, 8)}
    found = metrics(tmp_path)
    for name, described_rows in variants.items():
        for k, value in recall_at_k(described_rows, labels).items():
            assert found["own", f"R@{k}", "mac", name, "plain"] == pytest.approx(value)
        clustering = clustering_nmi(described_rows, labels)
        assert found["own", "NMI", "mac", name, "plain"] == pytest.approx(clustering.mean)
        assert found["own", "NMI sd", "mac", name, "plain"] == pytest.approx(clustering.spread)


def test_a_published_network_is_measured_with_the_whitening_in_its_file(
    data, ray_cluster, tmp_path
):
    describe = save_cirtorch(tmp_path / "w.pth", "vgg16", whitening=False, learned=True)
    rival = ("--model", f"rival={tmp_path / 'w.pth'}", "--images", data / "own")
    done = evaluated(*rival, "--storage", tmp_path / "runs", "--poolings", "gem")
    assert [row[:3] for row in rows(done)[1:]] == [["GeM", "rival", w] for w in ("none", "own")]
    files = sorted((data / "own").rglob("*.png"))
    features = np.array([describe(file.read_bytes()) for file in files])
    learned = lw(512, 2)
    whitened = (features - learned["m"][:, 0]) @ learned["P"].T
    labels, found = np.array([file.parent.name for file in files]), metrics(tmp_path / "runs")
    for name, of_photos in (("none", features), ("own", whitened)):
        norms = np.linalg.norm(of_photos, axis=1, keepdims=True)
        for k, value in recall_at_k((of_photos / norms).astype("f4"), labels).items():
            assert found["own", f"R@{k}", "gem", name, "plain"] == pytest.approx(value)


@pytest.mark.parametrize(
    ("scales", "poolings", "whitened", "said"),
    [
        ((1.0,), ("gem",), [("own", "gem", 2)], False),
        ((1.0, 0.7), ("embedding",), [("own", "embedding", 3)], False),
        ((1.0,), ("rmac", "mac"), [], True),
    ],
)
def test_the_whitening_is_that_of_the_scales_and_the_descriptor(
    tmp_path, capsys, scales, poolings, whitened, said
):
    save_cirtorch(tmp_path / "w.pth", "vgg16", whitening=False, learned=True)
    config = EvaluateJobConfig(scales=scales, poolings=poolings)
    storage = Folder(str(tmp_path / "runs"))
    found = read_candidate(f"rival={tmp_path / 'w.pth'}", config, storage=storage)
    assert list(found.whitenings) == [(name, pooling) for name, pooling, _ in whitened]
    for name, pooling, seed in whitened:
        mean = found.whitenings[name, pooling].mean
        np.testing.assert_allclose(mean, lw(512, seed)["m"][:, 0], rtol=1e-6)
    hint = "models: rival is not measured as published: give --poolings embedding"
    assert (hint in capsys.readouterr().err) == said
    with pytest.raises(InputError, match=r"w\.pth is a vgg16 with gem, not a resnet50 with"):
        read_candidate(f"resnet50:{tmp_path / 'w.pth'}", config, storage=storage)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--images", "own"), "--model is missing: name a folder model/ of a run, or a network"),
        (("--model", "vgg61", "--images", "own"), "--model vgg61: no folder that a run left"),
        (("--model", "x=efficientnet_lite0", "x=vgg16"), "name a labelled set"),
        (("--model", "vgg16", "--benchmark", "instre"), "--benchmark needs --data"),
        (("--model", "efficientnet_lite0", "--benchmark", "holidays", "--data", "own"), "Holidays"),
        (("--model", "efficientnet_lite0", "--images", "nowhere"), "nowhere"),
        (
            ("--model", "efficientnet_lite0", *["--images", "own", "--pca-images", "own"], *DIMS),
            "--dims 1281: efficientnet_lite0 has 1280 dimensions; choose as many or fewer",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(data, tmp_path, arguments, message):
    arguments = [str(data / each) if each == "own" else each for each in arguments]
    done = run_here("evaluate", *arguments, "--storage", tmp_path)
    assert message in done.error
    assert done.stderr == f"{done.error}\n"
