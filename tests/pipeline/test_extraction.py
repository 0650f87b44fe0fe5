"""The stages around the extraction: what is refused, and whitening block by block."""

import dataclasses

import numpy as np
import pytest

from mmray.config.presets import DEMO
from mmray.descriptors import moments
from mmray.descriptors.moments import Moments
from mmray.descriptors.weights import build
from mmray.descriptors.whitening import pca_whitening
from mmray.images.collection import Collection, ImageFile
from mmray.images.sources import list_images
from mmray.pipeline.session import Session
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages import extraction as feature_stages
from mmray.pipeline.stages.extraction import extract_stage, features_stage
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from tests.made import synthetic


class Descriptors:
    """Takes the place of images that are described."""

    poolings = ("rmac",)

    def __init__(self, features, folder):
        self.rows, self.stage = features, StageFolder.of(folder, "extract", "x")
        self.items = Collection.of([ImageFile(uri="", name=str(i)) for i in range(len(features))])

    def features(self, pooling):
        assert pooling == "rmac"
        return self.rows


def session(tmp_path, **extraction):
    config = dataclasses.replace(
        DEMO, extraction=dataclasses.replace(DEMO.extraction, **extraction)
    )
    return Session(config, Folder(str(tmp_path / "runs")), synthetic.SilentRun(), ("extract",))


@pytest.mark.parametrize("block", [3, 1000])
def test_features_are_whitened_block_by_block_as_by_the_core(tmp_path, monkeypatch, block):
    monkeypatch.setattr(moments, "_BLOCK", block)
    rows = synthetic.clouds(1, 50, 6)
    described = Descriptors(rows, Folder(str(tmp_path)))
    source = features_stage(session(tmp_path, pca=4), described)
    np.testing.assert_allclose(source.load(), pca_whitening(rows).apply(rows, 4), atol=1e-6)
    assert source.count == 50
    plain = features_stage(session(tmp_path), described)
    np.testing.assert_array_equal(plain.load(), rows)
    assert len({source.fingerprint, plain.fingerprint}) == 2


def test_regions_that_cannot_be_learned_from_are_an_error(tmp_path, monkeypatch):
    synthetic.save_noise(tmp_path, 12, [(8, 8)])
    monkeypatch.setattr(feature_stages.cluster, "with_gpus", lambda pool: pool)
    monkeypatch.setattr(
        feature_stages, "sum_up_regions", lambda images, model, **options: Moments.none(3)
    )
    model = build("efficientnet_lite0", pooling="mac")
    images = Collection.of(list_images(str(tmp_path)))
    with pytest.raises(InputError, match=r"region-whitening: none of the 12 images .*00\.png"):
        extract_stage(session(tmp_path, region_whitening=True), model, images)
