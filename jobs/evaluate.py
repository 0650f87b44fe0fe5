"""Measure networks on retrieval benchmarks, or on a labelled set of your own.

The last thing printed is a table as in Table 3 of the paper: a row for each network, descriptor and
whitening, a column for each benchmark. The same command again goes on where it was stopped. Exit
status: 0 done, 2 unusable arguments or input, 1 anything else, 130 interrupted (and resumable).
"""

import sys

from mmray.config.command_line import exit_status, parse
from mmray.config.presets import EVALUATE


def main() -> int:
    config = parse({"": EVALUATE}, sys.argv[1:], __doc__)

    def job() -> None:
        # Imported only now: --help and a misspelt flag should not wait for torch, Ray and MLflow.
        from mmray.pipeline.recipes.evaluation import run
        from mmray.pipeline.reports.tables import results_table

        print(results_table(run(config)))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
