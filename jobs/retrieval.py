"""The main job: unlabelled images in, a fine-tuned network and a table of mAP out."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("retrieval", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
