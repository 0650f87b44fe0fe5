"""Remove from a storage what no run and no search index needs any more."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("clean", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
