"""The main job as a user runs it: whole, killed at every stage, and with input it cannot use."""

import hashlib
import html
import json
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import mlflow
import numpy as np
import pytest
from PIL import Image

from mmray.descriptors.whitening import Whitening
from mmray.system.folder import Folder
from tests.end_to_end.small_job import (
    ONE,
    SMALL,
    command,
    counted,
    run_apart,
    run_here,
    table,
    the_run,
)


def start(log, *arguments, env=None):
    with log.open("w") as output:
        return subprocess.Popen(
            command("retrieval", *arguments),
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=log.parent,
            env=env,
        )


def wait_for_line(pattern, log, process, seconds=300):
    pattern, deadline = re.compile(pattern, re.MULTILINE), time.monotonic() + seconds
    while not pattern.search(log.read_text()) and time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        time.sleep(0.05)
    assert pattern.search(log.read_text()), log.read_text()


def wait_for_claim(stage, storage, process, seconds):
    """Wait until a stage is being made."""
    deadline = time.monotonic() + seconds
    while not [*storage.glob(f"leases/{stage}-*/*")]:
        assert process.poll() is None, "it ended before"
        assert time.monotonic() < deadline
        time.sleep(0.02)


def wait_for_checkpoint(name, storage, process, seconds=300):
    """Wait until Ray Train has noted a checkpoint, a moment after the epoch is announced."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert process.poll() is None, "it ended before"
        notes = storage.glob("train-*/checkpoints/checkpoint_manager_snapshot.json")
        if any(name in note.read_text() for note in notes):
            return
        time.sleep(0.02)
    pytest.fail(f"no {name} after {seconds} s")


def digests(storage, pattern):
    files = sorted(storage.glob(pattern))
    return {
        str(file.relative_to(storage)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in files
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Storage and output of a run that nothing disturbed, in a process and on a Ray of its own."""
    storage = tmp_path_factory.mktemp("whole") / "runs"
    return storage, run_apart("retrieval", "--storage", storage, *SMALL, *ONE).succeeded


def test_the_job_ends_with_a_table_and_shows_progress(whole):
    _, done = whole
    rows = table(done.stdout)
    assert len(rows) == 2 + 10
    assert "| MAC        | initial    | LDA " in rows[4]
    assert "| MAC        | fine-tuned | LDA " in rows[6]
    for label in ("render", "extract", "k-NN", "diffusion", "epoch 2 of 2", "whiten", "evaluate"):
        assert re.search(rf"{label}: (\d+)/\1, ", done.stderr), label


def test_no_line_is_one_of_ray(whole):
    """Check that each line is progress, "stage: words", or words of training."""
    _, done = whole
    ours = re.compile(
        r"(\(RayTrainWorker pid=\d+\) )? *[\w-]+( \d+(/\d+| of \d+)?)?: .+"
        r"|  decode the images to train on: .+ \(cache-\w+\)"
    )
    assert [line for line in done.stderr.splitlines() if not ours.fullmatch(line)] == []
    assert "core_worker" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if "/s, " in line]
    assert len(set(lines)) == len(lines)


def test_every_stage_has_one_line_with_its_number_what_it_does_and_its_time(whole):
    storage, done = whole
    # Where nothing was gained, the labelled images were described by the same network before.
    line = r"^stage \d+ of \d+: [\w -]+: (?:[\d.]+ (?:s|min)|done before) \(([\w-]+)\)$"
    folders = re.findall(line, done.stderr, re.MULTILINE)
    assert counted(done.stderr) == len(folders) == 15
    stages = {path.parent.name for path in storage.glob("*-*/_SUCCESS.json")}
    assert {*folders} == {name for name in stages if not name.startswith("cache-")}
    assert str(storage) in done.stderr.splitlines()[0], "where these folders are"


