"""The main job: unlabelled images in, a fine-tuned network and a table of mAP out.

Without arguments it runs a small demonstration on rendered photos. The same command again goes on
where it was stopped. Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130
interrupted (and resumable).
"""

import sys

from mmray.config.command_line import exit_status, parse
from mmray.config.presets import PRESETS


def main() -> int:
    config = parse(PRESETS, sys.argv[1:], __doc__)

    def job() -> None:
        # Imported only now: --help and a misspelt flag should not wait for torch, Ray and MLflow.
        from mmray.pipeline.recipes.retrieval import run
        from mmray.pipeline.reports.tables import results_table

        scores = run(config)
        if scores:
            print(results_table(scores))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
