"""Fine-grained learning as a user runs it: classes in, Recall@k and NMI of other classes out."""

import re
import shlex
import shutil
import signal
import subprocess
import time

import mlflow
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from mmray.descriptors.embedding import embed
from mmray.descriptors.settings import Preprocessing
from mmray.images.decoding import decode
from mmray.images.demo.demo_set import render_collection
from mmray.mining.files import neighbors_in
from mmray.mining.knn.exact import nearest_neighbors
from mmray.serving.encoder import ImageEncoder
from mmray.training.checkpoints import last_measured
from tests.end_to_end.small_job import ONE, command, counted, run_apart, run_here, table, the_run

SMALL = shlex.split(
    """
    --demo.objects 4 --demo.photos 8 --demo.longest-side 96
    --extraction.longest-side 96 --extraction.pca 16 --extraction.shard-size 8 --dim 8
    --mining.graph-k 6 --mining.positive-k 6 --mining.negative-k 12 --mining.anchor-block 8
    --training.longest-side 96 --training.crop-size 64 --training.resize-size 72
    --training.epochs 1 --training.anchors-per-epoch 16
    """
)
FIGURES = ["mAP", "R@1", "R@2", "R@4", "R@8", "NMI", "NMI sd"]


@pytest.fixture(scope="module")
def birds(tmp_path_factory):
    """Four classes, their images in CUB-200-2011's layout; the folders' names are their classes."""
    folder, files = tmp_path_factory.mktemp("birds"), {}
    render_collection(
        files.__setitem__, objects=4, photos=8, distractors=0, longest_side=96, seed=0
    )
    rows = files["train_labels.csv"].decode().splitlines()[1:]
    label_of = dict(row.split(",") for row in rows)
    classes = sorted(set(label_of.values()))
    images = [(f"{label}/{name}.jpg", label) for name, label in sorted(label_of.items())]
    for path, _ in images:
        target = folder / "images" / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(files[f"train/{target.name}"])

    def write(name, lines):
        (folder / name).write_text("".join(f"{i} {line}\n" for i, line in enumerate(lines, 1)))

    write("images.txt", [path for path, _ in images])
    write("image_class_labels.txt", [classes.index(label) + 1 for _, label in images])
    write("classes.txt", classes)
    return folder


@pytest.fixture(scope="module")
def demo(tmp_path_factory, ray_cluster):
    folder = tmp_path_factory.mktemp("demo")
    return folder, run_here("finegrained", "--storage", folder, *SMALL, *ONE)


def test_without_arguments_rendered_objects_are_told_apart(demo):
    folder, done = demo
    assert done.returncode == 0, done.stdout + done.stderr
    head, _, *rows = table(done.stdout)
    assert [cell.strip() for cell in head.split("|")[4:-1]] == FIGURES
    assert [row.split("|")[2].strip() for row in rows] == ["initial", "fine-tuned"]
    assert all(row.split("|")[1].strip() == "embedding" for row in rows)
    assert "% of the positives show the anchor's label" in done.stderr
    (model,) = folder.glob("model-*/model")
    encoder, photos = ImageEncoder.load(model), sorted(folder.glob("demo-*/test/jpg/*"))
    assert encoder.preprocessing == Preprocessing(longest_side=96, crop=64, resize_size=72)
    rows = encoder.encode(photos[:2])
    stages = [
        path for path in folder.glob("extract-*") if len(np.load(path / "features.npy")[0]) == 8
    ]
    measured = [np.load(path / "features.npy")[:2] for path in stages]
    assert min(np.abs(rows - each).max() for each in measured) < 1e-5
    client, logged = the_run(f"sqlite:///{folder / 'mlflow.db'}")
    assert logged.data.params["dim"] == "8"
    version = client.get_model_version_by_alias("mmray", "newest")
    assert version.run_id == logged.info.run_id
    artifacts = {file.path for file in client.list_artifacts(logged.info.run_id)}
    assert artifacts >= {"graph", "report"}


def test_the_same_command_reads_what_is_done(demo):
    folder, done = demo
    again = run_here("finegrained", "--storage", folder, *SMALL).succeeded
    assert table(again.stdout) == table(done.stdout)
    assert "done before (train-" in again.stderr
    assert counted(again.stderr) == counted(done.stderr)
    stages = [line for line in again.stderr.splitlines() if line.startswith("stage ")]
    assert stages
    assert all(": done before (" in line for line in stages)


