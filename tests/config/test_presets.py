"""Presets hold the paper's values; what is impossible is refused by its flag."""

from dataclasses import replace

import pytest

from mmray.config.learning import FINEGRAINED_STAGES, FinegrainedConfig, chosen_stages
from mmray.config.presets import (
    DEMO,
    EVALUATE,
    FINEGRAINED_ABLATIONS,
    FINEGRAINED_PRESETS,
    MINE_PRESETS,
    PRESETS,
    RECIPES,
    RETRIEVAL,
    STEADY,
    departures,
    departures_told,
    preset,
    with_defaults,
)
from mmray.config.run import settings
from mmray.config.tools import EvaluateJobConfig, IndexConfig, MineConfig, QueryConfig
from mmray.config.validation import validate
from mmray.system.errors import InputError
from mmray.training.optimization import learning_rate


def test_the_paper_s_recipe_has_the_paper_s_values():
    paper = preset("retrieval", "paper")
    mining, training = paper.mining, paper.training
    assert (mining.graph_k, mining.alpha, mining.power) == (30, 0.99, 3)
    assert (mining.positive_k, mining.negative_k, mining.max_negatives) == (50, 10_000, 50)
    assert (mining.rtol, mining.max_iter, mining.component) == (1e-10, 20, "largest")
    assert (mining.selection, mining.anchors, mining.positive_cut) == ("walk", 1500, 0)
    assert (training.epochs, training.batch_size, training.anchors_per_epoch) == (30, 5, 1000)
    assert (training.learning_rate, training.momentum, training.weight_decay) == (1e-2, 0.9, 5e-4)
    assert (training.schedule, training.decay, training.decay_epochs) == ("step", 0.1, 10)
    assert (training.weighted, training.normalized_weights) == (True, False)
    assert (training.clip_norm, training.warmup_epochs, training.precision) == (None, 0, "float32")
    assert (training.optimizer, training.keep, training.patience) == ("sgd", "last", None)
    assert (training.positives, training.negatives, training.top_positives) == (1, 1, None)
    assert (training.loss, training.margin, training.held_out) == ("contrastive", None, 0)
    assert (training.longest_side, training.hard_negatives) == (362, 10)
    extraction = paper.extraction
    assert (extraction.longest_side, extraction.scales, extraction.pca) == (362, (1.0,), None)
    assert (extraction.rmac_whole, extraction.region_whitening) == (True, False)
    assert paper.network == "vgg16"
    assert paper.evaluation.longest_side == 1024


