"""A model's folder as MLflow serves it: every form of images, in a process without mmray."""

import base64
import contextlib
import json
import shutil
import subprocess
import sys
import sysconfig
import warnings
from pathlib import Path

import mlflow
import numpy as np
import onnxruntime
import pandas as pd
import pytest

from mmray.images.decoding import decode
from mmray.pipeline import mlflow_model, registry
from mmray.pipeline.tracking import Run, default_uri, open_run
from mmray.serving.encoder import ImageEncoder
from mmray.serving.pyfunc import ImageModel, _load_pyfunc
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.made.exported import SIDE, model_folder, onnx_file, photos


def data_uri(content: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def model(folder) -> ImageModel:
    return _load_pyfunc(str(folder))


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    return ImageEncoder.load(folder).encode(photos())


@pytest.fixture
def files(tmp_path) -> list[str]:
    """The photos, one of them with a name of its own."""
    paths = [tmp_path / f"{i}.png" for i in range(4)] + [tmp_path / "é #1.png"]
    for path, content in zip(paths, photos(), strict=True):
        path.write_bytes(content)
    return [str(path) for path in paths]


# The forms of images


def test_images_come_in_any_form_that_mlflow_passes_on(model, files, expected):
    uris = [data_uri(content) for content in photos()]
    for images in (files, photos(), uris, [files[0], *photos()[1:3], *uris[3:]]):
        objects = np.array(images, dtype=object)
        frame = pd.DataFrame({"image": images}, index=[4, 3, 2, 1, 0])
        for form in (images, tuple(images), objects, pd.Series(images), frame):
            rows = model.predict(form)
            assert rows.dtype == np.float32
            np.testing.assert_allclose(rows, expected, atol=2e-6)
    np.testing.assert_allclose(model.predict(np.array(files)), expected, atol=2e-6)


def test_one_image_alone_gives_one_row(model, files, expected):
    for image in (files[1], photos()[1], data_uri(photos()[1]), np.array(files[1])):
        np.testing.assert_allclose(model.predict(image), expected[1:2], atol=2e-6)


def test_the_longest_side_is_a_parameter_and_zero_is_the_models_own(model, folder, expected):
    for params in (None, {}, {"longest_side": 0}, {"longest_side": SIDE}):
        np.testing.assert_allclose(model.predict(photos(), params), expected, atol=2e-6)
    rows = model.predict(photos(), {"longest_side": 60})
    np.testing.assert_allclose(rows, ImageEncoder.load(folder).encode(photos(), 60), atol=2e-6)
    assert np.abs(rows - expected).max() > 1e-3


def test_other_forms_are_refused(model, files):
    cases = [
        (pd.DataFrame({"a": files, "b": files}), "images: a table of 2 columns; give it one"),
        (np.array(photos()), "images: an array of shape (5,) and type |S"),
        (np.array([files]), "images: an array of shape (1, 5) and type <U"),
        (np.zeros((48, 64, 3), np.uint8), "images: an array of shape (48, 64, 3) and type uint8"),
        ({"image": files}, "images: a list of paths or of the contents of image files is wanted"),
        ([3], "image 1 of 1: a path or the bytes of an image file is wanted, not int"),
        ([None], "image 1 of 1: a path or the bytes of an image file is wanted, not NoneType"),
        (["data:image/png,abc"], "data:image/png: not an image: write data:image/jpeg;base64,..."),
        (["data:image/png;base64,a?"], "data:image/png;base64,a?...: not an image in base64 ("),
        (["/absent.jpg"], "/absent.jpg: cannot be read as an image (FileNotFoundError"),
    ]
    for images, beginning in cases:
        with pytest.raises(InputError) as caught:
            model.predict(images)
        assert str(caught.value).startswith(beginning)


# The MLflow model


CHILD = """
import importlib.util, json, sys, warnings
sys.path.append(sys.argv[1])
assert importlib.util.find_spec("mmray") is None
warnings.simplefilter("ignore")
import mlflow.pyfunc, numpy, pandas
from mlflow.pyfunc import scoring_server
model = mlflow.pyfunc.load_model(sys.argv[2])
paths, request = sys.argv[4:9], sys.argv[9]
contents = [open(path, "rb").read() for path in paths]
rows = model.predict(paths)
assert rows.dtype == numpy.float32
for images in (contents, pandas.DataFrame({"any": contents}), numpy.array(paths, object)):
    assert numpy.abs(model.predict(images) - rows).max() < 1e-6
assert model.predict(paths[0]).shape == (1, rows.shape[1])
small = model.predict(paths, params={"longest_side": 50})
assert numpy.abs(small - rows).max() > 1e-3
schema = model.metadata.get_input_schema()
reply = scoring_server.invocations(request, "application/json", model, schema)
served = numpy.array(json.loads(reply.response)["predictions"], numpy.float32)
assert numpy.abs(served - rows).max() < 1e-6
example = model.predict(model.input_example)
assert example.shape == (1, rows.shape[1])
numpy.save(sys.argv[3], rows)
import mmray
print(json.dumps({"mmray": mmray.__file__, "modules": sorted(sys.modules)}))
"""


@pytest.mark.process
def test_a_process_without_mmray_serves_what_torch_and_onnx_compute(
    folder, files, expected, tmp_path, tmp_path_factory
):
    saved, rows = tmp_path / "pyfunc", tmp_path / "rows.npy"
    mlflow_model.save(Folder(str(folder)), saved, dims=ImageEncoder.load(folder).net.dim)
    code = sorted(path for path in (saved / "code").rglob("*") if path.is_file())
    assert {path.name for path in (saved / "code" / "mmray").iterdir()} == {
        "__init__.py",
        *mlflow_model.SERVED_FROM,
    }
    assert {path.suffix for path in code} == {".py"}
    assert not list(saved.rglob("*.pkl"))

    # Without site, the editable installation of mmray is not found; the packages are.
    request = json.dumps({"inputs": [data_uri(content) for content in photos()]})
    packages = sysconfig.get_path("purelib")
    (tmp_path / "elsewhere").mkdir()
    ended = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CHILD, packages, saved, rows, *files, request],
        cwd=tmp_path / "elsewhere",
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr
    told = json.loads(ended.stdout.splitlines()[-1])
    assert Path(told["mmray"]) == saved / "code" / "mmray" / "__init__.py"
    assert {"ray", "mmray.training", "mmray.pipeline"}.isdisjoint(told["modules"])

    session = onnxruntime.InferenceSession(onnx_file(tmp_path_factory.getbasetemp())[0])
    by_onnx = [
        session.run(None, {"images": pixels.transpose(2, 0, 1)[None]})[0][0]
        for pixels in (decode(content, longest_side=SIDE).pixels for content in photos())
    ]
    np.testing.assert_allclose(np.load(rows), expected, atol=1e-4)
    np.testing.assert_allclose(np.load(rows), np.array(by_onnx), atol=1e-4)


