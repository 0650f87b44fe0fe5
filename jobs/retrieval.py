"""The main job: unlabelled images in, a fine-tuned network and a table of mAP out.

Without arguments it runs a small demonstration on rendered photos. The same command again goes on
where it was stopped. Exit status: 0 done, 2 unusable arguments or input, 1 anything else, 130
interrupted (and resumable).
"""

import signal
import sys
from typing import Any, get_args

import tyro

from mmray.config import PRESETS, Config, Preset
from mmray.errors import InputError


def parse(arguments: list[str]) -> Config:
    """Settings from the command line; the defaults are those of its --preset."""
    preset: Preset = "demo"
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--preset":
            value = value or next(iter(arguments[position + 1 :]), "")
            preset = value if value in get_args(Preset) else preset  # tyro refuses another
    return tyro.cli(Config, args=arguments, default=PRESETS[preset], description=__doc__)


def stop(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt


def main() -> int:
    config = parse(sys.argv[1:])
    signal.signal(signal.SIGTERM, stop)  # a stopped job or a spot notice ends like Ctrl-C
    try:
        # Imported only now: --help and a misspelt flag should not wait for torch, Ray and MLflow.
        from mmray.pipeline import run
        from mmray.report import results_table

        scores = run(config)
        if scores:
            print(results_table(scores))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