def test_a_preset_is_the_paper_s_values_then_the_recipe_s_then_its_own_sizes():
    assert preset("retrieval", "auto") == RETRIEVAL
    assert RETRIEVAL.training.loss == STEADY["training"]["loss"] == "triplet"
    assert (RETRIEVAL.mining.sizes, RETRIEVAL.mining.component) == ((None,) * 3, "all")
    steady = preset("retrieval", "steady").mining
    assert (steady.graph_k, steady.positive_k, steady.component) == (10, 20, "largest")
    assert RETRIEVAL.training.momentum == preset("retrieval", "paper").training.momentum
    assert DEMO.training.longest_side == 192
    assert DEMO.training.loss == "triplet"
    assert DEMO.mining.sizes == (None,) * 3
    assert preset("demo", "paper").mining.sizes == (5, 8, 100)
    assert preset("demo", "paper").training.learning_rate == 1e-2


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_possible_and_know_their_name(name, recipe):
    tuples = "tuples.pkl" if recipe == "supervised" else None
    validate(replace(preset(name, recipe), images=("photos",), tuples=tuples))
    assert PRESETS[name].preset == name


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("mining", {"alpha": 1.0}, r"--mining.alpha 1.0: .* from 0 to 0.999999"),
        ("mining", {"alpha": float("nan")}, r"--mining.alpha nan"),
        ("mining", {"positive_k": 0}, r"--mining.positive-k 0"),
        ("training", {"batch_size": 0}, r"--training.batch-size 0"),
        ("training", {"learning_rate": -1.0}, r"--training.learning-rate -1"),
        ("extraction", {"poolings": ()}, r"--extraction.poolings is empty"),
        (
            "extraction",
            {"poolings": ("embedding", "mac")},
            r"--extraction.poolings embedding: .* alo",
        ),
        ("training", {"mean_of_pairs": True}, r"--training.mean-of-pairs: triplet has no terms of"),
        ("training", {"crop_scale": (0.5, 0.2)}, r"--training.crop-scale 0.5 0.2: give the least"),
        ("training", {"resize_size": 223}, r"--training.resize-size 223 is below .*crop-size 224"),
        ("extraction", {"scales": ()}, r"--extraction.scales is empty"),
        ("extraction", {"scales": (1.0, 0.0)}, r"--extraction.scales 0.0: .* from 0.05 to 4"),
        ("extraction", {"scales": (float("nan"),)}, r"--extraction.scales nan"),
        (
            "extraction",
            {"poolings": ("mac",), "region_whitening": True},
            r"--extraction.region-whitening: only rmac",
        ),
        ("extraction", {"pca": 0}, r"--extraction.pca 0"),
        ("extraction", {"max_pixels": 0}, r"--extraction.max-pixels 0"),
        ("", {"sample": 0}, r"--sample 0"),
        ("", {"budget": "30"}, r"--budget '30': give a number above 0 with s, m, h or d"),
        ("", {"budget": "0h"}, r"--budget '0h'"),
        ("", {"budget": "-1h"}, r"--budget '-1h'"),
        ("", {"budget": "nanh"}, r"--budget 'nanh'"),
        ("evaluation", {"poolings": ("mac", "mac")}, r"--evaluation.poolings names mac twice"),
        ("evaluation", {"ground_truth": "y"}, r"--evaluation.ground-truth needs --evaluation.im"),
        ("evaluation", {"benchmark": ("instre",)}, r"--evaluation.benchmark needs --evaluation.da"),
        ("evaluation", {"dims": 0}, r"--evaluation.dims 0"),
        ("evaluation", {"search": ()}, r"--evaluation.search is empty"),
        ("evaluation", {"images": "x", "ground_truth": "y"}, r"--images is missing"),
        ("", {"preset": "retrieval"}, r"--images is missing"),
        ("", {"seed": -1}, r"--seed -1"),
        (
            "training",
            {"validation_items": 0},
            r"validation-items 0: .*--training.keep last --training.pat",
        ),
        (
            "training",
            {"validation_items": 0, "keep": "last"},
            r"validation-items 0: .*patience None",
        ),
        ("training", {"gem_rate": -1.0}, r"--training.gem-rate -1"),
        ("training", {"gem_rate": 10.0}, r"--training.gem-rate 10: mac has no exponent .*ing gem"),
        ("training", {"micro_batch_size": 0}, r"--training.micro-batch-size 0: .* from 1"),
        (
            "training",
            {"micro_batch_size": 2, "loss": "infonce"},
            r"--training.micro-batch-size 2: with --training.loss infonce .*None, and lower --tr",
        ),
        ("", {"min_workers": 3, "max_workers": 2}, r"--max-workers 2 is below --min-workers 3"),
        ("", {"stages": "extract,grph"}, r"no stage 'grph'; choose from extract,graph,mine"),
        ("", {"stages": " , "}, r"--stages is empty"),
        ("", {"registered_model": "birds/2"}, r"--registered-model 'birds/2': MLflow takes no /"),
        ("", {"registered_model": ".."}, r"--registered-model '..'"),
        ("", {"registered_model": "x" * 300}, r"--registered-model .* at most 250"),
    ],
)
def test_an_impossible_setting_is_named_with_what_is_allowed(section, values, message):
    config = (
        replace(DEMO, **{section: replace(getattr(DEMO, section), **values)})
        if section
        else replace(DEMO, **values)
    )
    with pytest.raises(InputError, match=message):
        validate(config)


