"""Image descriptors from pixels: backbones, pooling, whitening."""

from typing import TYPE_CHECKING

from mmray.system.lazy import lazy

if TYPE_CHECKING:
    from mmray.descriptors.network import EmbeddingNet as EmbeddingNet
    from mmray.descriptors.pooling import gem as gem
    from mmray.descriptors.pooling import mac as mac
    from mmray.descriptors.pooling import rmac as rmac
    from mmray.descriptors.weights import build as build
    from mmray.descriptors.weights import load as load
    from mmray.descriptors.weights import save as save
    from mmray.descriptors.whitening import Whitening as Whitening
    from mmray.descriptors.whitening import lda_whitening as lda_whitening
    from mmray.descriptors.whitening import pca_whitening as pca_whitening

__all__ = [
    "EmbeddingNet",
    "Whitening",
    "build",
    "gem",
    "lda_whitening",
    "load",
    "mac",
    "pca_whitening",
    "rmac",
    "save",
]

__getattr__ = lazy(
    __name__,
    {
        "mac": "pooling",
        "rmac": "pooling",
        "gem": "pooling",
        "EmbeddingNet": "network",
        "build": "weights",
        "load": "weights",
        "save": "weights",
        "Whitening": "whitening",
        "pca_whitening": "whitening",
        "lda_whitening": "whitening",
    },
)
