"""Write a model that a run left as an ONNX file, and compare the two."""

import sys

from mmray.__main__ import run


def main() -> int:
    return run("export", sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
