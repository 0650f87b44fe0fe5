"""Draw Figure 1 of the paper: Euclidean and manifold neighbours of a point, and what is mined."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("figure1", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
