"""The result that a job prints last: text for people, or one line of JSON for programs."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mmray.config.run import RunConfig
from mmray.evaluation.scores import Score
from mmray.pipeline.opening import settings_name
from mmray.pipeline.reports.tables import Table, table
from mmray.pipeline.session import Session
from mmray.system.uris import masked


@dataclass(frozen=True, kw_only=True)
class JobResult:
    """Result of a job.

    Attributes
    ----------
    text : for people; "" where there is nothing to say
    values : for programs, JSON-like; numbers that are not known are None
    """

    text: str
    values: Mapping[str, Any] = field(default_factory=dict)

    def shown(self, *, as_json: bool) -> str:
        """Return what is printed: the text, or one line of JSON."""
        if not as_json:
            return self.text
        return json.dumps(_known(self.values), ensure_ascii=True, allow_nan=False)

    @classmethod
    def of_table(cls, found: Table) -> "JobResult":
        """Show a table of text alone, as of a dry run."""
        note = f"\n\n{found.note}" if found.note else ""
        text = table(found.head, found.rows, numbers=found.numbers) + note
        return cls(text=text, values={"table": rows_of(found.head, found.rows), "note": found.note})


def rows_of(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    """Return the rows of a table of text, name of the column -> cell."""
    return [dict(zip(head, row, strict=True)) for row in rows]


def scores_of(scores: Sequence[Score]) -> list[dict[str, Any]]:
    """Return a table of scores, one in a row, each with what it is of."""
    return [asdict(score) for score in scores]


def places_of(session: Session[RunConfig]) -> dict[str, Any]:
    """Return where the results of a run are: in the storage, and in MLflow."""
    run, reports = session.run, session.reports
    return {
        "page": None if session.page is None else reports.location(session.page),
        "settings": reports.location(settings_name(session)),
        "storage": session.storage.uri,
        "mlflow": {
            "run_id": run.run_id,
            "run_name": run.name,
            "experiment": session.config.experiment,
            "tracking_uri": masked(run.uri),
        },
    }


def _known(value: Any) -> Any:
    """Replace numbers that JSON lacks, such as NaN, by None in JSON-like values."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _known(each) for key, each in value.items()}
    return [_known(each) for each in value] if isinstance(value, list | tuple) else value