CLASSES = FINEGRAINED_PRESETS["demo"]


@pytest.mark.parametrize(
    ("config", "flag"),
    [
        (replace(DEMO, images=("",)), "--images"),
        (replace(DEMO, images=("photos", " ")), "--images"),
        (replace(DEMO, images=("photos",), exclude=""), "--exclude"),
        (replace(DEMO, images=("photos",), weights=""), "--weights"),
        (replace(DEMO, tuples=""), "--tuples"),
        (replace(DEMO, storage=""), "--storage"),
        (replace(DEMO, evaluation=replace(DEMO.evaluation, images="")), "--evaluation.images"),
        (replace(CLASSES, test=replace(CLASSES.test, images="")), "--test.images"),
        (replace(EVALUATE, model=("vgg16", ""), images="x"), "--model"),
        (replace(EVALUATE, model=("vgg16",), images=""), "--images"),
        (IndexConfig(images=("photos",), model=""), "--model"),
        (IndexConfig(images=("photos",), image_column=""), "--image-column"),
        (MineConfig(features=""), "--features"),
        (MineConfig(features="x.npy", labels=""), "--labels"),
    ],
)
def test_an_empty_value_is_refused_by_the_name_of_its_flag(config, flag):
    with pytest.raises(InputError, match=f"^{flag} is missing"):
        validate(config)


def test_a_model_has_the_name_of_its_experiment_or_the_one_that_was_typed_or_none():
    for experiment, typed, name in (
        ("mmray", None, "mmray"),
        ("team: Ann/birds.v2", None, "team--Ann-birds-v2"),
        ("x" * 300, None, "x" * 100),
        ("mmray", "birds v2", "birds v2"),
        ("mmray", "", None),
    ):
        config = replace(DEMO, experiment=experiment, registered_model=typed)
        validate(config)
        assert config.model_name == name


def test_an_index_has_the_name_of_its_experiment_or_the_one_that_was_typed():
    for name, index in ((None, "Ann-s"), ("birds", "birds")):
        config = IndexConfig(images=("photos",), experiment="Ann's", name=name)
        validate(config)
        assert config.index_name == index
        assert QueryConfig(query=("x",), experiment="Ann's", name=name).index_name == index


MEASURED = replace(EVALUATE, model=("vgg16",), images="x")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": ()}, r"^--model is missing"),
        ({"images": None}, r"^--benchmark and --images are missing"),
        ({"images": None, "ground_truth": "y"}, r"^--ground-truth needs --images"),
        ({"benchmark": ("instre",)}, r"^--benchmark needs --data"),
        ({"benchmark": ("instre", "instre"), "data": "d"}, r"^--benchmark names instre twice"),
        ({"search": ("aqe", "aqe")}, r"^--search names aqe twice"),
        ({"poolings": ()}, r"^--poolings is empty"),
        ({"scales": (9.0,)}, r"^--scales 9.0: .* from 0.05 to 4"),
        ({"longest_side": 8}, r"^--longest-side 8: .* from 32"),
        ({"dims": 0}, r"^--dims 0"),
        ({"shard_size": 0}, r"^--shard-size 0"),
    ],
)
def test_the_job_that_measures_alone_names_its_flags_without_a_section(values, message):
    validate(MEASURED)
    with pytest.raises(InputError, match=message):
        validate(replace(MEASURED, **values))


def test_without_the_check_training_runs_to_its_last_epoch():
    training = replace(DEMO.training, validation_items=0, keep="last", patience=None)
    validate(replace(DEMO, training=training))


