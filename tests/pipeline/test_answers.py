"""The five questions of whoever opens a page: answered with a gain, none, no labels, no pools."""

from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from mmray.config.presets import DEMO
from mmray.evaluation.purity import Purity
from mmray.evaluation.scores import Score
from mmray.pipeline.recipes import learning
from mmray.pipeline.recipes.answers import (
    BETTER,
    HOW_MUCH,
    LEFT_OUT,
    NEXT,
    ON_WHAT,
    answers,
    answers_without_pools,
)
from mmray.pipeline.recipes.left_out import left_out_of, left_out_told
from mmray.pipeline.recipes.outcome import LearningResult, RunResult
from mmray.pipeline.recipes.run_report import learning_report, report_without_pools
from mmray.pipeline.reports.run_page import report_page
from mmray.pipeline.stage import StageFolder
from mmray.pipeline.stages.evaluation import SearchExamples
from mmray.pipeline.stages.minable import NothingMinedError
from mmray.pipeline.stages.training import FineTunedNetwork
from mmray.system.folder import Folder

OWN = replace(DEMO, images=("/photos",), storage="/data/my runs")
TOO_FEW = NothingMinedError("5 images are too few for --mining.graph-k 5", "add more")


def trained(*agreement, epoch, label="fine-tuned"):
    history = [{"view_agreement": value} for value in agreement]
    return FineTunedNetwork(network=None, epoch=epoch, label=label, history=history)


def outcome(tuned, *, before=None, after=None, changed=0, purity=None):
    """A run on 60 images, 58 of them in pools; measured where `before` and `after` are given."""
    pools = SimpleNamespace(anchors=range(40), members=range(58))
    learned = LearningResult(
        images=range(60),
        mined=SimpleNamespace(pools=pools),
        graph=SimpleNamespace(),
        purity=purity,
        labels=None if purity is None else np.repeat(["a", "b"], 30),
        trained=[] if tuned is None else [tuned],
    )
    scores = [
        Score(network, "mac", "none", value, "gt")
        for network, value in (("initial", before), ("fine-tuned", after))
        if value is not None
    ]
    tested = SimpleNamespace(queries=range(12), database=range(48), distractors=())
    nan = np.full(3, np.nan)
    found = [
        SearchExamples(
            network=network,
            labelled=tested,
            first=tuple(np.arange(10) + (new if query < changed else 0) for query in range(3)),
            precision=np.full(3, 0.5) if scores else nan,
        )
        for network, new in (("initial", 0), ("fine-tuned", 4))
    ]
    model = SimpleNamespace(uri="/data/my runs/whiten-0/model")
    return RunResult(scores=scores, learned=learned, model=model, found=found if tuned else [])


def told(outcome, config=OWN, stages=()):
    return {each.question: each for each in answers(config, outcome, stages)}


GAIN = trained(0.565, 0.637, epoch=1)


def test_a_gain_is_answered_by_the_labels():
    said = told(outcome(GAIN, before=0.616, after=0.76))
    assert list(said) == [BETTER, HOW_MUCH, ON_WHAT, LEFT_OUT, NEXT]
    assert (
        said[BETTER].answer == "Yes: with the new network, searches find more of the right images."
    )
    assert said[HOW_MUCH].answer.startswith("mAP 61.6% -> 76.0% (+14.4 points) (100% where every")
    assert "56.5% -> 63.7%, +7.2 points" in said[HOW_MUCH].answer
    assert said[ON_WHAT].answer == (
        "12 searches among 48 labelled images (“gt”), by MAC. It learned from 60 images without "
        "their labels."
    )
    assert said[LEFT_OUT].answer == (
        "Nothing: every file was an image that could be read; 2 of the 60 images are in no pool: "
        "nothing was learned from them."
    )
    assert said[NEXT].commands == (
        "mmray search index --model '/data/my runs/whiten-0/model' --images FOLDER --storage "
        "'/data/my runs'",
        "mmray serve --storage '/data/my runs'",
    )


def test_a_contradiction_of_the_labels_and_the_check_is_said_first():
    said = told(outcome(GAIN, before=0.616, after=0.55))
    assert said[BETTER].answer == (
        "No: with the new network, searches find fewer of the right images. A contradiction: the "
        "check without labels says it got better."
    )
    assert "(-6.6 points)" in said[HOW_MUCH].answer
    assert said[NEXT].answer.startswith("Trust the labels")
    assert said[NEXT].commands == ()
    assert "contradiction" not in told(outcome(GAIN, before=0.5, after=0.6))[BETTER].answer


def test_without_labels_a_rise_of_the_check_is_a_sign_and_the_searches_are_to_be_looked_at():
    said = told(outcome(GAIN, changed=2))
    assert said[BETTER].answer.startswith("Yes, by the check without labels: a sign, not a proof.")
    assert said[HOW_MUCH].answer.startswith("Check without labels: 56.5% -> 63.7%, +7.2 points")
    assert "no labelled images were given" in said[ON_WHAT].answer
    assert said[NEXT].answer.startswith("Look at the 2 searches below that changed most")
    assert "--evaluation.images" in said[NEXT].answer


