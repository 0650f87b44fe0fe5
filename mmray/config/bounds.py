"""Bounds of settings, annotated to their fields: `graph_k: Annotated[int, Between(2, 100)]`.

`EXECUTION` is annotated to fields that change how a run is carried out, and not its outcome,
`NOT_KEPT` to those that are of one call and not of the run, `MAY_BE_EMPTY` to those that may be an
empty text.
"""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar, get_args, get_origin, get_type_hints

from mmray.system.errors import InputError, did_you_mean

EXECUTION = "execution"  # metadata of a field: no result depends on it
NOT_KEPT = "not kept"  # metadata of a field: it is not written with the settings of a run
MAY_BE_EMPTY = "may be empty"  # metadata of a field: "" has a meaning of its own


@dataclass(frozen=True)
class Between:
    """The smallest and the largest value that a setting may have."""

    low: float
    high: float


def annotated_fields(config: Any, prefix: str = "") -> Iterator[tuple[str, Any, tuple[Any, ...]]]:
    """Yield the name ("mining.alpha"), the value and the annotations of each setting of a job."""
    hints = get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, hint = getattr(config, field.name), hints[field.name]
        if dataclasses.is_dataclass(value):
            yield from annotated_fields(value, f"{prefix}{field.name}.")
        else:
            metadata = get_args(hint)[1:] if get_origin(hint) is Annotated else ()
            yield f"{prefix}{field.name}", value, metadata


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


def seconds_in(duration: str) -> float | None:
    """Return the seconds in a duration such as 90s, 30m, 8h or 1.5d; None if it is not one."""
    number, unit = duration[:-1], duration[-1:]
    if unit not in _UNITS or not re.fullmatch(r"\d{1,9}(\.\d{1,9})?", number):
        return None
    return float(number) * _UNITS[unit]


def check_bounds(config: Any) -> None:
    """Raise InputError for the first setting outside its bounds, with its flag and the bounds."""
    for name, value, metadata in annotated_fields(config):
        for bound in metadata:
            if not isinstance(bound, Between) or value is None:
                continue
            for each in value if isinstance(value, tuple) else (value,):
                if not bound.low <= each <= bound.high:
                    raise InputError(
                        f"--{name.replace('_', '-')} {each}: choose a value from {bound.low:g} to "
                        f"{bound.high:g}"
                    )


Section = TypeVar("Section")


def checked(section: Section, changes: Mapping[str, Any]) -> Section:
    """Return settings with some fields changed; InputError for one out of its bounds."""
    known = [field.name for field in dataclasses.fields(section)]  # type: ignore[arg-type]
    for name in changes:
        if name not in known:
            meant = did_you_mean(name, known) or f"known are {', '.join(known)}"
            raise InputError(f"no setting {name}; {meant}")
    new: Section = dataclasses.replace(section, **changes)  # type: ignore[type-var]
    check_bounds(new)
    return new


def check_not_empty(config: Any) -> None:
    """Raise InputError for the first setting that is an empty text, as of an unset variable."""
    for name, value, metadata in annotated_fields(config):
        texts = value if isinstance(value, tuple) else (value,)
        if MAY_BE_EMPTY not in metadata and any(
            isinstance(text, str) and not text.strip() for text in texts
        ):
            raise InputError(
                f"--{name.replace('_', '-')} is missing: its value is empty; name one, or leave "
                "the flag out"
            )


def execution_settings(config: Any) -> set[str]:
    """Return the names of the settings that change how a run is carried out, not its outcome."""
    return {name for name, _, metadata in annotated_fields(config) if EXECUTION in metadata}
