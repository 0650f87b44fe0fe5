"""What every job does with its command line, with errors and with signals."""

import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tyro

from mmray.config import RunConfig
from mmray.errors import InputError

Settings = TypeVar("Settings", bound=RunConfig)


def parse(presets: Mapping[Any, Settings], arguments: list[str], description: str) -> Settings:
    """Settings from the command line; the defaults are those of its --preset, else of the first.

    Ends the process with status 2 where the arguments cannot be parsed.
    """
    preset = next(iter(presets))
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == "--preset":
            value = value or next(iter(arguments[position + 1 :]), "")
            preset = value if value in presets else preset  # tyro refuses another
    default = presets[preset]
    return tyro.cli(type(default), args=arguments, default=default, description=description)


def exit_status(job: Callable[[], None]) -> int:
    """Run a job: 0 done, 2 unusable input, 130 interrupted; anything else is raised, status 1."""
    signal.signal(signal.SIGTERM, _interrupt)  # a stopped job or a spot notice ends like Ctrl-C
    try:
        job()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 130
    return 0


def _interrupt(signum: int, frame: Any) -> None:
    raise KeyboardInterrupt