@pytest.mark.parametrize(
    "layouts", [[""], pytest.param(["", "images"], marks=pytest.mark.slow)], ids=len
)
def test_half_of_the_classes_train_and_the_others_test(birds, tmp_path, ray_cluster, layouts):
    """In CUB's layout, or a folder per class: the same images, the same pools, by an oracle."""
    said = []
    for place, layout in enumerate(layouts):
        storage = tmp_path / str(place)
        few = ("--mining.graph-k", "4", "--mining.positive-k", "4", "--oracle", "filter-positives")
        stages = ("--stages", "extract,graph,mine", "--storage", storage, *ONE)
        done = run_here("finegrained", *SMALL, "--images", birds / layout, *few, *stages).succeeded
        assert not table(done.stdout)
        assert "classes: 2 train, without labels, on 16 images; 2 others test, on 16" in done.stderr
        said.append([line for line in done.stderr.splitlines() if line.startswith("pools: ")][1:])
        assert "% of the positives show the anchor's label" in said[-1][0]
        assert "100.0% of the positives show" in said[-1][-1], "without the false ones"
        (page,) = (storage / "reports").glob("*-to-mine.html")
        assert page.read_text().count("<svg") == 3, "the graph that was mined from"
    assert said == [said[0]] * len(layouts)


@pytest.mark.slow
def test_a_rival_learns_from_labels_and_says_so(birds, tmp_path, ray_cluster):
    options = ("--images", birds, "--baseline", "proxy-nca", "--mining.graph-k", 4)
    few = ("--mining.positive-k", 4, "--storage", tmp_path)
    done = run_here("finegrained", *SMALL, *options, *few).succeeded
    label = "proxy NCA (uses labels)"
    assert [row.split("|")[2].strip() for row in table(done.stdout)[2:]] == ["initial", label]
    assert f"classes: {label}: 2 classes of 16 images" in done.stderr
    stages = {path.name.rpartition("-")[0] for path in tmp_path.glob("*-*")}
    assert not stages & {"knn", "graph", "mine", "check"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--images {loose}", r"are in no class: .* name labelled images with --test\.images"),
        ("--images {birds} {birds}", r"names 2 sources, which are not split into classes"),
        ("--preset finegrained", r"--images is missing"),
        ("--images {birds} --dim 2000", r"--dim 2000: efficientnet_lite0 has 1280"),
        pytest.param(  # this and another below are said after an extraction
            "--images {birds} --dim 16",
            r"16 images are too few for --dim 16 principal",
            marks=pytest.mark.slow,
        ),
        (
            "--images {loose} --test.no-split --oracle filter-both",
            r"uses labels: .* with --pool-labels",
        ),
        ("--images {loose} --test.no-split --baseline proxy-nca", r"name them with --pool-labels"),
        ("--images {birds} --baseline proxy-nca --rounds 2", r"leave --rounds at 1"),
        (
            "--images {birds} --pool-labels {csv} --baseline proxy-nca",
            r"--pool-labels .*labels\.csv: none of the 1 names, such as other, .*\.jpg: ",
        ),
        ("--test.labels {csv}", r"--test\.labels needs --test\.images"),
        (
            "--images {birds} --test.images {loose} --test.labels {csv}",
            r"--test\.labels .*labels\.csv: none of the 1 names, such as other, .*\.jpg: ",
        ),
        (
            "--images {birds} --exclude {csv}",
            r"--exclude: none of the 2 names, such as name,label, .* such as .*\.jpg: ",
        ),
        ("--stages whiten", r"no stage 'whiten'; choose from extract,graph,mine,train,evaluate"),
    ],
)
def test_what_cannot_be_is_one_sentence(birds, tmp_path, ray_cluster, arguments, words):
    loose = tmp_path / "loose"
    loose.mkdir()
    for photo in sorted(birds.glob("images/*/*.jpg"))[:3]:
        shutil.copy(photo, loose)
    csv = tmp_path / "labels.csv"
    csv.write_text("name,label\nother,a\n")
    names = {"loose": loose, "birds": birds, "csv": csv}
    few = "--mining.graph-k 4 --mining.positive-k 4"
    given = shlex.split(f"{few} {arguments}".format(**names))
    storage = ["--storage", tmp_path / "runs", *ONE]
    assert re.search(words, run_here("finegrained", *SMALL, *storage, *given).error)


