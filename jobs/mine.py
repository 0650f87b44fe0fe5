"""Mining alone: features that were computed elsewhere in, anchors and pools out."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("mine", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
