"""The result that a job prints last can be read by people and by programs."""

import json
import math

import pytest

from mmray.evaluation.scores import Score
from mmray.pipeline.recipes.result import JobResult, scores_of
from mmray.pipeline.reports.tables import Table


def test_people_get_the_text_and_programs_one_line_of_json():
    score = Score("initial", "mac", "none", math.nan, "gt\n\u2028")
    result = JobResult(text="| a table |", values={"table": scores_of([score]), "model": None})
    assert result.shown(as_json=False) == "| a table |"
    line = result.shown(as_json=True)
    assert line.isascii()
    assert len(line.splitlines()) == 1
    (row,) = json.loads(line)["table"]
    assert (row["network"], row["benchmark"], row["value"]) == ("initial", "gt\n\u2028", None)


@pytest.mark.parametrize("note", ["", "Times are of CPUs."])
def test_a_table_of_text_is_rows_by_the_names_of_its_columns(note):
    found = JobResult.of_table(Table(head=("stage", "GB"), rows=(("knn", "1"),), note=note))
    assert json.loads(found.shown(as_json=True)) == {
        "table": [{"stage": "knn", "GB": "1"}],
        "note": note,
    }
    assert found.shown(as_json=False).endswith(note or "|")