@pytest.mark.slow
def test_a_later_round_mines_on_what_the_network_gives(tmp_path, ray_cluster):
    """On f(x; θ) of Sec. 3.4, the layer after pooling included."""
    flags = ("--extraction.poolings", "embedding", "--extraction.pca", None)
    flags += ("--rounds", 2, "--training.keep", "last")
    assert run_here("finegrained", "--storage", tmp_path, *SMALL, *flags, *ONE).succeeded
    photos = sorted(tmp_path.glob("demo-*/train/*.jpg"))
    pixels = [decode(photo.read_bytes(), longest_side=96).pixels for photo in photos]
    stored = [np.load(path) for path in tmp_path.glob("extract-*/features.npy")]
    searched = [neighbors_in(pq.read_table(path)).ids for path in tmp_path.glob("knn-*/*/*")]
    checkpoints = list(tmp_path.glob("train-*/checkpoints/epoch-001"))
    assert len(checkpoints) == 2
    mined = []
    for checkpoint in checkpoints:
        network = last_measured(checkpoint)
        found = embed(network, pixels, ["embedding"], batch_size=1, device=torch.device("cpu"))
        alike = [rows for rows in stored if rows.shape == found[:, 0].shape]
        for rows in (rows for rows in alike if np.abs(rows - found[:, 0]).max() < 1e-5):
            assert rows.shape == (32, 8)
            near = nearest_neighbors(rows, rows, 6).ids
            mined.append(any(np.array_equal(each, near) for each in searched))
    assert mined == [True], "the first round's network gives the features of the second"


@pytest.mark.slow
def test_all_images_train_where_others_are_labelled(birds, tmp_path, ray_cluster):
    """With --test.images, the images to learn from need no classes."""
    arguments = ("--images", birds / "images", "--test.images", birds, "--mining.graph-k", 4)
    stages = ("--stages", "extract,graph,mine", "--mining.positive-k", 4, "--storage", tmp_path)
    done = run_here("finegrained", *SMALL, *arguments, *stages).succeeded
    assert "list: " in done.stderr
    assert "32/32" in done.stderr
    assert "show the anchor's label" not in done.stderr  # no labels were given for these


# -- the ablation ---------------------------------------------------------------------------------

ROWS = ("--rows", "weighted", "replace-both", "lifted-structure", "--seeds", "0", "1")


@pytest.mark.slow
def test_an_ablation_that_is_killed_goes_on_with_the_missing_rows(tmp_path, on_cluster):
    arguments = [*SMALL, *ROWS]
    undisturbed = ("--storage", tmp_path / "whole")
    whole = run_apart("ablation", *undisturbed, *arguments, env=on_cluster).succeeded
    folder, done_rows = tmp_path / "killed", set()
    for rows in (1, 2, 4):
        process = subprocess.Popen(
            command("ablation", "--storage", folder, *arguments),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=on_cluster,
        )
        deadline = time.monotonic() + 400
        while len(list(folder.glob("row-*/_SUCCESS.json"))) < rows:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert done_rows <= set(folder.glob("row-*/_SUCCESS.json"))
        done_rows = set(folder.glob("row-*/_SUCCESS.json"))
    times = {path: path.stat().st_mtime_ns for path in done_rows}
    last = run_apart("ablation", "--storage", folder, *arguments, env=on_cluster).succeeded
    assert {path: path.stat().st_mtime_ns for path in done_rows} == times
    assert last.stderr.count("done before (row-") == len(done_rows)
    assert table(last.stdout) == table(whole.stdout)
    assert next(folder.glob("ablation-*/ablation.md")).read_text().strip() == last.stdout.strip()
    client = mlflow.MlflowClient(f"sqlite:///{folder / 'mlflow.db'}")
    (experiment,) = client.search_experiments(filter_string="name = 'mmray'")
    runs = client.search_runs([experiment.experiment_id])
    (outer,) = [each for each in runs if "mlflow.parentRunId" not in each.data.tags]
    inner = [each for each in runs if each is not outer]
    assert len(inner) == 6  # a row that was killed goes on in its own run
    assert {each.data.tags["mlflow.parentRunId"] for each in inner} == {outer.info.run_id}
    assert {each.info.status for each in runs} == {"FINISHED"}


@pytest.mark.slow
def test_features_are_compared_by_how_pure_their_pools_are(tmp_path, ray_cluster):
    options = ("--study", "features", "--rows", "112-1-rmac-128", "--mining.positive-k", "6")
    done = run_here("ablation", "--storage", tmp_path, *SMALL, *options).succeeded
    head, _, row = table(done.stdout)
    assert [cell.strip() for cell in head.split("|")[1:-1]] == [
        "row",
        "anchors",
        "true P+",
        "true P-",
    ]
    assert row.split("|")[1].strip() == "112 px, 1 scale, R-MAC, PCA 128"
