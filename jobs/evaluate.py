"""Measure networks on retrieval benchmarks, or on a labelled set of your own."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("evaluate", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
