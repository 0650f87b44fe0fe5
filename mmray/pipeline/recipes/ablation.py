"""The recipe of `jobs/ablation.py`: the rows of Tables 1 and 2 as one comparison.

Every row is a whole run with a few settings changed, nested in one MLflow run. Stages that rows
have in common, such as the features and the graph, are run once. A row that is done is read.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, Protocol

from mmray.config.choices import Application
from mmray.config.learning import (
    FinegrainedAblationConfig,
    FinegrainedConfig,
    RetrievalAblationConfig,
    RetrievalConfig,
    chosen_stages,
)
from mmray.config.presets import changed, departures_told
from mmray.config.run import identity_of, stored
from mmray.descriptors.weights import state_digest
from mmray.images.collection import Collection
from mmray.pipeline.opening import nested, running, usable_storage
from mmray.pipeline.plan import Plan
from mmray.pipeline.recipes import finegrained, retrieval
from mmray.pipeline.recipes.ablation_rows import ALL_ANCHORS, BASELINES, FEATURES, METHOD, Row
from mmray.pipeline.recipes.comparison import RowResult, comparison, comparison_table
from mmray.pipeline.recipes.outcome import Inputs, RunResult
from mmray.pipeline.recipes.publishing import write_report
from mmray.pipeline.recipes.result import JobResult, places_of
from mmray.pipeline.recipes.steps import in_rounds, row_steps
from mmray.pipeline.recipes.verdict import headline, verdict
from mmray.pipeline.reports.run_page import Report
from mmray.pipeline.reports.tables import Table
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder, fingerprint
from mmray.system.errors import InputError
from mmray.system.formats import read_json, write_json
from mmray.system.progress import announce


class LearningApplication(Protocol):
    """Interface of the recipes to compare: the modules `retrieval` and `finegrained`."""

    def read_inputs(self, config: Any) -> Inputs: ...
    def with_demo(self, session: Session[Any]) -> Any: ...
    def recipe(self, session: Session[Any], inputs: Inputs) -> RunResult: ...


AblationConfig = FinegrainedAblationConfig | RetrievalAblationConfig
APPLICATIONS: dict[Application, LearningApplication] = {
    "retrieval": retrieval,
    "finegrained": finegrained,
}
CONFIGS: dict[Application, type[RetrievalConfig] | type[FinegrainedConfig]] = {
    "retrieval": RetrievalConfig,
    "finegrained": FinegrainedConfig,
}
RESULT = "result.json"
TO_MINE = ("extract", "graph", "mine")  # stages that every row needs


def rows_of(config: AblationConfig) -> tuple[Row, ...]:
    """Select the rows that the settings ask for; InputError where a row does not exist."""
    if config.study == "features":
        rows = FEATURES
    elif config.kind == "finegrained":
        # The fine-grained settings take all items as anchors anyway.
        rows = tuple(row for row in METHOD if row not in ALL_ANCHORS) + BASELINES
    else:
        rows = METHOD
    names = [row.name for row in rows]
    for name in config.rows:
        if name not in names:
            raise InputError(f"--rows: no row {name!r}; choose from {' '.join(names)}")
    chosen = {*config.rows} or {*names}
    chosen |= {row.anchors_of for row in rows if row.name in chosen and row.anchors_of}
    return tuple(row for row in rows if row.name in chosen)


def run(config: AblationConfig) -> JobResult:
    """Run all rows that are not done yet.

    Returns
    -------
    The table, in Markdown, and below it the settings that differ from the paper's.

    Raises
    ------
    InputError
        A setting, an input or the cluster cannot be used. Stages that are done are kept.
    """
    _check(config)
    storage = usable_storage(config)
    rows, stages = rows_of(config), chosen_stages(config)
    if config.study == "features":
        stages = tuple(stage for stage in stages if stage in TO_MINE)
    application = APPLICATIONS[config.kind]
    given = application.read_inputs(config) if config.images else None
    with running(config, storage, stages) as session:
        inputs = given or application.read_inputs(application.with_demo(session))
        results = _results(session, rows, inputs)
        table = f"{comparison_table(results)}\n\n{departures_told(config)}"
        session.run.log_text("ablation.md", table + "\n")
        folder = storage / f"ablation-{fingerprint(stored(identity_of(config)))}"
        folder.write("ablation.md", (table + "\n").encode())
        write_report(session, _report(config, results))
    announce(f"table: {folder.location('ablation.md')}")
    rows_found = [dataclasses.asdict(result) for result in results]
    return JobResult(text=table, values={"table": rows_found, **places_of(session)})


def _report(config: AblationConfig, results: Sequence[RowResult]) -> Report:
    head, rows, numbers = comparison(results)
    seeds = sorted({result.seed for result in results})
    note = f"Mean and standard deviation over the seeds {', '.join(map(str, seeds))}."
    return Report(
        title=f"{len({result.name for result in results})} rows, {config.network}",
        summary=(
            "All measures are in percent, for the networks that were kept.",
            departures_told(config),
        ),
        results=Table(
            head=head, rows=tuple(rows), numbers=numbers, note=note if len(seeds) > 1 else ""
        ),
    )


def _check(config: AblationConfig) -> None:
    """Check the settings of a comparison."""
    if config.seed:
        raise InputError(f"--seed {config.seed}: rows have several; name them with --seeds")
    if not config.seeds or len({*config.seeds}) < len(config.seeds) or min(config.seeds) < 0:
        raise InputError(
            f"--seeds {' '.join(map(str, config.seeds))}: name at least one, each once, from 0"
        )
    missing = [stage for stage in TO_MINE if stage not in chosen_stages(config)]
    if missing:
        raise InputError(f"--stages {config.stages}: every row needs {','.join(missing)} too")


def _results(session: Session[Any], rows: Sequence[Row], inputs: Inputs) -> list[RowResult]:
    config, results = session.config, []
    seeds = config.seeds if config.study == "method" else config.seeds[:1]
    images = inputs.unlabelled.listed(session)
    inputs = dataclasses.replace(
        inputs, unlabelled=dataclasses.replace(inputs.unlabelled, images=images)
    )
    # The fingerprint of a fine-grained row has None for a missing set.
    no_set = [None] if config.kind == "finegrained" else []
    digests = (
        images.digest(),
        state_digest(inputs.network),
        sorted((inputs.unlabelled.labels or {}).items()),
        [each.digest() for each in inputs.sets] or no_set,
        [Collection.of(each.items).digest() for each in inputs.sets] or no_set,
    )
    for seed in seeds:
        anchors: dict[str, int] = {}
        for number, row in enumerate(rows, start=1):
            of_row = _row_config(config, row, seed, anchors)
            place = f"row {number} of {len(rows)}, seed {seed}"
            result = _filled(session, row, of_row, inputs, digests, place)
            anchors[row.name] = result.anchors
            results.append(result)
            session.run.log_metrics(result.metrics(), step=seed)
    return results


def _filled(
    session: Session[Any],
    row: Row,
    config: RetrievalConfig | FinegrainedConfig,
    inputs: Any,
    digests: Any,
    place: str,
) -> RowResult:
    """Return the result of a row for one seed: read if it was run before, else run.

    Parameters
    ----------
    session : of the comparison
    row, config : the row, and its settings
    inputs, digests : of its job, and what tells them from others
    place : which row of how many it is
    """

    def work(stage: StageFolder) -> Counts:
        name = f"{row.name}, seed {config.seed}"
        plan = Plan(row_steps(config, session.chosen), within=place)
        with nested(session, config, session.chosen, plan, name=name) as inner:
            outcome = APPLICATIONS[config.kind].recipe(inner, inputs)
            inner.run.log_verdict(verdict(outcome))
            inner.run.log_metrics(headline(outcome, of_rounds=in_rounds(config)))
            result = RowResult.of(row.name, row.label, config.seed, outcome)
            write_json(stage.folder, RESULT, dataclasses.asdict(result))
        return {"seed": config.seed, "anchors": result.anchors}

    stage = session.run_stage(
        "row",
        row.name,
        row.label,
        stored(identity_of(config)),
        digests,
        session.chosen,
        work=work,
        stage_flag=session.chosen[-1],
        words=f"{place}: {row.label}",
    )
    return RowResult.from_json(read_json(stage.folder, RESULT))


def _row_config(
    config: AblationConfig, row: Row, seed: int, anchors: dict[str, int]
) -> RetrievalConfig | FinegrainedConfig:
    """Convert the settings of a row to those of its job."""
    kind = CONFIGS[config.kind]
    names = {field.name for field in dataclasses.fields(kind)}
    plain = kind(**{name: getattr(config, name) for name in names})
    plain = changed(dataclasses.replace(plain, seed=seed), row.changes)
    if row.anchors_of is not None:
        plain = changed(plain, {"mining": {"anchors": max(anchors[row.anchors_of], 1)}})
    return plain
