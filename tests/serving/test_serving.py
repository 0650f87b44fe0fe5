"""The registered model behind MLflow's REST server: images in, and no files of the server out."""

import asyncio
import base64
import itertools
import json
import os
import warnings
from pathlib import Path

import mlflow
import numpy as np
import pandas as pd
import pytest

from mmray.pipeline import mlflow_model
from mmray.serving import pyfunc
from mmray.serving.encoder import ImageEncoder
from mmray.serving.pyfunc import ROOT
from mmray.system.folder import Folder
from tests.made.exported import model_folder, photos

with warnings.catch_warnings(action="ignore"):  # MLflow's, of a type of its own
    from mlflow.pyfunc import scoring_server

MARK = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"
REFUSED = (
    "image 1 of 1: not an image, or not one that this server may read; send the content of an "
    "image file in base64, or a path below the folder that MMRAY_SERVING_ROOT names where the "
    "server runs"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return model_folder(tmp_path_factory.getbasetemp())


@pytest.fixture(scope="module")
def expected(folder) -> np.ndarray:
    return ImageEncoder.load(folder).encode(photos())


@pytest.fixture(scope="module")
def model(folder, tmp_path_factory):
    saved = tmp_path_factory.mktemp("served") / "pyfunc"
    mlflow_model.save(Folder(str(folder)), saved, dims=ImageEncoder.load(folder).net.dim)
    # With the code of this checkout, not the copy: modules are loaded already.
    with warnings.catch_warnings(action="ignore"):
        return mlflow.pyfunc.load_model(str(saved))


async def answer(app, content, content_type):
    """Post a request to an ASGI application: status and body."""
    sent = []

    async def receive():
        return {"type": "http.request", "body": content}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "http_version": "1.1", "method": "POST", "path": "/invocations"}
    scope |= {"query_string": b"", "headers": [(b"content-type", content_type.encode())]}
    await app(scope, receive, send)
    return sent[0]["status"], b"".join(message.get("body", b"") for message in sent[1:])


@pytest.fixture
def ask(model, monkeypatch):
    """Post a request to the server: its status, and the rows or the message."""
    monkeypatch.delenv(ROOT, raising=False)
    monkeypatch.setenv(MARK, "false")  # which the server sets; restored afterwards
    app = scoring_server.init(model)

    def post(payload, content_type="application/json"):
        content = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        status, body = asyncio.run(answer(app, content, content_type))
        told = json.loads(body)
        return status, (
            np.array(told["predictions"], np.float32) if status == 200 else told["message"]
        )

    return post


def as_text(content: bytes) -> str:
    return base64.b64encode(content).decode()


@pytest.fixture
def files(tmp_path) -> Path:
    """A folder with a photo, beside which another lies that nobody is to see."""
    root = tmp_path / "root"
    (root / "sub").mkdir(parents=True)
    for path in (root / "a b.png", root / "sub" / "b.png", tmp_path / "secret.png"):
        path.write_bytes(photos()[0])
    (tmp_path / "root2").mkdir()
    (tmp_path / "root2" / "c.png").write_bytes(photos()[0])
    (root / "notes.txt").write_text("not an image")
    (root / "cut.png").write_bytes(photos()[0][:200])
    (root / "out.png").symlink_to(tmp_path / "secret.png")
    (root / "in.png").symlink_to(root / "a b.png")
    (root / "up").symlink_to(tmp_path)
    (root / "itself.png").symlink_to("itself.png")
    return root


def test_contents_of_files_are_taken_in_every_form_of_a_request(ask, expected):
    texts = [as_text(content) for content in photos()]
    starts = ("data:image/png;base64,", "DATA:image/PNG;Base64,")
    uris = [start + text for start, text in zip(itertools.cycle(starts), texts, strict=False)]
    lines = ["\n".join([text[:50], text[50:]]) for text in texts]
    for images in (texts, uris, lines):
        for payload in (
            {"inputs": images},
            {"dataframe_split": {"columns": ["image"], "data": [[image] for image in images]}},
            {"dataframe_records": [{"any name": image} for image in images]},
        ):
            status, rows = ask(payload)
            assert status == 200, rows
            np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_a_table_of_bytes_is_taken(ask, expected, tmp_path):
    pd.DataFrame({"image": photos()}).to_parquet(tmp_path / "t.parquet")
    content = (tmp_path / "t.parquet").read_bytes()
    status, rows = ask(content, "application/vnd.apache.parquet")
    assert status == 200, rows
    np.testing.assert_allclose(rows, expected, atol=2e-6)


def test_without_a_root_no_file_is_read_and_all_answers_are_the_same(ask, files, monkeypatch):
    monkeypatch.chdir(files)
    names = [
        *(str(files / "a b.png"), "a b.png", (files / "a b.png").as_uri(), "/absent.png"),
        *("/etc/passwd", "s3://bucket/a.png", "abfs://c@account/x", "https://host/x.png", ""),
        *(str(files), "/dev/zero", "a\0b", "~/x.png", as_text(b"no image " * 10)),
    ]
    for name in names:
        assert ask({"inputs": [name]}) == (400, REFUSED), name
    assert ask({"inputs": [as_text(photos()[0]), "x.png"]}) == (
        400,
        REFUSED.replace("image 1 of 1", "image 2 of 2"),
    )


