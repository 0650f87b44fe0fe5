"""Stages of earlier versions stay done: what fingerprints are made of keeps its names and values.

The digits are of the code before fields were renamed and merged. Where a change is meant, say in
CHANGELOG.md which stages are computed again.
"""

import dataclasses

import pytest

from mmray.config.presets import FINEGRAINED_PRESETS, changed, preset
from mmray.config.run import identity_of, stored
from mmray.descriptors.regions import Rmac
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.mining.pools import MiningMethod
from mmray.pipeline.stage import fingerprint
from mmray.pipeline.stages.labelled_descriptors import class_set_settings, labelled_set_settings
from mmray.pipeline.stages.training import trajectory

# Fine-grained learning cut its crops from smaller images.
SMALLER = {
    "extraction": {"enlarge": False},
    "training": {"crop_scale": (0.2, 1.0), "resize_size": None},
}
SIDES = {
    "demo": {"training": {"longest_side": 160}},
    "finegrained": {"training": {"longest_side": 256, "crop_size": 224}},
}
BIRDS = {name: changed(c, SMALLER, SIDES[name]) for name, c in FINEGRAINED_PRESETS.items()}
# The recipe `steady` was the default, and an epoch of the demonstration had fewer tuples.
FEWER = {"training": {"anchors_per_epoch": 60}}
DEMO, RETRIEVAL = changed(preset("demo", "steady"), FEWER), preset("retrieval", "steady")
KNOWN = [
    (DEMO, "c06b55ee9f89", "6de9f5b0cfe3", "bfd4c2c819f6", "ced3c5f8b769", "6de9f5b0cfe3"),
    (RETRIEVAL, "a82a37dd0d0e", "88f636049e0b", "85b94e0e08df", "777ff8dedbf5", "7b16fe0000dd"),
    (
        preset("retrieval", "paper"),
        *("56e9111a66e5", "88f636049e0b", "22d752ff60bc", "719c62ca8990", "7b16fe0000dd"),
    ),
    (BIRDS["demo"], "d928d72977df", "4ade8aab7c04", "393854d2d674", "875cc3e68b86", "149dd73b02aa"),
    (
        BIRDS["finegrained"],
        *("7b24eca0ef06", "a15810cd854f", "226fe48a039f", "a06ce7804fa0", "617010176e27"),
    ),
]


@pytest.mark.parametrize(("config", "run", "features", "method", "training", "tested"), KNOWN)
def test_fingerprints_are_those_of_earlier_versions(
    config, run, features, method, training, tested
):
    assert fingerprint(stored(identity_of(config))) == run
    extraction = config.extraction
    settings = dataclasses.replace(
        DescriptorSettings.of(
            extraction,
            Preprocessing(extraction.longest_side, scales=extraction.scales),
            extraction.poolings,
        ),
        regions=Rmac(whole=extraction.rmac_whole),
    )
    assert fingerprint(settings.stored()) == features
    assert fingerprint(MiningMethod.of(config.mining, seed=7).stored()) == method
    carried_out = {"workers": 3, "micro_batch_size": 2, "monitor_every": 4}
    assert fingerprint(trajectory(dataclasses.replace(config.training, **carried_out))) == training
    assert trajectory(dataclasses.replace(config.training, gem_rate=10.0))["gem_rate"] == 10
    of_sets = class_set_settings if config.kind == "finegrained" else labelled_set_settings
    assert fingerprint(of_sets(config).stored()) == tested


def test_the_preprocessing_that_a_model_s_folder_keeps_is_that_of_earlier_versions():
    kept = [labelled_set_settings(c) for c in (DEMO, RETRIEVAL)]
    kept += [class_set_settings(c) for c in BIRDS.values()]
    assert [fingerprint(each.preprocessing.stored()) for each in kept] == [
        *("7d9304ce0959", "f42bb6fe6579", "fed062b576db", "e4d5dda9d535"),
    ]
