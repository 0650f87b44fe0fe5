"""Find images like others: index a collection by a model, then query it."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("search", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
