"""Parsing of a job's command line, and the exit status for its errors and signals."""

import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import tyro

from mmray.config.bounds import annotated_fields
from mmray.config.learning import LearningConfig
from mmray.config.presets import recipe_names, with_defaults
from mmray.config.run import RunConfig
from mmray.system.errors import InputError

Settings = TypeVar("Settings", bound=RunConfig)


def parse(presets: Mapping[Any, Settings], arguments: list[str], description: str) -> Settings:
    """Parse the settings of a job; the defaults are those of its --preset and --recipe.

    Without --preset, the first preset is taken; --tuples implies the recipe `supervised`.
    Ends the process with status 2 where the arguments cannot be parsed.

    Raises
    ------
    InputError
        A flag that takes any number of values is given none.
    """
    name = flag_value("--preset", arguments)
    default: Any = presets[name if name in presets else next(iter(presets))]
    recipe = flag_value("--recipe", arguments)
    if recipe is None and flag_value("--tuples", arguments) not in (None, "None"):
        recipe = "supervised"
    if isinstance(default, LearningConfig) and recipe in recipe_names(default):
        own: Any = default  # `preset` and `recipe` are fields of the applications
        default = with_defaults(type(own)(preset=own.preset, recipe=recipe))
    settings: Settings = tyro.cli(
        type(default), args=arguments, default=default, description=description
    )
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for field, value, _ in annotated_fields(settings):
        flag = f"--{field.replace('_', '-')}"
        if value == () and flag in given:  # as of `--images $PHOTOS`, where that is not set
            raise InputError(f"{flag} is missing: it has no value; name one, or leave the flag out")
    return settings


def flag_value(flag: str, arguments: list[str]) -> Any:
    """Return the last value given for a flag, or None; tyro refuses flags that do not exist."""
    found = None
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == flag:
            found = value or next(iter(arguments[position + 1 :]), None)
    return found


def exit_status(job: Callable[[], None]) -> int:
    """Run a job and return its exit status: 0 done, 2 unusable input, 130 interrupted.

    Any other exception is raised; Python then ends the process with status 1.
    """
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
