"""How fast mmray is, beside what one would call instead; both sides in one run, as a table.

Or, with `features`, the synthetic features themselves in a file, for `jobs/mine.py`.
"""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from mmray.command_line import exit_status


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is measured, and on how much."""

    what: tyro.conf.Positional[Literal["knn", "diffusion", "features"]]
    items: int = 100_000
    dims: int = 64
    intrinsic: int = 8
    """Dimensions of the manifold that the features lie on."""
    k: int = 30
    queries: int = 8192
    """Rows that neighbours are searched for (knn)."""
    anchors: int = 64
    """Anchors diffused from (diffusion)."""
    solved: int = 4
    """How many of these scipy solves; its time is scaled to all (diffusion)."""
    threads: int = 0
    """CPU threads on both sides; 0: all."""
    repeats: int = 3
    """Times each side is measured; the best counts."""
    output: Path = Path("features.npy")
    """Where `features` writes."""


def main() -> int:
    options = tyro.cli(Benchmark, description=__doc__)

    def job() -> None:
        import torch

        from mmray.benchmark import compare_diffusion, compare_knn, manifold_features
        from mmray.report import table

        size = {"intrinsic": options.intrinsic}
        features = manifold_features(options.items, options.dims, **size)
        if options.what == "features":
            np.save(options.output, features)
            return
        same = {"threads": options.threads or torch.get_num_threads(), "repeats": options.repeats}
        if options.what == "knn":
            found = compare_knn(features, options.k, queries=options.queries, **same)
        else:
            anchors = {"anchors": options.anchors, "solved": options.solved}
            found = compare_diffusion(features, options.k, **anchors, **same)
        row = (found.part, found.rival, f"{found.theirs:.2f}", f"{found.ours:.2f}")
        head = ("part", "against", "its seconds", "ours", "times faster")
        print(table(head, [(*row, f"{found.ratio:.1f}")]))

    return exit_status(job)


if __name__ == "__main__":
    sys.exit(main())
