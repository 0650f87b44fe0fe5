"""Use of a trained model: image encoding, search, export."""

from typing import TYPE_CHECKING

from mmray.system.lazy import lazy

if TYPE_CHECKING:
    from mmray.serving.encoder import ImageEncoder as ImageEncoder
    from mmray.serving.pyfunc import _load_pyfunc as _load_pyfunc

__all__ = ["ImageEncoder"]

__getattr__ = lazy(
    __name__,
    {
        "ImageEncoder": "encoder",
        "_load_pyfunc": "pyfunc",
    },
)
