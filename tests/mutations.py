"""Break the code in twenty places, one at a time, and see whether the fast tests notice.

    .venv/bin/python tests/mutations.py            # all; exit status 1 if one goes unnoticed
    .venv/bin/python tests/mutations.py graph      # those whose file has this in its path

Each mutation changes one expression of the numeric core or of the pipeline in a copy of the
repository; the tests named beside it run there until one fails. Not collected by pytest: it takes
minutes.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Mutation:
    """One expression, what it becomes, and the tests that are to notice."""

    file: str
    before: str
    after: str
    tests: str


MUTATIONS = (
    # -- mining: eqs. (1) to (6)
    Mutation(
        "mmray/mining/graph.py",
        "directed.minimum(directed.T.tocsr())",
        "directed.maximum(directed.T.tocsr())",
        "tests/mining/test_graph.py",
    ),
    Mutation(
        "mmray/mining/graph.py",
        "inverse[rows] * inverse[graph.indices]",
        "inverse[rows] * inverse[rows]",
        "tests/mining",
    ),
    Mutation(
        "mmray/mining/anchors.py",
        "importance[linked] > highest",
        "importance[linked] >= highest",
        "tests/mining",
    ),
    Mutation(
        "mmray/mining/anchors.py",
        "volumes * sizes[connected].sum()",
        "volumes * sizes.sum()",
        "tests/mining",
    ),
    Mutation(
        "mmray/mining/diffusion/solver.py",
        "better = active & (updated < smallest)",
        "better = active",
        "tests/mining",
    ),
    Mutation("mmray/mining/diffusion/solver.py", "rtol**2", "rtol", "tests/mining"),
    Mutation(
        "mmray/mining/pools.py",
        "& (matching != anchor)]",
        "]",
        "tests/mining",
    ),
    Mutation(
        "mmray/mining/pools.py",
        "~np.isin(nearest_e[:negative_k], nearest_m[:negative_k])",
        "~np.isin(nearest_e[:negative_k], nearest_m)",
        "tests/mining",
    ),
    Mutation(
        "mmray/mining/manifold.py",
        "return above + np.array(tied_before, np.int64) + 1",
        "return above + 1",
        "tests/mining",
    ),
    Mutation(
        "mmray/mining/knn/exact.py",
        "(queries.shape[1] + 32) * 2.0**-24",
        "(queries.shape[1] + 32) * 2.0**-44",
        "tests/mining",
    ),
    # -- descriptors
    Mutation(
        "mmray/descriptors/pooling.py",
        "present = mean > (EPS / scale).pow(p)",
        "present = mean > 0",
        "tests/descriptors",
    ),
    Mutation(
        "mmray/descriptors/whitening.py",
        "differences.about(origin)",
        "differences.about(differences.mean)",
        "tests/descriptors",
    ),
    # -- training: eqs. (7), (8) and Sec. 3.4
    Mutation(
        "mmray/training/losses.py",
        "share * hinge.square()",
        "share * hinge",
        "tests/training",
    ),
    Mutation(
        "mmray/training/losses.py",
        "(margin + difference).clamp(min=0)",
        "(margin + difference)",
        "tests/training",
    ),
    Mutation(
        "mmray/training/tuples.py",
        'np.argsort(-similarities, kind="stable")',
        'np.argsort(similarities, kind="stable")',
        "tests/training",
    ),
    Mutation(
        "mmray/training/optimization.py",
        "math.ceil(epochs_done / decay_epochs) - 1",
        "math.floor(epochs_done / decay_epochs)",
        "tests/training",
    ),
    # -- evaluation
    Mutation(
        "mmray/evaluation/ranking.py",
        "np.where(found > 0, before / np.maximum(found, 1), 1.0)",
        "before / np.maximum(found, 1)",
        "tests/evaluation",
    ),
    Mutation(
        "mmray/evaluation/ranking.py",
        "found -= np.searchsorted(np.sort(place[junk]), found)",
        "pass",
        "tests/evaluation",
    ),
    # -- images, files and stages
    Mutation(
        "mmray/images/decoding.py",
        "width * height > max_pixels",
        "width * height > 2 * max_pixels",
        "tests/images",
    ),
    Mutation(
        "mmray/descriptors/shards.py",
        "first[rows] = rows[np.unique(codes, return_index=True)[1]][codes]",
        "first[rows] = rows[codes]",
        "tests/descriptors",
    ),
    Mutation(
        "mmray/pipeline/recipes/learning.py",
        "if trained[-1].epoch == 0:",
        "if False:",
        "tests/pipeline/test_recipes.py",
    ),
    Mutation(
        "mmray/system/folder.py",
        "unfinished.replace(target)",
        "shutil.copyfile(unfinished, target)",
        "tests/system",
    ),
)


def noticed(mutation: Mutation, copy: Path) -> bool:
    """Whether a test fails where the code is broken so."""
    file = copy / mutation.file
    text = file.read_text(encoding="utf-8")
    if text.count(mutation.before) < 1:
        raise SystemExit(f"{mutation.file}: no {mutation.before!r}; mend tests/mutations.py")
    file.write_text(text.replace(mutation.before, mutation.after, 1), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    fast = ["-m", "not (ray or process or slow)", "-n", "logical"]
    try:
        done = subprocess.run(
            [*command, *fast, *mutation.tests.split()],
            cwd=copy,
            env=os.environ | {"PYTHONPATH": str(copy)},
            capture_output=True,
            text=True,
        )
    finally:
        file.write_text(text, encoding="utf-8")
    failed = re.search(r"^=*.*\b\d+ (failed|errors?)\b", done.stdout, re.MULTILINE) is not None
    if failed != (done.returncode != 0):  # with -x, pytest-xdist ends as if interrupted
        raise SystemExit(f"{mutation.file}: pytest ended with {done.returncode}:\n{done.stdout}")
    return failed


def main() -> int:
    """Print a line a mutation; returns 1 if one goes unnoticed."""
    wanted = [m for m in MUTATIONS if not sys.argv[1:] or any(a in m.file for a in sys.argv[1:])]
    missed = 0
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv*", "__pycache__", ".*_cache", "mmray-runs")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for mutation in wanted:
            start = time.monotonic()
            seen = noticed(mutation, copy)
            missed += not seen
            took = time.monotonic() - start
            change = f"{mutation.before!r} -> {mutation.after!r}"
            print(f"{'noticed' if seen else 'MISSED '} {took:4.0f} s  {mutation.file}: {change}")
            sys.stdout.flush()
    print(f"{len(wanted) - missed} of {len(wanted)} noticed")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
