"""Settings are read from a file as from flags, and what a run writes repeats it."""

from dataclasses import replace
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from mmray.config.bounds import Between, annotated_fields
from mmray.config.command_line import given_value
from mmray.config.command_line import parse as parse_for
from mmray.config.presets import (
    DEMO,
    EVALUATE,
    FINEGRAINED_ABLATIONS,
    FINEGRAINED_PRESETS,
    FINEGRAINED_RECIPES,
    MINE_PRESETS,
    PRESETS,
    RECIPES,
    RETRIEVAL_ABLATIONS,
    preset,
    with_defaults,
)
from mmray.config.run import identity_of, stored
from mmray.config.settings_file import SettingsFile, settings_text
from mmray.config.tools import IndexConfig
from mmray.config.validation import validate
from mmray.system.errors import InputError

FINEGRAINED = [
    with_defaults(replace(config, recipe=recipe))
    for config in FINEGRAINED_PRESETS.values()
    for recipe in FINEGRAINED_RECIPES
]
JOBS = [  # presets, and settings of the same job
    *((PRESETS, preset(name, recipe)) for name in PRESETS for recipe in RECIPES),
    *((FINEGRAINED_PRESETS, config) for config in FINEGRAINED),
    *((MINE_PRESETS, config) for config in MINE_PRESETS.values()),
    *((FINEGRAINED_ABLATIONS, config) for config in FINEGRAINED_ABLATIONS.values()),
    *((RETRIEVAL_ABLATIONS, config) for config in RETRIEVAL_ABLATIONS.values()),
    ({"": EVALUATE}, replace(EVALUATE, model=("vgg16",), images="x")),
    ({"": IndexConfig()}, IndexConfig(images=("a", "b"), longest_side=64)),
]


@pytest.fixture
def written(tmp_path):
    def write(text):
        path = tmp_path / "run.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


@pytest.fixture
def parsed(written):
    def parse(text, *flags, presets=PRESETS):
        return parse_for(presets, ["--config", written(text), *flags], "")

    return parse


@pytest.mark.parametrize(("presets", "config"), JOBS)
def test_what_a_run_writes_repeats_it(presets, config, parsed):
    again = parsed(settings_text(config, run="a-1"), presets=presets)
    assert replace(again, config=None) == config
    assert stored(identity_of(again)) == stored(identity_of(config))


def _values(hint: Any, bounds: list[Between]) -> st.SearchStrategy[Any]:
    low, high = (bounds[0].low, bounds[0].high) if bounds else (-1e9, 1e9)
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(parts)
    if origin is tuple:
        inner = _values(parts[0], bounds)
        return st.tuples(inner, inner) if parts[-1] is not Ellipsis else st.lists(inner).map(tuple)
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.integers(int(low), int(high))
    if hint is float:
        return st.floats(low, high)
    if hint is str:
        return st.text(min_size=1).filter(lambda text: text.strip() and "://" not in text)
    if hint is type(None):
        return st.none()
    # In a union with text, "None" is null, as it is for flags.
    return st.one_of(*(_values(part, bounds) for part in parts)).filter(lambda v: v != "None")


def _changes(config: Any) -> st.SearchStrategy[Any]:
    """Settings of a job, any of which may be changed to any value within its bounds."""
    changes = {}
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        if name not in vars(config) or name == "config":
            continue
        plain, *metadata = get_args(hint) if get_origin(hint) is Annotated else (hint,)
        now = getattr(config, name)
        bounds = [each for each in metadata if isinstance(each, Between)]
        same = st.just(now)
        changes[name] = (
            _changes(now) if hasattr(now, "__dataclass_fields__") else same | _values(plain, bounds)
        )
    return st.fixed_dictionaries(changes).map(lambda values: type(config)(**values))


# Examples of so many settings take minutes to shrink.
@settings(phases=(Phase.generate,))
@given(_changes(replace(DEMO, images=("photos",))))
def test_any_settings_are_the_same_after_they_were_written_and_read(tmp_path_factory, config):
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(settings_text(config, run="a").encode())
    again = SettingsFile.read(str(path)).applied(DEMO)
    assert identity_of(again) == identity_of(config)
    assert again.storage == config.storage


def test_flags_go_before_the_file_and_the_file_before_a_preset(parsed):
    text = "preset: retrieval\ntraining: {epochs: 4, batch-size: 7}\nimages: [a, b]\n"
    config = parsed(text, "--training.epochs", "9")
    assert (config.preset, config.training.epochs, config.training.batch_size) == (
        *("retrieval", 9, 7),
    )
    assert config.images == ("a", "b")
    assert config.mining == PRESETS["retrieval"].mining
    assert parsed(text, "--images", "c").images == ("c",)
    assert parsed(text, "--preset", "demo").training.longest_side == DEMO.training.longest_side


def test_a_recipe_in_the_file_brings_its_defaults(parsed):
    assert replace(parsed("recipe: paper"), config=None) == preset("demo", "paper")
    assert parsed("recipe: paper", "--recipe", "steady").training.loss == "triplet"
    supervised = parsed("tuples: t.pkl\nimages: ims\n")
    assert (supervised.recipe, supervised.training.negatives) == ("supervised", 5)
    assert supervised.images == ("ims",)