def test_every_stage_leaves_what_the_design_says(whole):
    storage, _ = whole
    for pattern in (
        "extract-*/images.parquet",
        "extract-*/features/part-000000.parquet",
        "extract-*/features.npy",
        "extract-*/quarantine.parquet",
        "near-*/near_duplicates.parquet",
        "knn-*/neighbors/part-000000.parquet",
        "graph-*/items.npy",
        "graph-*/order.npy",
        "graph-*/raw/data.npy",
        "graph-*/normalized/data.npy",
        "graph-*/report.json",
        "mine-*/anchors.parquet",
        "mine-*/pools/part-000003.parquet",
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
    assert run.data.metrics["system/mine/anchors"] == 24
    top = {name: value for name, value in run.data.metrics.items() if "/" not in name}
    assert 0 < top["pool_true_positives"] < 1
    assert 0.5 < top["pool_true_negatives"] <= 1
    assert top["mAP_gain"] == pytest.approx(top["mAP"] - top["mAP_initial"])
    assert len(top) <= 12, "what a person looks at"
    assert {*top} >= {"loss", "manifold_map", "manifold_map_initial", "view_agreement"}
    groups = {name.partition("/")[0] for name in run.data.metrics.keys() - top.keys()}
    assert groups == {"system", "train", "evaluate"}
    evaluated = [name for name in run.data.metrics if name.startswith("evaluate/")]
    assert len(evaluated) == 10, "the cells of the table"
    graph = {file.path for file in client.list_artifacts(run.info.run_id, "graph")}
    assert graph == {"graph/report.json"}
    losses = client.get_metric_history(run.info.run_id, "loss")
    assert [point.step for point in losses] == [1, 2]
    maps = client.get_metric_history(run.info.run_id, "train/mAP")
    assert [point.step for point in maps] == [0, 1, 2]
    path = client.download_artifacts(run.info.run_id, "results.md")
    assert table(Path(path).read_text()) == table(done.stdout)
    *_, verdict = done.stdout.splitlines()
    assert re.search(r"mAP (stays )?\d.*, MAC with LDA whitening on gt; pools 34% true", verdict)
    assert run.data.tags["mmray.verdict"] == run.data.tags["mlflow.note.content"] == verdict
    (output,) = client.get_run(run.info.run_id).outputs.model_outputs
    version = client.get_model_version_by_alias("mmray", "newest")
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
    assert html.escape(done.stdout.splitlines()[-1]) in page
    for heading in ("Results", "Training", "What was mined", "Searches", "Time"):
        assert f">{heading}</h2>" in page
    figures = {row.split("|")[-2].strip() for row in table(done.stdout)[2:]}
    assert all(f">{figure}<" in page for figure in figures)
    assert page.count("data:image/jpeg") > 100
    client, run = the_run(f"sqlite:///{storage / 'mlflow.db'}")
    (artifact,) = client.list_artifacts(run.info.run_id, "report")
    assert artifact.path == f"report/{file.name}"


@pytest.mark.usefixtures("ray_cluster")
def test_a_run_that_ends_sooner_keeps_the_page_of_the_whole(whole):
    storage, _ = whole
    (page,) = (storage / "reports").glob("*.html")
    before = page.read_bytes()
    stages = ("--stages", "extract,graph,mine")
    assert run_here("retrieval", "--storage", storage, *SMALL, *stages).succeeded
    assert page.read_bytes() == before
    shorter = page.with_name(f"{page.stem}-to-mine.html").read_text()
    assert "The run ended after the stage mine, as --stages says." in shorter
    assert ">What was mined</h2>" in shorter
    assert ">Training</h2>" not in shorter


OPEN_SIZES = ("--mining.graph-k", None, "--mining.positive-k", None)


@pytest.mark.usefixtures("ray_cluster")
def test_sizes_are_chosen_from_the_collection_and_said(tmp_path):
    stages = ("--stages", "extract,graph,mine", *ONE)
    done = run_here("retrieval", "--storage", tmp_path, *SMALL, *OPEN_SIZES, *stages).succeeded
    assert re.search(r"mining: graph-k \d \(.* largest component.*\), positive-k", done.stderr)
    assert re.search(r"pools: those of 24 anchors hold \d+% of the 36 images", done.stderr)
    (sizes,) = tmp_path.glob("sizes-*")
    counts = json.loads((sizes / "_SUCCESS.json").read_text())["counts"]
    assert counts["positive_k"] == 2 * (counts["graph_k"] - 1)
    assert counts["negative_k"] == 12  # as given


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_rounds_are_runs_within_the_run_and_each_has_its_curves(tmp_path):
    flags = [*OPEN_SIZES, "--training.keep", "last", "--rounds", 2]
    assert run_here("retrieval", "--storage", tmp_path, *SMALL, *flags).succeeded
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("mmray").experiment_id])
    (outer,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    rounds = {run.info.run_name: run for run in runs if run is not outer}
    # Others may have been tried.
    tried = {"round 1, graph-k 10", "round 1, cyclic positives"}
    assert set(rounds) - tried == {"round 1", "round 2"}
    for run in rounds.values():
        assert run.data.tags["mlflow.parentRunId"] == outer.info.run_id
        assert run.info.status == "FINISHED"
        assert len(client.get_metric_history(run.info.run_id, "loss")) == 2
        assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"graph"}
    assert "loss" not in outer.data.metrics
    assert {"mAP", "manifold_map", "pool_true_positives"} < outer.data.metrics.keys()
    (page,) = (tmp_path / "reports").glob("*.html")
    for number in (1, 2):
        assert f"Round {number}: Loss" in page.read_text()