def test_a_model_is_saved_though_the_current_folder_is_gone(folder, tmp_path, monkeypatch):
    (tmp_path / "job").mkdir()
    monkeypatch.chdir(tmp_path / "job")
    (tmp_path / "job").rmdir()
    mlflow_model.save(Folder(str(folder)), tmp_path / "pyfunc", dims=8)
    assert (tmp_path / "pyfunc" / "MLmodel").exists()
    assert (tmp_path / "pyfunc" / "code" / "mmray" / "serving" / "encoder.py").exists()
    assert Path.cwd() == Path(mlflow_model.__file__).parents[2]


def test_a_registered_model_is_read_by_its_uri(folder, expected, tmp_path):
    storage = Folder(str(tmp_path))
    with (
        pytest.raises(InputError, match="no run has been made under --storage"),
        registry.model_folder("models:/birds@newest", storage=storage, uri=None),
    ):
        pass
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run = open_run(storage, uri=uri, experiment="e", name="n", identity="0", settings={})
    given, dims = Folder(str(folder)), expected.shape[1]
    options = {"dims": dims, "digest": "d"}
    assert registry.log_model(run, given, registered="birds", **options)
    for name in ("models:/birds@newest", "models:/birds/1", f"runs:/{run.run_id}/model"):
        with registry.model_folder(name, storage=storage, uri=None) as found:
            assert found.names() == given.names()
            rows = ImageEncoder.load(found).encode(photos())
        np.testing.assert_allclose(rows, expected, atol=2e-6)
    for name in ("models:/birds@oldest", "models:/wolves/1", "models:/x", "runs:/0/model"):
        with (
            pytest.raises(InputError, match=f"^--model {name}: MLflow at sqlite:.*no such model"),
            registry.model_folder(name, storage=storage, uri=None),
        ):
            pass
    with registry.model_folder(str(folder), storage=storage, uri=None) as found:
        assert found.uri == str(folder)


