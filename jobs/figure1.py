"""Draw Figure 1 of the paper: Euclidean and manifold neighbours of a point, and what is mined.

The points lie on curves in the plane; all else is found as among images. The last thing printed is
a table of how many points are in each set. Exit status: 0 done, 2 unusable arguments or an output
that cannot be written, 1 anything else.
"""

import sys

import tyro

from mmray.config.command_line import exit_status
from mmray.config.tools import FigureConfig


def main() -> int:
    config = tyro.cli(FigureConfig, description=__doc__)

    def job() -> None:
        # Imported only now: --help and a misspelt flag should not wait for torch and matplotlib.
        from mmray.pipeline.reports.figure1 import counts, draw, image_format, save
        from mmray.pipeline.reports.plane import mine_toy
        from mmray.pipeline.reports.tables import table

        kind = image_format(config.output)
        toy = mine_toy(
            points=config.points,
            curves=config.curves,
            noise=config.noise,
            seed=config.seed,
            anchor=config.anchor,
            graph_k=config.graph_k,
            alpha=config.alpha,
            positive_k=config.positive_k,
            negative_k=config.negative_k,
        )
        print(save(config.output, draw(toy, kind)))
        head, row = counts(toy)
        print(table(head, [row], numbers=len(head)))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