@pytest.mark.parametrize(
    ("right", "words"),
    [
        (0.2, "20% of the mined positives are right (49% by chance): --mining."),
        (0.9, "so pools are not to blame: --training.learning-rate"),
    ],
)
def test_no_gain_names_what_may_help_by_the_purity_of_the_pools(right, words):
    purity = Purity(positives=right, negatives=1, positive_pairs=9, negative_pairs=9, anchors=9)
    said = told(outcome(trained(0.69, 0.694, epoch=0), before=0.7, after=0.7, purity=purity))
    assert said[BETTER].answer.startswith("No. No epoch of 1 was surely better")
    assert said[HOW_MUCH].answer.startswith("Not at all. mAP stays 70.0%")
    assert "69.0% before, 69.4% at best" in said[HOW_MUCH].answer
    assert words in said[NEXT].answer


def test_a_run_that_ends_with_mining_does_not_know_yet():
    said = told(outcome(None))
    assert said[BETTER].answer.startswith("Not known: the run ended before training")
    assert "without --stages" in said[NEXT].answer
    assert answers(OWN, RunResult(), ()) == ()


def finished(tmp_path, name, mark=0, **counts):
    stage = StageFolder.of(Folder(str(tmp_path)), name, mark)
    if name == "extract":
        rows = [{"uri": f"/photos/{n}.jpg", "error": "e"} for n in range(counts["quarantined"])]
        kind = pa.schema({"uri": pa.string(), "error": pa.string()})
        stage.folder.write_table("quarantine.parquet", pa.Table.from_pylist(rows, kind))
    stage.finish(counts)
    return stage


@pytest.mark.parametrize("left_out", [True, False])
def test_all_that_took_no_part_is_told(tmp_path, left_out):
    listed = finished(tmp_path, "list", images=60, left_out={".mov": 2, "hidden file": 1})
    extracted = finished(tmp_path, "extract", quarantined=2, duplicates=1)
    near = SimpleNamespace(stage=SimpleNamespace(counts={"near_duplicates": 3}), left_out=left_out)
    stages = [listed, extracted, listed]
    assert left_out_told(stages, extracted, near) == (
        "2 images that could not be read (the first: 0.jpg); 1 exact duplicate; "
        + ("3 near-duplicates" if left_out else "no near-duplicates (3 were kept)")
        + "; 3 files that are no image (2 .mov, 1 hidden file)"
    )
    found = left_out_of(stages, extracted, near)
    assert [(fact.name, fact.value) for fact in found.counts] == [
        ("images that could not be read", "2"),
        ("exact duplicates", "1"),
        *([("near-duplicates", "3")] if left_out else []),
        (".mov", "2"),
        ("hidden file", "1"),
    ]
    assert [each.name for each in found.unreadable] == ["/photos/0.jpg", "/photos/1.jpg"]
    assert left_out_told([]) == ""


def test_a_run_that_mines_nothing_says_why_and_what_to_change(tmp_path):
    stages = [finished(tmp_path, "list", images=5, left_out={".mov": 2})]
    said = {each.question: each.answer for each in answers_without_pools(TOO_FEW, OWN, stages)}
    assert said[BETTER].startswith("No. Nothing was mined")
    assert said[ON_WHAT] == "5 images of /photos: 5 images are too few for --mining.graph-k 5."
    assert said[LEFT_OUT] == "2 files that are no image (2 .mov)."
    assert said[NEXT].startswith("Add more. ")
    listed = [finished(tmp_path, "list", 1, images=5, left_out={})]
    unopened = {each.question: each.answer for each in answers_without_pools(TOO_FEW, OWN, listed)}
    assert unopened[LEFT_OUT] == "Nothing: every file is an image by its name; none was opened."
    page = report_page(report_without_pools(OWN, TOO_FEW, stages))
    assert "Nothing was mined, so nothing was trained: 5 images are too few" in page
    assert 'id="anchors"' in page, "the section says why it is empty"


def test_a_job_that_mines_nothing_leaves_its_page_and_ends_with_the_error(monkeypatch):
    session, published = SimpleNamespace(), []

    @contextmanager
    def running(*arguments):
        yield session

    def recipe(session, inputs):
        raise TOO_FEW

    monkeypatch.setattr(learning, "usable_storage", lambda config: None)
    monkeypatch.setattr(learning, "running", running)
    monkeypatch.setattr(learning, "publish_without_pools", lambda *given: published.append(given))
    monkeypatch.setattr(learning, "publish", lambda *given: published.append("a result"))
    with pytest.raises(NothingMinedError, match=r"too few .*: add more"):
        learning.run_recipe(OWN, lambda config: "inputs", lambda session: OWN, recipe)
    assert published == [(session, TOO_FEW)]


def test_sections_with_nothing_to_show_say_what_to_change_unless_the_run_was_to_end_sooner():
    result = RunResult()
    page = learning_report(OWN, result, (), part=None)
    assert "--evaluation.images FOLDER" in page.reasons["results"]
    assert learning_report(OWN, result, (), part="extract").reasons == {}


def test_the_measures_of_the_page_are_in_percent_and_say_so():
    scores = [Score("initial", "mac", "none", 0.616, "gt"), Score("b", "mac", "none", 0.7, "gt")]
    page = learning_report(OWN, RunResult(scores=scores), (), part=None)
    assert page.results.head[-1] == "mAP (%)"
    assert [row[-1] for row in page.results.rows] == ["61.6", "70.0"]