def test_the_supervised_recipe_has_the_values_of_its_paper():
    training = preset("retrieval", "supervised").training
    assert (training.loss, training.margin, training.weighted) == ("contrastive", 0.7, False)
    assert (training.positives, training.negatives, training.hard_negatives) == (1, 5, 5)
    assert (training.anchors_per_epoch, training.negative_pool) == (2000, 22_000)
    assert (training.epochs, training.batch_size, training.mean_of_pairs) == (90, 5, True)
    assert (training.optimizer, training.momentum, training.weight_decay) == ("sgd", 0.9, 5e-4)
    assert (training.keep, training.patience, training.validation_items) == ("last", None, 0)
    assert (training.average, training.held_out, training.longest_side) == (False, 0, 362)
    for third in range(90):  # of an epoch: negatives are mined three times in each
        rate = learning_rate(
            third + 0.5,
            base=training.learning_rate,
            schedule=training.schedule,
            epochs=training.epochs,
            decay=training.decay,
            decay_epochs=training.decay_epochs,
            warmup_epochs=training.warmup_epochs,
        )
        assert rate == pytest.approx(1e-3 / 5 ** (third // 3 // 10))


def test_a_baseline_with_a_loss_of_whole_batches_takes_no_micro_batches():
    config = replace(CLASSES, baseline="proxy-nca")
    validate(config)
    validate(replace(CLASSES, training=replace(CLASSES.training, micro_batch_size=2)))
    refused = replace(config, training=replace(CLASSES.training, micro_batch_size=2))
    with pytest.raises(InputError, match=r"micro-batch-size 2: with --baseline proxy-nca the loss"):
        validate(refused)


SUPERVISED = replace(preset("retrieval", "supervised"), images=("ims",), tuples="tuples.pkl")


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("", {"tuples": None}, "--recipe supervised needs --tuples"),
        ("", {"recipe": "steady"}, "--recipe steady: with --tuples .*leave it at supervised"),
        ("", {"images": ("a", "b")}, "--images names 2 sources: with --tuples name one"),
        ("", {"rounds": 2}, "--rounds 2: with --tuples nothing is mined.* leave it at 1"),
        ("", {"near_duplicates": "one"}, "--near-duplicates one: with --tuples nothing is mined"),
        ("", {"exclude": "names.txt"}, "--exclude names.txt: with --tuples"),
        ("", {"sample": 9}, "--sample 9: with --tuples"),
        ("", {"image_column": "x"}, "--image-column x: with --tuples"),
        ("", {"stages": "extract,graph,mine"}, "the stages are train, whiten and evaluate"),
        ("training", {"positives": 2}, "--training.positives 2: with --tuples"),
        ("training", {"held_out": 0.1}, "--training.held-out 0.1: with --tuples"),
        ("training", {"validation_items": 9}, "--training.validation-items 9: .*no graph.*at 0"),
        ("training", {"validation_items": 9, "keep": "best"}, "--training.validation-items 9"),
        ("training", {"keep": "best"}, "keep last"),
        ("training", {"patience": 3}, "patience None"),
        ("training", {"negative_pool": 1}, "--training.negative-pool 1"),
        ("evaluation", {"pool_labels": "x.csv"}, "--evaluation.pool-labels x.csv: with --tuples"),
    ],
)
def test_what_a_file_of_tuples_cannot_do_is_refused(section, values, message):
    validate(SUPERVISED)
    if section:
        values = {section: replace(getattr(SUPERVISED, section), **values)}
    with pytest.raises(InputError, match=message):
        validate(replace(SUPERVISED, **values))


def test_stages_keep_the_order_of_the_pipeline():
    assert chosen_stages(replace(DEMO, stages="mine, extract")) == ("extract", "mine")


def test_settings_are_flat_and_named_as_flags():
    flat = settings(DEMO)
    assert flat["mining.alpha"] == 0.99
    assert flat["network"] == "efficientnet_lite0"
    assert not any(isinstance(value, dict) for value in flat.values())


