"""The command line: `mmray JOB ...`, or `python -m mmray JOB ...`, for every job.

`jobs/*.py` are the same jobs as scripts, for `ray job submit`.
"""

import dataclasses
import inspect
import runpy
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

import mmray
from mmray.config import tools
from mmray.config.bounds import check_not_empty
from mmray.config.command_line import exit_status, given_value, parse
from mmray.config.presets import (
    EVALUATE,
    FINEGRAINED_ABLATIONS,
    FINEGRAINED_PRESETS,
    MINE_PRESETS,
    PRESETS,
    RETRIEVAL_ABLATIONS,
)
from mmray.config.run import RunConfig
from mmray.system.errors import InputError
from mmray.system.progress import quietly

if TYPE_CHECKING:
    from mmray.config.learning import LearningConfig
    from mmray.pipeline.recipes.result import JobResult

Settings = TypeVar("Settings", bound=RunConfig)

# Jobs import their recipes only when they run: --help and a misspelt flag should not wait for
# torch, Ray and MLflow.


def retrieval(arguments: list[str]) -> None:
    """Fine-tune a network for retrieval on unlabelled images, and measure its mAP (the main job).

    Without arguments it runs a small demonstration on rendered photos. The same command again
    continues where it was stopped.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM (both resumable).
    """
    config = parse(PRESETS, arguments, _help(retrieval))
    if config.dry_run:
        _plan(config)
        return
    from mmray.pipeline.recipes.retrieval import run

    _tell(config, run)


def finegrained(arguments: list[str]) -> None:
    """Fine-tune a network on unlabelled images of similar classes; measure Recall@k and NMI.

    Without arguments it runs a small demonstration on rendered photos. --images names a folder with
    a folder per class, or CUB-200-2011: the first half of the classes is for training, without
    labels, the second half for testing. The same command again continues where it was stopped.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM (both resumable).
    """
    config = parse(FINEGRAINED_PRESETS, arguments, _help(finegrained))
    if config.dry_run:
        _plan(config)
        return
    from mmray.pipeline.recipes.finegrained import run

    _tell(config, run)


def mine(arguments: list[str]) -> None:
    """Mine anchors and pools from features that were computed elsewhere.

    The features are a .npy file (n x d), a folder of Parquet (column embedding) or a MATLAB file
    (V, d x n). The same command again continues where it was stopped.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM (both resumable).
    """
    config = parse(MINE_PRESETS, arguments, _help(mine))
    from mmray.pipeline.recipes.mining import run

    _tell(config, run)


def evaluate(arguments: list[str]) -> None:
    """Measure networks on retrieval benchmarks, or on a labelled set of your own.

    The last thing printed is a table as in Table 3 of the paper: a row for each network, descriptor
    and whitening, a column for each benchmark; below it, the settings that are not the paper's. The
    same command again continues where it was stopped.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM (both resumable).
    """
    config = parse({"": EVALUATE}, arguments, _help(evaluate))
    from mmray.pipeline.recipes.evaluation import run

    _tell(config, run)


def ablation(arguments: list[str]) -> None:
    """Run the paper's comparisons, Tables 1 and 2 row by row over several seeds, as one table.

    Without arguments it compares on a small rendered set. --application retrieval compares by mAP;
    each application takes all flags of its own job. Rows that learn from labels say so. The same
    command again runs the rows that are missing.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM (both resumable).
    """
    application = given_value("application", arguments)
    presets: Mapping[Any, Any] = (
        RETRIEVAL_ABLATIONS if application == "retrieval" else FINEGRAINED_ABLATIONS
    )
    config = parse(presets, arguments, _help(ablation))
    if config.dry_run:
        _plan(config)
        return
    from mmray.pipeline.recipes.ablation import run

    _tell(config, run)


def search(arguments: list[str]) -> None:
    """Search for similar images: index a collection with a model, then query it.

        python jobs/search.py index --model FOLDER --images FOLDER
        python jobs/search.py query PHOTO ... --top 20

    A query prints a table last and writes a page of thumbnails. `index` again, with the same or
    other images, describes only the new ones.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM (both resumable).
    """
    config: tools.IndexConfig | tools.QueryConfig
    if arguments[:1] == ["index"]:
        prog, about = f"{Path(sys.argv[0]).name} index", inspect.getdoc(tools.IndexConfig) or ""
        config = parse({"": tools.IndexConfig()}, arguments[1:], about, prog=prog)
    else:
        config = tyro.extras.subcommand_cli_from_dict(
            {"index": tools.IndexConfig, "query": tools.QueryConfig},
            args=arguments,
            description=_help(search),
            config=(tyro.conf.PositionalRequiredArgs,),
        )
    if isinstance(config, tools.QueryConfig):  # neither Ray nor MLflow is loaded for a query
        from mmray.pipeline.recipes.search import run

        print(run(config))
    else:
        from mmray.pipeline.recipes.index import update

        _tell(config, update)


