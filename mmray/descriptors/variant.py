"""Differences between a network that others published, or trained with GeM, and a plain one."""

import math
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Variant:
    """Differences between a network that others published or trained and one that is made here.

    Attributes
    ----------
    p, floor : exponent of GeM, and the activation that smaller ones count as, see `gem`
    mean, std : normalisation of pixels in 0..255, per RGB channel; None: the backbone's
    normalized : False: the head is applied to the pooled map as it is, without l2-normalisation
    """

    p: float = 3.0
    floor: float = 0.0
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    normalized: bool = True

    def stored(self) -> dict[str, Any]:
        """Return the attributes as JSON-like values, from which `read` makes a variant again."""
        return asdict(self)

    @classmethod
    def read(cls, values: Any) -> "Variant":
        """Make a variant of the values that `stored` returned, or of others of the same names.

        Raises
        ------
        ValueError
            p is below 1, the floor below 0, a deviation not above 0, or a value not finite; for
            values of other types or names, that or a TypeError.
        """
        values = dict(values)
        for name in ("mean", "std"):
            if values.get(name) is not None:
                red, green, blue = map(float, values[name])
                values[name] = (red, green, blue)
        found = cls(**values)
        numbers = (found.p, found.floor, *(found.mean or ()), *(found.std or ()))
        if not all(map(math.isfinite, numbers)) or type(found.normalized) is not bool:
            raise ValueError(f"{found}: finite numbers are wanted, and normalized is true or false")
        if found.p < 1 or found.floor < 0 or min(found.std or (1,)) <= 0:
            raise ValueError(f"{found}: p is at least 1, floor at least 0, and std above 0")
        return found
