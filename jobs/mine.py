"""Mining alone: features that were computed elsewhere in, anchors and pools out.

The features are a .npy file (n x d), a folder of Parquet (column embedding) or a MATLAB file (V,
d x n). The same command again goes on where it was stopped. Exit status: 0 done, 2 unusable
arguments or input, 1 anything else, 130 interrupted (and resumable).
"""

import sys

from mmray.config.command_line import exit_status, parse
from mmray.config.presets import MINE_PRESETS


def main() -> int:
    config = parse(MINE_PRESETS, sys.argv[1:], __doc__)

    def job() -> None:
        # Imported only now: --help and a misspelt flag should not wait for torch, Ray and MLflow.
        from mmray.pipeline.recipes.mining import HEAD, run
        from mmray.pipeline.reports.tables import table

        print(table(HEAD, run(config)))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
