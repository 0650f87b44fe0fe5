"""The main job as a user runs it: whole, killed at every stage, and with input it cannot use."""

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from mmray.descriptors.whitening import Whitening
from mmray.system.folder import Folder
from tests.end_to_end.small_job import SMALL, table, the_run

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "jobs"))

import retrieval  # noqa: E402


def command(*arguments):
    return [sys.executable, str(ROOT / "jobs" / "retrieval.py"), *map(str, arguments)]


def start(log, *arguments, env=None):
    with log.open("w") as output:
        return subprocess.Popen(
            command(*arguments), stdout=output, stderr=subprocess.STDOUT, cwd=log.parent, env=env
        )


def digests(storage, pattern):
    files = sorted(storage.glob(pattern))
    return {
        str(file.relative_to(storage)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Storage and output of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    done = subprocess.run(
        command("--storage", "runs", *SMALL), cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "runs", done


def test_the_job_ends_with_a_table_and_shows_progress(whole):
    _, done = whole
    rows = table(done.stdout)
    assert len(rows) == 2 + 8
    assert "| MAC        | fine-tuned | LDA " in rows[5]
    for label in ("render", "extract", "k-NN", "diffusion", "epoch 2", "whiten", "evaluate"):
        assert re.search(rf"{label}: (\d+)/\1, ", done.stderr), label


def test_every_stage_leaves_what_the_design_says(whole):
    storage, _ = whole
    for pattern in (
        "extract-*/images.parquet",
        "extract-*/features/part-000000.parquet",
        "extract-*/features.npy",
        "extract-*/quarantine.parquet",
        "knn-*/neighbors/part-000000.parquet",
        "graph-*/graph.npz",
        "graph-*/report.json",
        "mine-*/anchors.parquet",
        "mine-*/pools/part-000005.parquet",
        "train-*/checkpoints/epoch-002/state.json",
        "whiten-*/model/model.safetensors",
        "whiten-*/model/config.json",
        "whiten-*/model/whitening.npz",
        "evaluate-*/metrics.json",
    ):
        assert list(storage.glob(pattern)), pattern
    for stage in ("demo", "extract", "graph", "mine", "train", "whiten", "evaluate"):
        for folder in storage.glob(f"{stage}-*"):
            record = json.loads((folder / "_SUCCESS.json").read_text())
            assert record["stage"] == stage
            assert record["counts"]


def test_mlflow_has_settings_counts_curves_table_and_model(whole):
    storage, done = whole
    client, run = the_run(f"sqlite:///{storage / 'mlflow.db'}")
    assert run.info.status == "FINISHED"
    assert run.data.params["mining.alpha"] == "0.99"
    assert run.data.metrics["mine/anchors"] == 24
    assert 0 < run.data.metrics["purity/positives"] < 1
    assert 0.5 < run.data.metrics["purity/negatives"] <= 1
    graph = {file.path for file in client.list_artifacts(run.info.run_id, "graph")}
    assert graph == {"graph/report.json", "graph/graph.png"}
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in losses] == [1, 2]
    maps = client.get_metric_history(run.info.run_id, "map")
    assert [point.step for point in maps] == [0, 1, 2]
    path = client.download_artifacts(run.info.run_id, "results.md")
    assert table(Path(path).read_text()) == table(done.stdout)
    (output,) = client.get_run(run.info.run_id).outputs.model_outputs
    version = client.get_model_version_by_alias("mmray-retrieval", "newest")
    assert version.source == f"models:/{output.model_id}"
    assert version.run_id == run.info.run_id
    (dataset,) = run.inputs.dataset_inputs
    assert dataset.dataset.digest == run.data.tags["mmray.data"]
    assert run.data.tags["mlflow.source.name"].endswith("retrieval.py")
    assert run.data.tags["mmray.version"]


def test_the_report_shows_what_was_mined_and_what_changed(whole):
    storage, done = whole
    (file,) = (storage / "reports").glob("efficientnet_lite0-*.html")
    page = file.read_text()
    for heading in ("Results", "Training", "What was mined", "Searches", "Time"):
        assert f">{heading}</h2>" in page
    figures = {row.split("|")[-2].strip() for row in table(done.stdout)[2:]}
    assert all(f">{figure}<" in page for figure in figures)
    assert page.count("data:image/jpeg") > 100
    client, run = the_run(f"sqlite:///{storage / 'mlflow.db'}")
    (artifact,) = client.list_artifacts(run.info.run_id, "report")
    assert artifact.path == f"report/{file.name}"


def test_a_run_that_ends_sooner_keeps_the_page_of_the_whole(whole, on_cluster):
    storage, _ = whole
    (page,) = (storage / "reports").glob("*.html")
    before = page.read_bytes()
    stages = ("--stages", "extract,graph,mine")
    done = subprocess.run(
        command("--storage", storage, *SMALL, *stages),
        capture_output=True,
        text=True,
        env=on_cluster,
    )
    assert done.returncode == 0, done.stderr
    assert page.read_bytes() == before
    shorter = page.with_name(f"{page.stem}-to-mine.html").read_text()
    assert "It was to end with the stage mine." in shorter
    assert ">What was mined</h2>" in shorter
    assert ">Training</h2>" not in shorter


@pytest.mark.slow
def test_rounds_are_runs_within_the_run_and_each_has_its_curves(on_cluster, tmp_path):
    done = subprocess.run(
        command("--storage", tmp_path, *SMALL, "--rounds", 2),
        capture_output=True,
        text=True,
        env=on_cluster,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mmray").experiment_id])
    (outer,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    rounds = {run.info.run_name: run for run in runs if run is not outer}
    assert set(rounds) == {"round 1", "round 2"}, "round 1 is to improve the network"
    for run in rounds.values():
        assert run.data.tags["mlflow.parentRunId"] == outer.info.run_id
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 2
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"galleries"}
    assert "loss" not in outer.data.metrics
    (page,) = (tmp_path / "reports").glob("*.html")
    for number in (1, 2):
        assert f"Loss: round {number}" in page.read_text()


def test_the_same_command_again_runs_nothing_and_prints_the_same_table(whole):
    storage, done = whole
    before = digests(storage, "*-*/**/*.*")
    again = subprocess.run(
        command("--storage", storage, *SMALL), capture_output=True, text=True, check=True
    )
    assert table(again.stdout) == table(done.stdout)
    assert "epoch 1:" not in again.stderr
    assert digests(storage, "*-*/**/*.*") == before
    client, _ = the_run(f"sqlite:///{storage / 'mlflow.db'}")  # one alone: the same run goes on
    assert [str(version.version) for version in client.search_model_versions()] == ["1"]


@pytest.mark.parametrize(
    "stages",
    [
        ("extract", "mine", "train"),
        pytest.param(("demo", "graph", "whiten", "evaluate"), marks=pytest.mark.slow),
    ],
)
def test_killed_in_any_stage_it_ends_with_the_same_pools_and_table(
    whole, on_cluster, tmp_path, stages
):
    """SIGKILL soon after each line that announces a stage; the last start runs to the end."""
    storage, log = tmp_path / "runs", tmp_path / "log"
    for stage in stages:
        process = start(log, "--storage", storage, *SMALL, env=on_cluster)
        # A done stage says "done before": what is waited for is the first to run.
        pattern = re.compile(rf"^{stage}: (?!done before)", re.MULTILINE)
        if stage == "train":
            pattern = re.compile(r"epoch 1/2: ")  # one epoch is kept, the second is cut
        deadline = time.monotonic() + 600
        while not pattern.search(log.read_text()) and time.monotonic() < deadline:
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        assert pattern.search(log.read_text()), log.read_text()
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = subprocess.run(
        command("--storage", storage, *SMALL),
        capture_output=True,
        text=True,
        check=True,
        env=on_cluster,
    )
    undisturbed, first = whole
    assert table(done.stdout) == table(first.stdout)
    for pattern in ("mine-*/pools/*", "graph-*/*.npz", "*/metrics.json"):
        assert {name.split("/")[-1]: d for name, d in digests(storage, pattern).items()} == {
            name.split("/")[-1]: d for name, d in digests(undisturbed, pattern).items()
        }


def test_ctrl_c_ends_with_130_and_the_run_as_killed(tmp_path):
    log = tmp_path / "log"
    process = start(log, "--storage", tmp_path / "runs", *SMALL)
    while "extract: " not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 130
    assert log.read_text().rstrip().endswith("interrupted: the same command goes on from here")
    _, run = the_run(f"sqlite:///{tmp_path / 'runs' / 'mlflow.db'}")
    assert run.info.status == "KILLED"


def test_the_model_folder_gives_whitened_descriptors(whole):
    from mmray.descriptors.weights import load

    (folder,) = whole[0].glob("whiten-*/model")
    model = load(Folder(str(folder)))
    whitening = Whitening.load(folder / "whitening.npz")
    assert model.network == "efficientnet_lite0"
    rows = whitening.apply(np.eye(3, model.dim, dtype=np.float32))
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)


@pytest.fixture
def photos(tmp_path):
    folder, rng = tmp_path / "photos", np.random.default_rng(0)
    folder.mkdir()
    for index in range(12):
        noise = rng.integers(0, 60, (48, 64, 3)) + rng.integers(0, 190, (1, 1, 3))
        Image.fromarray(noise.astype(np.uint8)).save(folder / f"{index}.png")
    return folder


def failing(*arguments, env):
    """Output of a run that must end with status 2, one sentence and no traceback."""
    done = subprocess.run(command(*arguments), capture_output=True, text=True, env=env)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    sentences = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(sentences) == 1, done.stderr
    return sentences[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--images", "nowhere"), "nowhere: no such file or folder"),
        (("--images", "empty"), "empty: no images in this folder"),
        (("--images", "photos", "--storage", "file/x"), "cannot write there"),
        (("--images", "photos", "--mining.alpha", "1"), "from 0 to 0.999999"),
        (("--images", "photos", "--weights", "none.pth"), "none.pth: no such file"),
        (("--images", "photos", "--stages", "train"), "add it to --stages"),
    ],
)
@pytest.mark.usefixtures("ray_cluster", "photos")
def test_input_that_cannot_be_used_ends_with_status_2_and_a_sentence(
    arguments, words, tmp_path, monkeypatch, capsys
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(signal, "signal", lambda *_: None)  # the job would take SIGTERM for itself
    small = ("--mining.graph-k", "4", "--mining.positive-k", "4", "--storage", "runs")
    monkeypatch.setattr(sys, "argv", ["retrieval.py", *small, *arguments])
    assert retrieval.main() == 2
    (sentence,) = [
        line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")
    ]
    assert words in sentence


def test_an_unknown_network_is_refused_by_the_command_line():
    done = subprocess.run(command("--network", "vgg17"), capture_output=True, text=True)
    assert done.returncode == 2
    assert "vgg17" in done.stdout + done.stderr
    assert "efficientnet_lite0" in done.stdout + done.stderr


def test_weights_that_cannot_be_downloaded_name_the_flag(photos, tmp_path):
    """The hub's folder is empty and its site cannot be reached from here."""
    done = subprocess.run(
        command("--images", photos, *SMALL, "--storage", tmp_path / "runs", "--network", "vgg16"),
        capture_output=True,
        text=True,
        env={**os.environ, "TORCH_HOME": str(tmp_path), "https_proxy": "http://127.0.0.1:9"},
    )
    assert done.returncode == 2
    assert "--weights FILE" in done.stderr
    assert "Traceback" not in done.stderr


def test_unreadable_images_are_quarantined_or_refused_together(photos, tmp_path, on_cluster):
    (photos / "3.png").write_bytes(b"not an image")
    arguments = (
        *("--images", photos, "--storage", tmp_path / "runs", "--stages", "extract"),
        *("--mining.graph-k", 4, "--mining.positive-k", 4, "--extraction.longest-side", 64),
    )
    subprocess.run(command(*arguments), check=True, capture_output=True, env=on_cluster)
    (stage,) = (tmp_path / "runs").glob("extract-*")
    folder = Folder(str(stage))
    assert len(folder.read_table("images.parquet")) == 11
    (bad,) = folder.read_table("quarantine.parquet").to_pylist()
    assert bad["uri"] == str(photos / "3.png")
    assert "not an image" in bad["error"]
    for file in photos.iterdir():
        file.write_bytes(b"")
    sentence = failing(*arguments, "--relist", env=on_cluster)
    assert "12 of 12 images could not be read" in sentence
    assert "empty file" in sentence