# Registering, ended at any moment


class Killed(BaseException):
    """A kill cannot be caught, so nothing catches this either."""


class KilledClient:
    """A client whose process is killed before or after it asks for one thing."""

    def __init__(self, client, request, after):
        self.client, self.request, self.after = client, request, after

    def __getattr__(self, name):
        asked = getattr(self.client, name)
        if name != self.request:
            return asked

        def killed(*arguments, **options):
            if self.after:
                asked(*arguments, **options)
            raise Killed

        return killed


REQUESTS = [
    *("create_logged_model", "log_model_artifacts", "finalize_logged_model", "log_outputs"),
    *("create_registered_model", "create_model_version", "set_registered_model_alias", "set_tag"),
]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Open runs in a database that is made once."""
    storage = Folder(str(tmp_path_factory.mktemp("registering")))

    def opened(name):
        options = {"experiment": "e", "name": name, "identity": name, "settings": {}}
        return open_run(storage, uri=default_uri(storage), **options)

    return opened


@pytest.fixture
def quick(monkeypatch):
    """Saving takes seconds; here it leaves one file."""

    def save(folder, target, **options):
        target.mkdir()
        (target / "MLmodel").write_text("complete")

    monkeypatch.setattr(registry, "save", save)


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("request_", REQUESTS)
def test_a_model_has_one_version_though_registering_was_killed(
    request_, after, runs, quick, folder
):
    run, name = runs(f"{request_}-{after}"), f"{request_}-{after}"
    options = {"dims": 8, "digest": "d", "registered": name}
    for _ in range(2):
        killed = Run(run.uri, run.run_id)
        killed.__dict__["client"] = KilledClient(run.client, request_, after)
        with contextlib.suppress(Killed):
            registry.log_model(killed, Folder(str(folder)), **options)
    registry.log_model(run, Folder(str(folder)), **options)
    assert registry.log_model(run, Folder(str(folder)), **options) is None
    (version,) = run.client.search_model_versions(f"name = '{name}'")
    assert run.client.get_model_version_by_alias(name, "newest").version == version.version
    known = run.client.get_run(run.run_id)
    (logged,) = run.client.search_logged_models(
        [known.info.experiment_id], filter_string=f"source_run_id = '{run.run_id}'"
    )
    assert [output.model_id for output in known.outputs.model_outputs] == [logged.model_id]
    assert (logged.status, version.source) == ("READY", f"models:/{logged.model_id}")
    (file,) = run.client.list_logged_model_artifacts(logged.model_id)
    assert file.path == "MLmodel"


def test_the_alias_stays_with_a_newer_version_of_another_run(runs, quick, folder):
    older, newer = runs("older"), runs("newer")
    options = {"dims": 8, "registered": "shared"}
    killed = Run(older.uri, older.run_id)
    killed.__dict__["client"] = KilledClient(older.client, "set_registered_model_alias", False)
    with pytest.raises(Killed):
        registry.log_model(killed, Folder(str(folder)), digest="a", **options)
    registry.log_model(newer, Folder(str(folder)), digest="b", **options)
    registry.log_model(older, Folder(str(folder)), digest="a", **options)
    newest = older.client.get_model_version_by_alias("shared", "newest")
    assert newest.run_id == newer.run_id
    assert len(older.client.search_model_versions("name = 'shared'")) == 2


def test_another_model_of_the_same_run_is_another_version(runs, quick, folder):
    run = runs("twice")
    for digest in ("a", "b"):
        registry.log_model(run, Folder(str(folder)), dims=8, digest=digest, registered="o'two")
    found = run.client.search_model_versions(f"run_id = '{run.run_id}'")
    assert sorted(int(version.version) for version in found) == [1, 2]
    assert int(run.client.get_model_version_by_alias("o'two", "newest").version) == 2


def test_a_model_is_found_in_a_storage_that_was_moved(folder, expected, tmp_path):
    old, new = Folder(str(tmp_path / "old")), Folder(str(tmp_path / "new place?"))
    options = {"experiment": "e", "name": "n", "identity": "0", "settings": {}}
    run = open_run(old, uri=default_uri(old), **options)
    given, dims = Folder(str(folder)), expected.shape[1]
    registry.log_model(run, given, dims=dims, digest="d", registered="birds")
    shutil.move(old.local, new.local)
    for name in ("models:/birds@newest", "models:/birds/1", f"runs:/{run.run_id}/model"):
        with registry.model_folder(name, storage=new, uri=None) as found:
            assert found.names() == given.names()
    assert not old.local.exists()


def test_the_newest_model_is_that_of_the_storage_and_of_the_experiment_in_it(
    quick, folder, tmp_path
):
    """Three people at one server, two of whom share a storage."""
    uri = f"sqlite:///{tmp_path / 'server.db'}"
    shared, own = Folder(str(tmp_path / "shared")), Folder(str(tmp_path / "it's own"))

    def learn(storage, experiment, name, server=uri):
        options = {"experiment": experiment, "name": "n", "settings": {}}
        run = open_run(storage, uri=server, identity=f"{experiment}-{name}", **options)
        registry.log_model(run, Folder(str(folder)), dims=8, digest=name, registered=name)

    def newest(storage, experiment, server=uri):
        return registry.newest_model(storage, uri=server, experiment=experiment)

    open_run(own, uri=uri, experiment="e", name="n", identity="0", settings={})
    with pytest.raises(InputError, match=r"^--model: no model .* name one: .*models:/NAME@newest"):
        newest(own, "alice")
    for storage, experiment, name in (
        (shared, "alice", "alice"),
        (shared, "bob/birds", "bob-birds"),
        (own, "alice", "alice"),
        (own, "alice", "typed"),
    ):
        learn(storage, experiment, name)
    assert newest(shared, "alice") == "models:/alice/1"  # 2 is of the other storage
    assert newest(shared, "bob/birds") == "models:/bob-birds/1"
    assert newest(shared, "carol") == "models:/bob-birds/1"
    assert newest(own, "alice") == "models:/alice/2"
    assert newest(own, "carol") == "models:/typed/1"
    # The database in a storage has no other's models: those of a storage that was moved count.
    with pytest.raises(InputError, match=r"^--model: no run has been made under --storage"):
        newest(own, "alice", None)
    learn(own, "alice", "before", default_uri(own))
    shutil.move(own.local, tmp_path / "moved")
    assert newest(Folder(str(tmp_path / "moved")), "alice", None) == "models:/before/1"
    with pytest.raises(InputError, match=r"^--model: MLflow at http://127.0.0.1:9 cannot be used"):
        newest(own, "alice", "http://127.0.0.1:9")


def test_a_server_that_is_not_there_is_said_in_a_sentence(tmp_path):
    storage, reading = Folder(str(tmp_path)), registry.model_folder
    with (
        pytest.raises(InputError, match=r"^--model models:/x/1: MLflow at http://127.0.0.1:9 can"),
        reading("models:/x/1", storage=storage, uri="http://127.0.0.1:9"),
    ):
        pass


def test_a_model_of_the_flat_package_is_loaded_by_this_one(folder, expected, tmp_path):
    """The folder is as MLflow kept it when mmray/serving.py was the loader, with its own code."""
    saved = tmp_path / "pyfunc"
    (saved / "data").mkdir(parents=True)
    shutil.copytree(folder, saved / "data" / "model")
    (saved / "code" / "mmray").mkdir(parents=True)
    (saved / "code" / "mmray" / "serving.py").write_text("raise ImportError('not this one')\n")
    (saved / "MLmodel").write_text(
        "flavors:\n"
        "  python_function:\n"
        "    loader_module: mmray.serving\n"
        "    data: data/model\n"
        "    code: code\n"
        "mlflow_version: 3.17.2\n"
    )
    with warnings.catch_warnings(action="ignore"):  # MLflow's, of a type of its own
        loaded = mlflow.pyfunc.load_model(str(saved))
    np.testing.assert_allclose(loaded.predict(photos()), expected, atol=2e-6)