@pytest.mark.usefixtures("ray_cluster")
def test_the_same_command_again_runs_nothing_and_prints_the_same_table(whole):
    storage, done = whole
    before = digests(storage, "*-*/**/*.*")
    again = run_here("retrieval", "--storage", storage, *SMALL).succeeded
    assert table(again.stdout) == table(done.stdout)
    assert "done before (train-" in again.stderr
    assert "epoch 1:" not in again.stderr
    assert "ray: " not in again.stderr, "nothing needs it"
    assert re.search(r"^mlflow: to see the run, mlflow ui .*/runs/\w+$", again.stderr, re.MULTILINE)
    kept = re.search(r"^report: done before, (.+\.html)$", again.stderr, re.MULTILINE)
    assert Path(kept[1]).is_file()
    assert digests(storage, "*-*/**/*.*") == before
    client, _ = the_run(f"sqlite:///{storage / 'mlflow.db'}")  # one alone: the same run goes on
    assert [str(version.version) for version in client.search_model_versions()] == ["1"]


@pytest.mark.usefixtures("ray_cluster")
def test_quiet_and_json_leave_one_line_that_says_all_and_change_no_run(whole):
    storage, done = whole
    told = run_here("retrieval", "--storage", storage, *SMALL, "--quiet", "--json").succeeded
    assert told.stderr == ""
    (line,) = told.stdout.splitlines()
    found = json.loads(line)
    assert found["verdict"] == done.stdout.splitlines()[-1]
    assert len(found["table"]) == 10
    assert {f"{100 * row['value']:.1f}" for row in found["table"]} <= {
        *re.findall(r"\d+\.\d", done.stdout)
    }
    assert (Path(found["model"]) / "model.safetensors").is_file()
    assert Path(found["page"]).is_file()
    _, run = the_run(f"sqlite:///{storage / 'mlflow.db'}")  # one alone
    assert found["mlflow"]["run_id"] == run.info.run_id
    quiet = run_here("retrieval", "--storage", storage, *SMALL, "--quiet").succeeded
    assert (quiet.stdout, quiet.stderr) == (done.stdout, "")


@pytest.mark.usefixtures("ray_cluster")
def test_the_settings_that_a_run_leaves_are_read_as_the_same_run(whole):
    storage, done = whole
    (file,) = (storage / "reports").glob("*.yaml")
    again = run_here("retrieval", "--config", file).succeeded
    assert again.stdout == done.stdout
    assert "epoch 1 of 2" not in again.stderr
    client, run = the_run(f"sqlite:///{storage / 'mlflow.db'}")  # one alone
    logged = client.download_artifacts(run.info.run_id, "settings.yaml")
    assert Path(logged).read_bytes() == file.read_bytes()
    file.write_text(file.read_text().replace("epochs: 2", "epochs: 0"))
    assert f"{file}: --training.epochs 0" in run_here("retrieval", "--config", file).error
    file.write_bytes(Path(logged).read_bytes())


def test_killed_in_training_it_goes_on_and_ends_with_the_same_network(whole, on_cluster, tmp_path):
    """SIGKILL after an epoch; all before it is read, and what follows finds the same network."""
    storage, log = whole[0], tmp_path / "log"
    kept = shutil.copytree(storage, tmp_path / "kept", symlinks=True)
    try:
        for folder in storage.glob("train-*"):
            shutil.rmtree(folder)
        process = start(log, "--storage", storage, *SMALL, *ONE, env=on_cluster)
        wait_for_checkpoint("epoch-001", storage, process)
        process.kill()
        process.wait()
        assert "done before (mine-" in log.read_text()
        assert not [*storage.glob("train-*/_SUCCESS.json")]
        done = run_here("retrieval", "--storage", storage, *SMALL, *ONE).succeeded
        assert "epoch 1/2: " not in done.stderr, "that epoch was kept"
        assert "done before (train-" not in done.stderr
        assert table(done.stdout) == table(whole[1].stdout)
        pattern = "train-*/**/*.safetensors"
        assert len(digests(kept, pattern)) >= 2
        assert digests(storage, pattern) == digests(kept, pattern)
    finally:  # for the tests that follow, at the same place: the names of stages go by it
        shutil.rmtree(storage)
        kept.rename(storage)