@pytest.mark.parametrize("root", ["{}", "{}/", "{}/../root", "file://{}"])
def test_below_the_root_images_are_read_and_nothing_else(ask, files, monkeypatch, root, expected):
    monkeypatch.setenv(ROOT, root.format(files))
    monkeypatch.chdir(files.parent)
    for name in ("a b.png", str(files / "sub" / "b.png"), (files / "a b.png").as_uri(), "in.png"):
        status, rows = ask({"inputs": [name]})
        assert status == 200, (name, rows)
        np.testing.assert_allclose(rows, expected[:1], atol=2e-6)
    refused = [
        *("absent.png", "notes.txt", "cut.png", "sub", "", ".", "../secret.png", "out.png"),
        *(
            "up/secret.png",
            "itself.png",
            "itself.png/a",
            "sub/../../secret.png",
            str(files.parent / "secret.png"),
        ),
        *(str(files.parent / "root2" / "c.png"), "../root2/c.png", "/etc/passwd", "root/a b.png"),
        *((files.parent / "secret.png").as_uri(), f"file://host{files}/a%20b.png"),
        *(f"file://{files}/%2e%2e/secret.png", "s3://bucket/a.png", "a\0b", "abfs://x/y"),
    ]
    for name in refused:
        assert ask({"inputs": [name]}) == (400, REFUSED), name


def test_below_a_root_in_a_bucket_only_its_objects_are_read(ask, bucket, monkeypatch, expected):
    monkeypatch.setenv(ROOT, "s3://bucket/photos?region=r")
    (bucket / "photos" / "x y").mkdir(parents=True)
    (bucket / "photos" / "x y" / "a.png").write_bytes(photos()[0])
    (bucket / "photosecret.png").write_bytes(photos()[0])
    (bucket / "photos" / "notes.txt").write_bytes(b"no image")
    for name in ("x y/a.png", "s3://bucket/photos/x%20y/a.png", "S3://bucket/photos/x y/a.png"):
        status, rows = ask({"inputs": [name]})
        assert status == 200, (name, rows)
        np.testing.assert_allclose(rows, expected[:1], atol=2e-6)
    refused = [
        *("absent.png", "notes.txt", "../photosecret.png", "s3://bucket/photosecret.png"),
        *("s3://bucket/photos/../photosecret.png", "s3://bucket/photos/%2E%2E/photosecret.png"),
        *(
            "s3://bucket/photos/x y/a.png?endpoint_override=host",
            "s3://k:s@bucket/photos/x y/a.png",
        ),
        *("s3://other/photos/x y/a.png", "gs://bucket/photos/x y/a.png", "/etc/passwd", ""),
        *(str(bucket / "photos" / "x y" / "a.png"), "file:///etc/passwd"),
    ]
    for name in refused:
        assert ask({"inputs": [name]}) == (400, REFUSED), name


def test_other_input_is_answered_with_a_sentence(ask, monkeypatch):
    monkeypatch.setattr(pyfunc, "LARGEST", 500)
    good, large = as_text(photos()[0]), as_text(photos()[0] + bytes(1000))
    cases = [
        ({"inputs": [3]}, "image 1 of 1: int is not an image, or not one that this server may"),
        ({"inputs": [None]}, "image 1 of 1: NoneType is not an image"),
        ({"inputs": ["data:image/png;base64,a?"]}, "data:image/png;base64,a?...: not an image in"),
        ({"inputs": ["data:image/png,abc"]}, "data:image/png: not an image: write data:image"),
        ({"inputs": [f"data:image/png;base64,{as_text(b'x')}"]}, "image 1 of 1: cannot be read as"),
        ({"inputs": [large]}, f"image 1 of 1: {len(photos()[0]) + 1000:,} bytes; send an image of"),
        ({"inputs": [good], "params": {"longest_side": -1}}, "longest_side is -1: choose a whole"),
    ]
    monkeypatch.setattr(pyfunc, "LARGEST", len(photos()[0]))
    for payload, beginning in cases:
        status, message = ask(payload)
        assert (status, message[: len(beginning)]) == (400, beginning)


def test_in_a_program_of_one_s_own_paths_are_read_unless_a_root_is_set(
    model, files, monkeypatch, expected
):
    monkeypatch.delenv(ROOT, raising=False)
    assert os.environ.get(MARK, "false") == "false"
    secret = str(files.parent / "secret.png")
    np.testing.assert_allclose(model.predict([secret]), expected[:1], atol=2e-6)
    for root in ("", str(files)):
        monkeypatch.setenv(ROOT, root)
        with pytest.raises(mlflow.MlflowException, match="1: not an image, or not"):
            model.predict([secret])
    np.testing.assert_allclose(model.predict(["a b.png"]), expected[:1], atol=2e-6)
