"""Find images like others: index a collection by a model, then query it.

    python jobs/search.py index --model FOLDER --images FOLDER
    python jobs/search.py query PHOTO ... --top 20

A query prints a table last and writes a page of thumbnails. The same `index` again, or with other
images, describes what is new only. Exit status: 0 done, 2 unusable arguments or input, 1 anything
else, 130 interrupted (and resumable).
"""

import sys

import tyro

from mmray.config.command_line import exit_status
from mmray.config.tools import IndexConfig, QueryConfig


def main() -> int:
    config: IndexConfig | QueryConfig = tyro.extras.subcommand_cli_from_dict(
        {"index": IndexConfig, "query": QueryConfig},
        description=__doc__,
        config=(tyro.conf.PositionalRequiredArgs,),
    )

    def job() -> None:
        # Imported only now: --help should not wait for torch, and a query not for Ray and MLflow.
        if isinstance(config, QueryConfig):
            from mmray.pipeline.recipes.search import run

            print(run(config))
        else:
            from mmray.pipeline.recipes.index import update

            print(update(config))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
