"""Parsing of a job's command line, and the exit status for its errors and signals."""

import io
import os
import select
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn, TextIO, TypeVar

import tyro

from mmray.config.bounds import annotated_fields
from mmray.config.learning import LearningConfig
from mmray.config.presets import recipe_names, with_defaults
from mmray.config.run import RunConfig
from mmray.config.settings_file import SettingsFile
from mmray.system.errors import InputError, MachineError, printable

Settings = TypeVar("Settings", bound=RunConfig)


def parse(
    presets: Mapping[Any, Settings],
    arguments: list[str],
    description: str,
    *,
    prog: str | None = None,
) -> Settings:
    """Parse the settings of a job; the defaults are those of its --preset and --recipe.

    Settings of the file of --config go before these, and flags before all. Without a preset, the
    first one is taken; tuples imply the recipe `supervised`. Ends the process with status 2 where
    the arguments cannot be parsed.

    Raises
    ------
    InputError
        A flag that takes any number of values is given none, or the file cannot be used.
    """
    file = _settings_file(arguments)
    name = _given("preset", arguments, file)
    default: Any = presets[name if name in presets else next(iter(presets))]
    recipe = _given("recipe", arguments, file)
    if recipe is None and _given("tuples", arguments, file) not in (None, "None"):
        recipe = "supervised"
    if isinstance(default, LearningConfig) and recipe in recipe_names(default):
        own: Any = default  # `preset` and `recipe` are fields of the applications
        default = with_defaults(type(own)(preset=own.preset, recipe=recipe))
    settings: Settings = tyro.cli(
        type(default),
        prog=prog,
        args=arguments,
        default=file.applied(default),
        description=description,
    )
    given = {argument.partition("=")[0].replace("_", "-") for argument in arguments}
    for field, value, _ in annotated_fields(settings):
        flag = f"--{field.replace('_', '-')}"
        if value == () and flag in given:  # as of `--images $PHOTOS`, where that is not set
            raise InputError(f"{flag} is missing: it has no value; name one, or leave the flag out")
    return settings


def given_value(name: str, arguments: list[str]) -> Any:
    """Return the value that a flag or the file of --config gives to a setting, or None."""
    return _given(name, arguments, _settings_file(arguments))


def _settings_file(arguments: list[str]) -> SettingsFile:
    """Read the file of --config; without the flag, return one that gives nothing."""
    location = flag_value("--config", arguments)
    return SettingsFile.read(location) if location else SettingsFile()


def _given(name: str, arguments: list[str], file: SettingsFile) -> Any:
    """Return the value of a setting that the defaults depend on: of its flag, or of the file."""
    value = flag_value(f"--{name}", arguments)
    found = file.value(name) if value is None else value
    return found if isinstance(found, str) else None


def flag_value(flag: str, arguments: list[str]) -> Any:
    """Return the last value given for a flag, or None; tyro refuses flags that do not exist."""
    found = None
    for position, argument in enumerate(arguments):
        name, _, value = argument.partition("=")
        if name == flag:
            found = value or next(iter(arguments[position + 1 :]), None)
    return found


def exit_status(job: Callable[[], None]) -> int:
    """Run a job and return its exit status.

    0 done, 2 unusable input, 1 a failure of the machine, 130 interrupted, 143 terminated by
    SIGTERM. Any other exception is raised; Python then ends the process with status 1. A job whose
    output is no longer read, as in `--help | head`, ends like other commands, with status 141.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names of images may not fit its encoding
            stream.reconfigure(errors="backslashreplace")
    # A stopped job or a spot notice ends like Ctrl-C, but for the status.
    terminated: list[int] = []

    def terminate(signum: int, frame: Any) -> NoReturn:
        terminated.append(signum)
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, terminate)
    try:
        with _while_output_is_read():
            job()
    except (InputError, MachineError) as error:
        print(f"error: {printable(str(error))}", file=sys.stderr)
        return 2 if isinstance(error, InputError) else 1
    except KeyboardInterrupt:
        print("interrupted: the same command goes on from here", file=sys.stderr)
        return 128 + (signal.SIGTERM if terminated else signal.SIGINT)
    return 0


@contextmanager
def _while_output_is_read() -> Iterator[None]:
    """End with status 141, silently, once nobody reads what the block prints."""
    try:
        try:
            yield
        finally:
            if sys.stdout is not None:  # `>&-` closes it
                sys.stdout.flush()  # at its end Python would print the error
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _has_no_reader(stream)]
        if not closed:  # of another connection
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in closed:
            os.dup2(nowhere, stream.fileno())
        sys.exit(128 + signal.SIGPIPE)


def _has_no_reader(stream: TextIO) -> bool:
    """Tell whether a stream is a pipe that nobody reads any more."""
    try:
        descriptor = stream.fileno()
    except OSError:  # not a file, as in tests
        return False
    poll = select.poll()
    poll.register(descriptor, 0)
    return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
