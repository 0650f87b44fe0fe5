"""Fine-grained learning: unlabelled images of similar classes in; Recall@k of others out."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("finegrained", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