def test_fine_grained_learning_takes_the_papers_values():
    """Sec. 4.2 and 4.3, as DESIGN lists them; the recipe `paper` changes nothing of them."""
    paper = with_defaults(FinegrainedConfig(preset="finegrained", recipe="paper"))
    mining, training, extraction = paper.mining, paper.training, paper.extraction
    assert (paper.network, paper.dim) == ("googlenet", 64)
    assert extraction.scales == (1.0, 2**-0.5, 0.5)
    assert (extraction.longest_side, extraction.poolings, extraction.pca) == (512, ("rmac",), 512)
    assert (mining.component, mining.selection, mining.anchors) == ("all", "all", None)
    assert (mining.graph_k, mining.positive_k, mining.negative_k) == (30, 50, 100)
    assert (training.loss, training.margin, training.weighted) == ("triplet", None, True)
    assert (training.epochs, training.batch_size, training.learning_rate) == (100, 42, 1e-2)
    assert (training.augmentation, training.keep) == ("crop", "last")
    assert (training.crop_size, training.resize_size) == (227, 256)
    assert (training.longest_side, training.crop_scale) == (512, (0.08, 1.0))
    assert extraction.enlarge
    assert MINE_PRESETS["finegrained"].mining.negative_k == mining.negative_k


def test_settings_that_are_not_the_papers_are_told_with_its_values():
    for config in (
        preset("retrieval", "paper"),
        with_defaults(FinegrainedConfig(preset="finegrained", recipe="paper")),
        replace(preset("retrieval", "paper"), images=("photos",), seed=3, storage="there"),
    ):
        assert departures(config) == []
    released = with_defaults(FinegrainedConfig(preset="finegrained", recipe="released"))
    assert departures(released) == [
        "--network bvlc_googlenet (googlenet)",
        "--training.decay-epochs 50 (10)",
        "--training.dampening 0.9 (0)",
        "--head random-raw (pca)",
    ]
    smaller = replace(preset("retrieval", "paper").training, longest_side=192, workers=3)
    config = replace(preset("retrieval", "paper"), training=smaller)
    assert departures(config) == ["--training.longest-side 192 (362)"]
    told = "Settings (the paper's): "
    assert departures_told(config) == f"{told}--training.longest-side 192 (362)."
    assert departures_told(preset("retrieval", "paper")) == f"{told}as in the paper."
    ablation = FINEGRAINED_ABLATIONS["finegrained"]
    assert "--training.learning-rate 0.0003 (0.01)" in departures(ablation)
    measured = EvaluateJobConfig(longest_side=512, scales=(1.0, 0.5), max_workers=2)
    assert departures(measured) == ["--longest-side 512 (1024)", "--scales 1 0.5 (1)"]
    assert departures_told(EvaluateJobConfig(benchmark=("oxford5k",))) == f"{told}as in the paper."


def test_fine_grained_learning_is_steady_by_default():
    steady = FINEGRAINED_PRESETS["finegrained"]
    assert (steady.recipe, steady.training.keep, steady.training.average) == (
        "steady",
        "best",
        True,
    )
    assert (steady.mining.graph_k, steady.mining.positive_k) == (10, 20)
    assert steady.mining.selection == "all"
    assert FINEGRAINED_PRESETS["demo"].network == "efficientnet_lite0"


def test_only_the_stages_of_the_application_exist():
    assert chosen_stages(FINEGRAINED_PRESETS["demo"]) == FINEGRAINED_STAGES
    with pytest.raises(InputError, match="no stage 'whiten'"):
        chosen_stages(replace(FINEGRAINED_PRESETS["demo"], stages="mine,whiten"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"network": "vgg17"}, r"^--network vgg17: choose from vgg16, .*, or write timm:NAME"),
        (
            {"network": "vgg16:own.pth"},
            r"^--network vgg16:own\.pth: write --network vgg16 --weights own\.pth$",
        ),
        ({"feature_network": "dino"}, r"^--feature-network dino: choose from vgg16"),
    ],
)
def test_a_network_that_is_none_is_refused_before_anything_is_loaded(changes, said):
    validate(replace(DEMO, network="timm:resnet50", feature_network="vgg16:own.pth"))
    with pytest.raises(InputError, match=said):
        validate(replace(DEMO, **changes))
