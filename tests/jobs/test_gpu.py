"""The GPU benchmark, small and on a CPU: every part prints its lines, and failures show."""

import json
import signal
import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "jobs"))

# As the script imports them: its own folder is first in sys.path.
import benchmark as job
from benchmarks import gpu, gpu_jobs, gpu_networks
from benchmarks.gpu_trial import Trial

from mmray.mining.knn.faiss_library import faiss
from tests.made.faiss_gpu import FakeGpu

NETWORKS = {
    ("net", precision, batch, poolings)
    for precision in ("float32", "tf32", "bfloat16", "float16")
    for batch in (1, 4)
    for poolings in ("rmac+mac", "mac")
}


@pytest.fixture(autouse=True)
def sigterm():
    """A job takes the signal for itself."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch):
    """On a machine with GPUs too, these are tests of the parts on a CPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)


def lines_of(text):
    return [json.loads(line) for line in text.splitlines()]


@pytest.mark.slow
def test_all_parts_of_this_process_print_their_measurements(capsys):
    parts = ("env", "net", "shapes", "extract", "train", "knn", "ivf", "mine")
    job.measure(["gpu", "--scale", "small", "--parts", *parts])
    lines = lines_of(capsys.readouterr().out)
    assert not any("failed" in line for line in lines)
    assert {line["part"] for line in lines} == {
        *("env", "net", "shapes", "deviation", "unit", "train", "knn", "ivf", "mine"),
    }
    nets = [line for line in lines if line["part"] == "net"]
    assert {
        (line["part"], line["precision"], line["batch"], line["poolings"]) for line in nets
    } == NETWORKS
    steps = [
        (line["part"], line.get("step"), line.get("precision") or line.get("device"))
        for line in lines
        if line["part"] in ("unit", "train", "knn", "ivf", "mine")
    ]
    assert steps == [
        ("unit", None, None),
        ("unit", "to rows and back", None),
        ("unit", "to device", None),
        *(
            ("unit", "whole worker", precision)
            for precision in ("float32", "tf32", "bfloat16", "float16")
            for _ in ("one call", "two at once", "fixed batches")
        ),
        *(
            ("train", step, precision)
            for precision in ("float32", "tf32", "bfloat16")
            for step in (None, "embed_ids (two reading threads)")
        ),
        ("knn", "the database on the device, once for an actor", None),
        ("knn", "a unit as it is", None),
        ("knn", "search of 256, float32", None),
        ("knn", "products of 256, float32", None),
        ("knn", "search of 256, bf16", None),
        ("knn", "products of 256, bf16", None),
        ("knn", "settling 256, 60 candidates of each", None),
        ("knn", "faiss has no GPU here, and is not compared on one", None),
        ("ivf", "faiss has no GPU here, and is not compared on one", None),
        ("ivf", "building", "cpu"),
        ("ivf", "a unit", "cpu"),
        ("mine", "graph and its order", None),
        ("mine", "graph and work arrays in place", "cpu"),
        ("mine", "diffusion of 32 anchors alone", "cpu"),
        ("mine", "a unit of 32 anchors as it is", "cpu"),
    ]
    kinds = {
        (line["network"], line["layout"], line["precision"], line["trains"])
        for line in lines
        if line["part"] == "shapes"
    }
    assert len(kinds) == len(gpu_networks.LAYOUTS) * 2 * 2
    for line in lines:
        for name in (
            "first_ms",
            "slowest_ms",
            "second_ms",
            "ms",
            "images_s",
            "steps_s",
            "seconds",
            "whole_seconds",
        ):
            assert line.get(name, 1.0) > 0, line
    off = {
        line["of"]: line["one_minus_cosine_max"] for line in lines if line["part"] == "deviation"
    }
    assert abs(off["tf32"]) < 1e-12  # which a CPU does not have
    assert 1e-8 < off["float16"] < off["bfloat16"] < 1e-3


def test_inverted_lists_are_compared_where_faiss_has_a_gpu(monkeypatch, capsys):
    gpu = FakeGpu.on(monkeypatch)
    job.measure(["gpu", "--scale", "small", "--parts", "ivf"])
    lines = lines_of(capsys.readouterr().out)
    assert [(line["step"], line.get("device")) for line in lines] == [
        *(("building", "cuda"), ("building", "cpu"), ("a unit", "cuda"), ("a unit", "cpu")),
        ("of the CPUs' neighbours, found on the GPU", None),
    ]
    assert lines[-1]["share"] == 1
    assert sum(gpu.assigned) == 3000


def test_a_deviation_keeps_its_digits_however_small_it_is(capsys):
    Trial(full=False, device="cpu").say("deviation", of="bf16", largest=0.0000012345678, count=3)
    (line,) = lines_of(capsys.readouterr().out)
    assert line == {
        "t": 0,
        "part": "deviation",
        "of": "bf16",
        "largest": 1.2346e-06,
        "count": 3,
    }


def test_a_part_that_fails_hides_no_other_and_the_status_is_1(monkeypatch, capsys):
    def fail(trial):
        raise ValueError("no memory is left")

    monkeypatch.setitem(gpu.PARTS, "knn", fail)
    monkeypatch.setattr(
        sys, "argv", ["benchmark.py", "gpu", "--scale", "small", "--parts", "knn", "env"]
    )
    with pytest.raises(SystemExit, match=r"gpu: knn failed \(1 of 2 parts\)") as ended:
        job.main()
    assert isinstance(ended.value.code, str)  # printed, with exit status 1
    printed = capsys.readouterr()
    failed, env = lines_of(printed.out)
    assert (failed["part"], failed["failed"]) == ("knn", True)
    assert failed["error"] == "ValueError('no memory is left')"
    assert (env["part"], env["gpu"]) == ("env", "none")
    assert "Traceback" in printed.err


@pytest.mark.slow
def test_the_stage_is_measured_from_jpeg_files(ray_cluster, capsys):
    job.measure(["gpu", "--scale", "small", "--parts", "stage"])
    photos, stage = (line for line in lines_of(capsys.readouterr().out) if line["part"] == "stage")
    assert photos["photos_s"] > 0
    assert (stage["precision"], stage["images"], stage["gpu_share"]) == ("bfloat16", 40, 0)
    assert stage["actors"] >= 1
    assert stage["images_s_with_start"] > 0
    assert stage["gpu_percent"] is None


@pytest.mark.parametrize("status", [0, 3])
def test_a_demonstration_that_fails_is_a_part_that_fails(monkeypatch, tmp_path, capsys, status):
    script = tmp_path / "jobs" / "retrieval.py"
    script.parent.mkdir()
    script.write_text(f"import sys; print('a table'); sys.exit({status})")
    monkeypatch.setattr(gpu_jobs.mmray, "__file__", str(tmp_path / "mmray" / "__init__.py"))
    assert gpu.measure_parts(["demo"], "small") == (["demo"] if status else [])
    printed = capsys.readouterr()
    demo, *failed = lines_of(printed.out)
    assert (demo["part"], demo["status"]) == ("demo", status)
    assert demo["seconds"] > 0
    assert len(failed) == bool(status)
    assert "a table" in printed.err
