"""The variant of R-MAC that is asked for, without torch: processes that decode images know it."""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from mmray.descriptors.pooling import RegionWhitening


@dataclass(frozen=True, kw_only=True)
class Rmac:
    """A variant of R-MAC: `rmac` with fixed parameters."""

    levels: int = 3
    whole: bool = True
    whitening: "RegionWhitening | None" = None

    def __call__(self, maps: "Tensor") -> "Tensor":
        from mmray.descriptors.pooling import rmac

        return rmac(maps, self.levels, whole=self.whole, whitening=self.whitening)

    def to(self, device: "torch.device | str") -> "Rmac":
        """Return a copy whose whitening is on a device, so that no call has to move it."""
        whitening = None if self.whitening is None else self.whitening.to(device)
        return replace(self, whitening=whitening)
