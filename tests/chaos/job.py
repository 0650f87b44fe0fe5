"""The job of the chaos test, small, and what is compared of it with an undisturbed run."""

import hashlib
import os
import re
import shlex
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path

import mlflow

from mmray.images.demo.demo_set import render_collection
from mmray.mining.files import read_pools
from mmray.system.folder import Folder
from tests.end_to_end.small_job import ROOT, command, table

IMAGES = 20
SETTINGS = shlex.split(
    """
    --network efficientnet_lite0 --extraction.longest-side 64 --extraction.shard-size 8
    --training.longest-side 64 --evaluation.longest-side 64 --mining.graph-k 6
    --mining.component all --mining.selection all --mining.anchors 16 --mining.anchor-block 4
    --mining.positive-k 6 --mining.negative-k 10 --training.epochs 2
    --training.anchors-per-epoch 8 --rounds 1 --max-workers 1 --resource-timeout 60
    """
)


def render(photos: Path) -> None:
    """Render the images of the job, once."""
    if (photos / "done").exists():
        return

    def write(name: str, data: bytes) -> None:
        (photos / name).parent.mkdir(parents=True, exist_ok=True)
        (photos / name).write_bytes(data)

    render_collection(write, objects=3, photos=6, distractors=2, longest_side=64, seed=0)
    (photos / "done").touch()


def start(photos: Path, storage: Path, output: Path) -> subprocess.Popen[bytes]:
    """Start the job as a user does, in a session of its own; it prints to output.out and .err."""
    arguments = (
        *("--images", photos / "train", "--storage", storage),
        *("--evaluation.images", photos / "test" / "jpg"),
        *("--evaluation.ground-truth", photos / "test" / "gt"),
        *("--evaluation.pool-labels", photos / "train_labels.csv"),
    )
    # With a token Ray leaves a file for the next; a Ray that others run here is not to be joined.
    env = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    env |= {"RAY_AUTH_MODE": "disabled", "PYTHONPATH": str(ROOT)}
    with output.with_suffix(".out").open("w") as out, output.with_suffix(".err").open("w") as err:
        return subprocess.Popen(
            command("retrieval", *arguments, *SETTINGS),
            stdout=out,
            stderr=err,
            env=env,
            start_new_session=True,
        )


def stage_of(output: Path) -> str:
    """Return the stage that a job finished last, from what it printed; in training, that."""
    said = output.with_suffix(".err").read_text(errors="replace")
    if re.search(r"^report: ", said, re.MULTILINE):
        return "end"
    stages = re.findall(r" \((\w+)-[0-9a-f]{12}\)$|( epoch )\d+/\d+: ", said, re.MULTILINE)
    if stages:
        return "train" if stages[-1][1] else str(stages[-1][0])
    return "Ray" if re.search(r"^ray: ", said, re.MULTILINE) else "start"


@dataclass(frozen=True)
class Outcome:
    """Results of a run, which must not depend on what the run went through."""

    pools: str  # a digest of every array
    anchors: str
    features: dict[str, str]
    images: dict[str, list[tuple[int, str]]]  # item and uri, by stage of the extraction
    table: list[str]
    runs: list[str]  # status of the runs in MLflow
    epochs: list[int]  # steps at which the loss was logged
    versions: int  # of the registered model

    @classmethod
    def of(cls, storage: Path, output: Path) -> "Outcome":
        (mined,) = storage.glob("mine-*")
        pools = hashlib.sha256()
        for value in vars(read_pools(Folder(str(mined)))).values():
            for array in value if isinstance(value, (list, tuple)) else [value]:
                pools.update(array.dtype.str.encode() + array.tobytes())
        anchors = Folder(str(mined)).read_table("anchors.parquet").to_pydict()
        client = mlflow.MlflowClient(f"sqlite:///{storage / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("mmray")
        runs = client.search_runs([experiment.experiment_id])
        history = client.get_metric_history(runs[0].info.run_id, "loss")
        return cls(
            pools=pools.hexdigest(),
            anchors=hashlib.sha256(repr(anchors).encode()).hexdigest(),
            features={
                str(path.relative_to(storage)): hashlib.sha256(path.read_bytes()).hexdigest()
                for path in sorted(storage.glob("extract-*/features*.npy"))
            },
            images={
                path.name: _images_of(Folder(str(path)))
                for path in sorted(storage.glob("extract-*"))
            },
            table=table(output.with_suffix(".out").read_text()),
            runs=[run.info.status for run in runs],
            epochs=[point.step for point in history],
            versions=len(client.search_model_versions("name = 'mmray'")),
        )

    def differences(self, reference: "Outcome") -> list[str]:
        """List what differs from an undisturbed run, and what is wrong with both."""
        mine, theirs = asdict(self), asdict(reference)
        found = [
            f"{name} differ: {str(mine[name])[:200]} for {str(theirs[name])[:200]}"
            for name in mine
            if mine[name] != theirs[name]
        ]
        for stage, images in self.images.items():
            if len({item for item, _ in images}) != len(images):
                found.append(f"{stage}: images doubled")
        if self.runs != ["FINISHED"]:
            found.append(f"MLflow's runs: {self.runs}")
        if self.versions != 1:
            found.append(f"{self.versions} versions of the model")
        return found


def _images_of(stage: Folder) -> list[tuple[int, str]]:
    table = stage.read_table("images.parquet")
    return list(zip(table["item"].to_pylist(), table["uri"].to_pylist(), strict=True))
