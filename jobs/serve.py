"""Search an index in a browser."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("serve", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
