"""Settings as a YAML file: read by --config, and written by each run.

A file is a nested mapping with the names of the flags: `training: {epochs: 4}`.
"""

import dataclasses
import difflib
import re
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from reprlib import repr as shorten
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from mmray.config.bounds import NOT_KEPT, annotated_fields, check_bounds, check_not_empty
from mmray.config.run import RunConfig, without_credentials
from mmray.system.errors import InputError
from mmray.system.foreign import reported
from mmray.system.locations import read_bytes
from mmray.system.text_files import read_text

Settings = TypeVar("Settings", bound=RunConfig)
LARGEST = 1_000_000  # bytes of a file
_LONGEST = 100  # characters of a key or a reason in an error
# YAML 1.1 takes 1e-3 for text, as it has no dot.
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "text, in quotation marks where YAML takes it for something else",
    NoneType: "null",
}


class _WrongTypeError(Exception):
    """A value does not have the type of its setting."""


class _Loader(yaml.SafeLoader):  # type: ignore[misc] # it has no types
    """Builds plain values, and refuses a key that is there twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        for place, key in enumerate(keys):
            if key in keys[:place]:
                mark, problem = node.value[place][0].start_mark, f"{shorten(key)} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)
        found: dict[Hashable, Any] = super().construct_mapping(node, deep)
        return found


@dataclass(frozen=True)
class SettingsFile:
    """The settings that a file gives, by name; those of a section in a mapping of their own."""

    location: str = ""
    values: Mapping[Any, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def read(cls, location: str) -> "SettingsFile":
        """Read a YAML file, which is data and nothing that could be run.

        Raises
        ------
        InputError
            The file cannot be read, or it is no mapping.
        """
        try:
            with reported(location, "name a YAML file of settings", "cannot be read"):
                text = read_text(read_bytes(location, limit=LARGEST))
            values = yaml.load(text, _Loader)  # a safe one
        except yaml.YAMLError as error:
            raise InputError(f"{location}: {_said(error)}; mend the YAML") from error
        except RecursionError as error:
            raise InputError(f"{location}: nested too deeply; settings have two levels") from error
        values = {} if values is None else values
        if not isinstance(values, dict):
            raise InputError(f"{location}: no mapping; write settings as seed: 1, one a line")
        return cls(location, values)

    def value(self, name: str) -> Any:
        """Return the value of a setting that stands in no section, as it is in the file."""
        return next((value for key, value in self.values.items() if _plain(key) == name), None)

    def applied(self, config: Settings) -> Settings:
        """Return settings with those of the file in place of their own.

        Raises
        ------
        InputError
            A key is no setting, or a value has another type or is out of bounds: the file, the key
            and what to do.
        """
        names = [name for name, _, _ in annotated_fields(config)]
        changed: Settings = self._changed(config, self.values, "", names)
        try:
            check_bounds(changed)
            check_not_empty(changed)
        except InputError as error:
            raise InputError(f"{self.location}: {error}") from error
        return changed

    def _changed(
        self, config: Any, values: Mapping[Any, Any], prefix: str, names: list[str]
    ) -> Any:
        hints, changes = get_type_hints(type(config), include_extras=True), dict[str, Any]()
        for key, value in values.items():
            field = _plain(key)
            name = f"{prefix}{field}"
            if field not in {each.name for each in dataclasses.fields(config)}:
                raise InputError(f"{self.location}: no setting {name}{_meant(name, names)}")
            if name == "config":
                raise InputError(f"{self.location}: config: a file names no other; leave it out")
            if field in changes:
                raise InputError(f"{self.location}: {name} is there twice; leave one out")
            now = getattr(config, field)
            if dataclasses.is_dataclass(now):
                if not isinstance(value, dict):
                    example = f"{name}: {{{dataclasses.fields(now)[0].name}: ...}}"
                    raise InputError(
                        f"{self.location}: {name}: {shorten(value)} is no mapping; write its "
                        f"settings below it, as in {example}"
                    )
                changes[field] = self._changed(now, value, f"{name}.", names)
                continue
            try:
                changes[field] = _typed(value, hints[field])
            except _WrongTypeError as error:
                wanted = _described(hints[field])
                raise InputError(
                    f"{self.location}: {name}: {shorten(value)}; give {wanted}"
                ) from error
        return dataclasses.replace(config, **changes)


def settings_text(config: RunConfig, *, run: str) -> str:
    """Format the settings of a run as a file for --config, without credentials.

    Parameters
    ----------
    config : all settings, however they were given
    run : name of the run, for the first line
    """
    nested: dict[str, Any] = {}
    for name, value, metadata in annotated_fields(config):
        if NOT_KEPT in metadata:
            continue
        *section, field = name.split(".")
        place = nested.setdefault(section[0], {}) if section else nested
        plain = without_credentials(value)
        place[field] = list(plain) if isinstance(plain, tuple) else plain  # YAML has no tuples
    about = f"# Settings of the run {run}; the same job with --config and this file repeats it.\n"
    # Unescaped, line ends of Unicode would be read as blanks.
    escaped = any(sign in repr(nested) for sign in (r"\x85", r"\u2028", r"\u2029"))
    text: str = yaml.safe_dump(
        nested, sort_keys=False, default_flow_style=None, allow_unicode=not escaped, width=10**6
    )
    return about + text


def _plain(key: Any) -> str:
    """Return a key with underscores, as settings are called, where flags have hyphens."""
    return str(key)[:_LONGEST].replace("-", "_")


def _meant(name: str, names: list[str]) -> str:
    """Ask for the setting that a wrong name may mean, for an error."""
    sections = list(dict.fromkeys(each.partition(".")[0] for each in names if "." in each))
    own = name.rpartition(".")[2]
    elsewhere = [each for each in names if each == name or each.rpartition(".")[2] == own]
    near = elsewhere or difflib.get_close_matches(name, [*names, *sections], n=1)
    if not near:
        return "; --help lists them all"
    section, dot, field = near[0].partition(".")
    return f"; did you mean {section}: {{{field}: ...}}?" if dot else f"; did you mean {section}?"


def _typed(value: Any, hint: Any) -> Any:
    """Return a value of YAML as a setting of this type has it.

    Raises
    ------
    _WrongTypeError
        It has another type.
    """
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _typed(value, parts[0])
    if origin in (Union, UnionType):
        return _first_typed(None if value == "None" else value, parts)  # as flags have it
    if origin is Literal:
        if any(value == each and type(value) is type(each) for each in parts):
            return value
    elif origin is tuple:
        return _typed_tuple(value, parts)
    elif hint is float:
        if isinstance(value, str) and _NUMBER.fullmatch(value):
            return float(value)
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    elif type(value) is hint:
        return value
    raise _WrongTypeError


def _first_typed(value: Any, hints: tuple[Any, ...]) -> Any:
    for hint in hints:
        try:
            return _typed(value, hint)
        except _WrongTypeError:
            continue
    raise _WrongTypeError


def _typed_tuple(value: Any, parts: tuple[Any, ...]) -> tuple[Any, ...]:
    any_number = parts[-1] is Ellipsis
    values = value if isinstance(value, list) else [value]  # a flag takes a single value too
    hints = [parts[0]] * len(values) if any_number else parts
    if len(hints) != len(values) or (value is None):
        raise _WrongTypeError
    return tuple(_typed(each, hint) for each, hint in zip(values, hints, strict=True))


def _described(hint: Any) -> str:
    """Tell in words what a setting of this type may be."""
    return " or ".join(dict.fromkeys(_alternatives(hint)))


def _alternatives(hint: Any) -> Iterator[str]:
    origin, parts = get_origin(hint), get_args(hint)
    if origin is Annotated:
        yield from _alternatives(parts[0])
    elif origin in (Union, UnionType):
        for part in parts:
            yield from _alternatives(part)
    elif origin is Literal:
        yield f"one of {', '.join(map(str, parts))}"
    elif origin is tuple:
        many = "a list, each" if parts[-1] is Ellipsis else f"a list of {len(parts)}, each"
        yield f"{many} {_described(parts[0])}"
    else:
        yield _NAMES[hint]


def _said(error: yaml.YAMLError) -> str:
    """Return what is wrong with YAML, and the line."""
    mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
    where = "" if mark is None else f"line {mark.line + 1}: "
    return f"{where}{(problem or str(error).splitlines()[0])[:_LONGEST]}"