def test_a_file_chooses_the_application_of_a_comparison(written):
    path = written("application: retrieval")
    assert given_value("application", ["--config", path]) == "retrieval"
    arguments = ["--config", path, "--application", "finegrained"]
    assert given_value("application", arguments) == "finegrained"


def test_numbers_and_null_are_taken_as_flags_take_them(parsed):
    text = (
        "training: {learning_rate: 1e-3, patience: None, margin: 1}\nmining: {anchors: null}\n"
        "budget: 30m\n"
    )
    config = parsed(text, "--training.keep", "last")
    training = config.training
    assert (training.learning_rate, training.patience, training.margin) == (1e-3, None, 1.0)
    assert isinstance(training.margin, float)
    assert (config.mining.anchors, config.budget) == (None, "30m")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training: {epoch: 4}", r"no setting training.epoch; did you mean training: {epochs"),
        ("epochs: 4", r"no setting epochs; did you mean training: {epochs: \.\.\.}\?"),
        ("training.epochs: 4", r"no setting training.epochs; did you mean training: {epochs"),
        ("minning: {alpha: 0.9}", r"no setting minning; did you mean mining\?"),
        ("sead: 1", r"no setting sead; did you mean seed\?"),
        ("xyzzy: 1", r"no setting xyzzy; --help lists them all"),
        ("1: 1", r"no setting 1; --help"),
        ("training: {epochs: many}", r"training.epochs: 'many'; give a whole number$"),
        ("training: {epochs: 4.0}", r"training.epochs: 4.0; give a whole number$"),
        ("training: {epochs: true}", r"training.epochs: True; give a whole number$"),
        ("training: {learning_rate: fast}", r"learning_rate: 'fast'; give a number$"),
        ("training: {epochs: 0}", r"--training.epochs 0: choose a value from 1 to 100000"),
        ("mining: {alpha: .nan}", r"--mining.alpha nan: choose a value"),
        ("mining: {graph_k: []}", r"mining.graph_k: \[\]; give a whole number or null"),
        ("recipe: papr", r"recipe: 'papr'; give one of auto, steady, paper"),
        ("deduplicate: 1", r"deduplicate: 1; give true or false"),
        ("experiment: 2026-01-01", r"experiment: .*; give text, in quotation marks"),
        ("extraction: {scales: [1, big]}", r"extraction.scales: .*; give a list, each a number"),
        ("training: {crop_scale: [0.1]}", r"crop_scale: \[0.1\]; give a list of 2, each a number"),
        ("images: [1]", r"images: \[1\]; give a list, each text"),
        ("training: 3", r"training: 3 is no mapping; write its settings below it, as in training:"),
        ("images: ['']", r"--images is missing: its value is empty"),
        ("- seed", r"no mapping; write settings as seed: 1"),
        ("seed: 1\nseed: 2", r"line 2: 'seed' is there twice"),
        ("training: {batch_size: 1, batch-size: 2}", r"training.batch_size is there twice"),
        ("seed: [1", r"line \d: .*; mend the YAML"),
        ("config: other.yaml", r"config: a file names no other"),
        ("seed: !!python/object/apply:os.system [id]", r"line 1: could not determine a constr"),
        ("[" * 500, r"nested too deeply|mend the YAML"),
        ("? [a]\n: 1", r"mend the YAML"),
    ],
)
def test_what_is_wrong_in_a_file_is_said_with_the_file_the_key_and_the_remedy(text, words, parsed):
    with pytest.raises(InputError, match=rf"run\.yaml: (?s:.*){words}"):
        parsed(text)


def test_a_file_that_is_missing_or_no_text_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no.yaml: cannot be read .*; name a YAML file"):
        parse_for(PRESETS, ["--config", str(tmp_path / "no.yaml")], "")
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match=r"b.yaml: cannot be read .*not UTF-16"):
        parse_for(PRESETS, ["--config", str(tmp_path / "b.yaml")], "")


def test_settings_that_do_not_go_together_name_the_file_too(parsed):
    config = parsed("training: {gem_rate: 10}")
    with pytest.raises(InputError, match=r"--training.gem-rate 10: .*\(settings are of .*run.yaml"):
        validate(config)


def test_how_a_job_is_called_is_neither_written_nor_a_part_of_its_identity():
    plain = settings_text(DEMO, run="a")
    said = replace(DEMO, config="x.yaml", quiet=True, json=True, dry_run=True)
    assert settings_text(said, run="a") == plain
    assert identity_of(said) == identity_of(DEMO)
    kept = {name.rpartition(".")[2] for name, _, _ in annotated_fields(DEMO)}
    kept -= {"config", "quiet", "json", "dry_run", "dry_run_items"}
    assert all(f"{name}:" in plain for name in kept)


def test_paths_that_are_not_text_are_written_and_read(parsed):
    config = replace(
        DEMO, images=("photo\udce9", "\u65e5\x1b", "a\x85b\u2028c", "no", "1e-3", "null")
    )
    assert parsed(settings_text(config, run="a")).images == config.images


def test_credentials_are_not_written():
    config = replace(DEMO, images=("s3://key:secret@photos/a",), tracking_uri="http://u:pw@host")
    text = settings_text(config, run="a")
    assert "secret" not in text
    assert "pw@" not in text
    assert "photos/a" in text
