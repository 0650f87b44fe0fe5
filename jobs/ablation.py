"""The paper's comparisons: Tables 1 and 2 row by row, over several seeds, as one table."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("ablation", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