@pytest.mark.slow
def test_killed_in_any_stage_it_ends_with_the_same_pools_and_table(whole, on_cluster, tmp_path):
    """SIGKILL soon after each stage has begun; the last start runs to the end."""
    storage, log = tmp_path / "runs", tmp_path / "log"
    for stage in ("demo", "extract", "graph", "mine", "train", "whiten", "evaluate"):
        process = start(log, "--storage", storage, *SMALL, env=on_cluster)
        if stage == "train":  # one epoch is kept, the second is cut
            wait_for_line(r"epoch 1/2: ", log, process, seconds=600)
        else:
            wait_for_claim(stage, storage, process, seconds=600)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run_apart("retrieval", "--storage", storage, *SMALL, env=on_cluster).succeeded
    undisturbed, first = whole
    assert table(done.stdout) == table(first.stdout)
    for pattern in ("mine-*/pools/*", "graph-*/*.npz", "*/metrics.json"):
        expected = {name.split("/")[-1]: d for name, d in digests(undisturbed, pattern).items()}
        assert expected
        assert {name.split("/")[-1]: d for name, d in digests(storage, pattern).items()} == expected


def test_sigterm_ends_with_143_and_the_run_as_killed(tmp_path, on_cluster):
    log = tmp_path / "log"
    process = start(log, "--storage", tmp_path / "runs", *SMALL, env=on_cluster)
    wait_for_line(r"stage 2 of \d+: list the images", log, process)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 143
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


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--images", ""), "--images is missing: its value is empty"),
        (("--images",), "--images is missing: it has no value"),
        (("--images", "nowhere"), "nowhere: no such file or folder"),
        (("--images", "empty"), "empty: no images in this folder"),
        (("--images", "photos", "--storage", "file/x"), "cannot write there"),
        (("--images", "photos", "--mining.alpha", "1"), "from 0 to 0.999999"),
        (("--images", "photos", "--weights", "none.pth"), "none.pth: no such file"),
        (("--images", "photos", "--stages", "train"), "add it to --stages"),
        (("--images", "photos", "--exclude", "names"), "none of the 1 names, such as x\\x1b,y, is"),
        (
            ("--images", "photos", "--evaluation.pool-labels", "names"),
            "--evaluation.pool-labels names: none of the 1 names, such as x\\x1b, is that of an "
            "image, such as 0.png: give paths",
        ),
    ],
)
@pytest.mark.usefixtures("ray_cluster", "photos")
def test_input_that_cannot_be_used_ends_with_status_2_and_a_sentence(
    arguments, words, tmp_path, monkeypatch
):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("")
    (tmp_path / "names").write_text("x\x1b,y\n")
    monkeypatch.chdir(tmp_path)
    small = ("--mining.graph-k", "4", "--mining.positive-k", "4", "--storage", "runs", *ONE)
    assert words in run_here("retrieval", *small, *arguments).error


def test_an_unknown_network_is_refused_by_the_command_line():
    done = run_apart("retrieval", "--network", "vgg17")
    assert done.returncode == 2
    assert "vgg17" in done.stdout + done.stderr
    assert "efficientnet_lite0" in done.stdout + done.stderr


@pytest.mark.usefixtures("ray_cluster")
def test_weights_that_cannot_be_downloaded_name_the_flag(photos, tmp_path, monkeypatch):
    """The hub's folder is empty and its site cannot be reached from here."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    arguments = ("--images", photos, *SMALL, "--storage", tmp_path / "runs", "--network", "vgg16")
    assert "--weights FILE" in run_here("retrieval", *arguments).error


@pytest.mark.usefixtures("ray_cluster")
def test_unreadable_images_are_quarantined_or_refused_together(photos, tmp_path):
    (photos / "3.png").write_bytes(b"not an image")
    arguments = (
        *("--images", photos, "--storage", tmp_path / "runs", "--stages", "extract", *ONE),
        *("--mining.graph-k", 4, "--mining.positive-k", 4, "--extraction.longest-side", 64),
    )
    assert run_here("retrieval", *arguments).succeeded
    (stage,) = (tmp_path / "runs").glob("extract-*")
    folder = Folder(str(stage))
    assert len(folder.read_table("images.parquet")) == 11
    (bad,) = folder.read_table("quarantine.parquet").to_pylist()
    assert bad["uri"] == str(photos / "3.png")
    assert "not an image" in bad["error"]
    for file in photos.iterdir():
        file.write_bytes(b"")
    sentence = run_here("retrieval", *arguments, "--relist").error
    assert "12 of 12 images could not be read" in sentence
    assert "empty file" in sentence