def serve(arguments: list[str]) -> None:
    """Search an index in a browser: drop a photo, draw a box on it, look for more like a result.

    The URL is printed. It listens on this machine alone, unless --host says otherwise. --compare
    shows the results of a second index beside, such as one of the initial network. Results that
    are labelled right or wrong become a labelled set, which `evaluate` measures on.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM.
    """
    config = tyro.cli(tools.ServeConfig, args=arguments, description=_help(serve))
    from mmray.pipeline.recipes.serve import run  # neither Ray nor MLflow is loaded

    run(config)


def export(arguments: list[str]) -> None:
    """Export the model of a run to an ONNX file, and compare the two.

    The file takes uint8 RGB images (batch, 3, height, width) and gives l2-normalised, whitened
    descriptors. One line is printed: the file, and the difference between ONNX Runtime and torch.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130 after
    Ctrl-C and 143 after SIGTERM.
    """
    config = tyro.cli(tools.ExportConfig, args=arguments, description=_help(export))
    from mmray.pipeline.recipes.export import run

    print(run(config))


def clean(arguments: list[str]) -> None:
    """Remove the stages that no run and no search index needs any more, and say how large they are.

    A run that you delete in MLflow's page is not needed; only what it shares with others stays.
    --dry-run only says what would be removed. Do not run it beside jobs on the same storage.

    Exit status: 0 done, 2 unusable arguments or input, 1 anything else.
    """
    config = tyro.cli(tools.CleanConfig, args=arguments, description=_help(clean))
    check_not_empty(config)
    from mmray.pipeline.recipes.cleaning import HEAD, run
    from mmray.pipeline.reports.tables import table

    rows, summary = run(config)
    if rows:
        print(table(HEAD, rows, numbers=2))
    print(summary)


def figure1(arguments: list[str]) -> None:
    """Draw Figure 1 of the paper: the Euclidean and manifold neighbours of a point, and its pools.

    The points lie on curves in the plane; mining works as on images. The last thing printed is a
    table of how many points are in each set. Exit status: 0 done, 2 unusable arguments or an
    output that cannot be written, 1 anything else.
    """
    config = tyro.cli(tools.FigureConfig, args=arguments, description=_help(figure1))
    from mmray.pipeline.reports.figure1 import counts, draw, image_format, save
    from mmray.pipeline.reports.plane import mine_plane_example
    from mmray.pipeline.reports.tables import table

    kind = image_format(config.output)
    settings = dataclasses.asdict(config)
    del settings["output"]
    toy = mine_plane_example(**settings)
    print(save(config.output, draw(toy, kind)))
    head, row = counts(toy)
    print(table(head, [row], numbers=len(head)))


def benchmark(arguments: list[str]) -> None:
    """Measure the speed of mmray against common alternatives, side by side, as a table."""
    script = Path(mmray.__file__).parents[1] / "jobs" / "benchmark.py"
    if not script.is_file():
        raise InputError(
            "benchmark: the benchmarks are part of the repository, not of the installed package; "
            "clone it and run python jobs/benchmark.py"
        )
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script))["measure"](arguments)


JOBS: dict[str, Callable[[list[str]], None]] = {
    job.__name__: job
    for job in (
        *(retrieval, finegrained, mine, evaluate, ablation),
        *(search, serve, export, clean, benchmark, figure1),
    )
}


def main(arguments: list[str] | None = None) -> int:
    """Run the job that the first argument names, and return the exit status."""
    name, *rest = arguments or sys.argv[1:] or ["--help"]
    if name in JOBS:
        sys.argv[0] = f"mmray {name}"  # as its --help calls it
        return run(name, rest)
    lines = [f"  {job.__name__:12} {_help(job).splitlines()[0]}" for job in JOBS.values()]
    usage = f"usage: mmray {{{','.join(JOBS)}}} ... (--help after a name says more)\n"
    if name in ("-h", "--help"):
        return exit_status(lambda: print("\n".join([usage, *lines])))
    print(f"{usage}error: no job {name!r}", file=sys.stderr)
    return 2


def run(name: str, arguments: list[str]) -> int:
    """Run a job with the arguments after its name, and return the exit status."""
    return exit_status(lambda: JOBS[name](arguments))


def _plan(config: "LearningConfig") -> None:
    """Print what a job that learns needs, instead of running it."""
    from mmray.pipeline.recipes.planning import plan_learning
    from mmray.pipeline.recipes.result import JobResult

    _tell(config, lambda given: JobResult.of_table(plan_learning(given)))


def _tell(config: Settings, job: "Callable[[Settings], JobResult]") -> None:
    """Run a job and print its result, as --quiet and --json say."""
    with quietly(config.quiet):
        told = job(config).shown(as_json=config.json)
    if told:
        print(told)


def _help(job: Callable[..., Any]) -> str:
    """Return the docstring of a job as the text of its --help."""
    lines = (job.__doc__ or "").splitlines()
    return "\n".join(line.removeprefix("    ") for line in lines)


if __name__ == "__main__":
    sys.exit(main())
