"""The paper's comparisons: Tables 1 and 2 row by row, over several seeds, as one table.

Without arguments it compares on a small rendered set. --application retrieval compares by mAP; each
application takes all flags of its own job. Rows that learn from labels say so. The same command
again fills the rows that are missing. Exit status: 0 done, 2 unusable arguments or input, 1
anything else, 130 interrupted (and resumable).
"""

import sys

from mmray.config.command_line import exit_status, given, parse
from mmray.config.presets import FINEGRAINED_ABLATIONS, RETRIEVAL_ABLATIONS


def main() -> int:
    application = given("--application", sys.argv[1:])
    presets = RETRIEVAL_ABLATIONS if application == "retrieval" else FINEGRAINED_ABLATIONS
    config = parse(presets, sys.argv[1:], __doc__)

    def job() -> None:
        # Imported only now: --help and a misspelt flag should not wait for torch, Ray and MLflow.
        from mmray.pipeline.recipes.ablation import run

        print(run(config))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
