"""The embedding network: a backbone, a global pooling and optionally a linear head.

b images, h x w pixels, c channels of the last map, d dimensions of an embedding (c without a head),
p descriptors.

Pixels go in as uint8 RGB: each network carries its own preprocessing. Everything runs in the
channels-last memory layout, on CPUs 1.2 to 1.3 times as fast as the default one, but for depthwise
convolutions on a GPU, which would wait seconds for each new shape of a batch: `EmbeddingNet.on`.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Self, cast

import torch
import torch.nn.functional as F  # noqa: N812 (the name that every torch program uses)
from torch import Tensor, nn

from mmray.config.choices import NETWORKS, Descriptor, Network, Pooling
from mmray.descriptors.backbones import Features, backbone, resized
from mmray.descriptors.pooling import EPS, POOLINGS, gem, rmac
from mmray.descriptors.regions import Rmac
from mmray.descriptors.timm_networks import TimmBackbone
from mmray.descriptors.variant import Variant
from mmray.system.errors import InputError


class EmbeddingNet(nn.Module):
    """A network from images to l2-normalised rows: backbone, global pooling, optionally a head.

    The weights of a new one are random: see `build` and `load`. ValueError: R-MAC with a variant
    that does not normalise.

    Attributes
    ----------
    network, pooling : names of the backbone and of the pooling
    head : the fully connected layer (c -> d) after the l2-normalised pooling, or None
    variant : differences of a published network, with the exponent of GeM as it is now
    p : the exponent as a parameter, see `learn_p`, or None: it is constant
    channels : c
    stride : pixels per cell of the last map
    has_token : it has a class token, for the pooling "cls"
    """

    mean: Tensor
    std: Tensor
    p: nn.Parameter | None

    def __init__(
        self,
        network: Network,
        pooling: Pooling,
        dim: int | None = None,
        variant: Variant | None = None,
    ) -> None:
        super().__init__()
        self.network: Network = network
        self.pooling: Pooling = pooling
        self._variant = variant or Variant()
        if pooling == "rmac" and not self._variant.normalized:
            raise ValueError("rmac sums up l2-normalised vectors: normalized must be true")
        self.backbone, facts = backbone(network)
        self.channels, self.stride = facts.dim, facts.stride
        self.has_token = isinstance(self.backbone, TimmBackbone) and self.backbone.has_token
        self.check_poolings((pooling,))
        if isinstance(self.backbone, TimmBackbone):
            self.backbone.learn_for(pooling)
        if network not in NETWORKS and self._variant.mean is None:
            # Stored with the model: another version of the library may have others.
            self._variant = replace(self._variant, mean=facts.mean, std=facts.std)
        mean = torch.tensor(self._variant.mean or facts.mean).reshape(1, 3, 1, 1)
        std = torch.tensor(self._variant.std or facts.std).reshape(1, 3, 1, 1)
        self.register_buffer("mean", mean, persistent=False)
        self.register_buffer("std", std, persistent=False)
        self.register_parameter("p", None)
        # The weights too, not the input alone: DDP wants gradients laid out as their parameters.
        self.layout = torch.channels_last
        self.backbone.to(memory_format=self.layout)
        self.head = None if dim is None else nn.Linear(self.channels, dim)
        self.train()

    def on(self, device: torch.device) -> Self:
        """Move to a device, and lay the weights out as is fastest there."""
        convolutions = (m for m in self.backbone.modules() if isinstance(m, nn.Conv2d))
        depthwise = any(convolution.groups > 1 for convolution in convolutions)
        gpu = device.type == "cuda"
        self.layout = torch.contiguous_format if gpu and depthwise else torch.channels_last
        self.backbone.to(memory_format=self.layout)
        return self.to(device)

    @property
    def variant(self) -> Variant:
        return self._variant if self.p is None else replace(self._variant, p=self.p.item())

    def learn_p(self) -> Self:
        """Make the exponent of GeM a parameter; a saved network has it as a number of `variant`."""
        assert self.pooling == "gem", f"{self.pooling} has no exponent: settings are validated"
        if self.p is None:
            self.p = nn.Parameter(torch.tensor(self._variant.p, device=self.mean.device))
        return self

    @property
    def dim(self) -> int:
        """Number of dimensions d of an embedding."""
        return self.channels if self.head is None else self.head.out_features

    def dimensions(self, descriptor: Descriptor) -> int:
        """Return the number of dimensions of a descriptor: d of the embedding, c of any other."""
        return self.dim if descriptor == "embedding" else self.channels

    def check_poolings(self, descriptors: Sequence[Descriptor]) -> None:
        """Check that the network has what is pooled; InputError if cls, and it has no token."""
        if "cls" in descriptors and not self.has_token:
            raise InputError(
                f"pooling cls: {self.network} has no class token; choose gem, mac or avg"
            )

    def check_dims(self, flag: str, dims: int | None, descriptors: Sequence[Descriptor]) -> None:
        """Check that descriptors have as many dimensions as are to be left of them.

        Raises
        ------
        InputError
            One has fewer than `dims`, which `flag` has set; None: all are left. Or
            `check_poolings` raises it.
        """
        self.check_poolings(descriptors)
        fewest = min(map(self.dimensions, descriptors))
        if dims is not None and dims > fewest:
            raise InputError(
                f"{flag} {dims}: {self.network} has {fewest} dimensions; choose as many or fewer"
            )

    def train(self, mode: bool = True) -> Self:
        """Set training mode, in which BatchNorm still keeps its statistics and dropout is off.

        The weights of BatchNorm learn. A batch has a few images of one shape, far too few to
        estimate statistics from.
        """
        super().train(mode)
        self.backbone.eval()
        return self

    def forward(self, images: Tensor | Sequence[Tensor]) -> Tensor:
        """Embed images: pool their last maps, then apply the head if there is one.

        Parameters
        ----------
        images : (b, 3, h, w) uint8 RGB, or a sequence of such batches of different shapes

        Returns
        -------
        (b, d) float32, rows in order; the batches of a sequence one after the other.

        Raises
        ------
        ValueError
            A batch is not (b, 3, h, w) uint8, or the sequence is empty.
        """
        return self.descriptors(images, ("embedding",))[:, 0]

    def descriptors(
        self,
        images: Tensor | Sequence[Tensor],
        poolings: Sequence[Descriptor],
        *,
        scales: Sequence[float] = (1.0,),
        regions: Rmac | None = None,
    ) -> Tensor:
        """Compute several descriptors of images in one pass through the backbone.

        Parameters
        ----------
        images : as for `forward`
        poolings : p names; "embedding" is the result of `forward`, the others are without the
            head; "gem" is with the exponent of `variant`
        scales : multiples of an image's size; the descriptors at several are summed and
            l2-normalised. GeM without a head takes their generalised mean instead, as in cirtorch
        regions : the variant of R-MAC for "rmac"; None: the defaults of `rmac`

        Returns
        -------
        (b, p, d) float32, rows in order.

        Raises
        ------
        ValueError
            As for `forward`, `rmac` and `width`, or a scale is not above 0, or there is none.
        """
        self.width(poolings)
        batches = [images] if isinstance(images, Tensor) else images
        if not batches:
            raise ValueError("images: an empty sequence of batches")
        if not scales or not all(0 < scale < math.inf for scale in scales):
            raise ValueError(f"scales {tuple(scales)}: name at least one, each of them above 0")

        def pool(name: Descriptor, features: Features) -> Tensor:
            if name == "embedding":
                return self._embedding(features)
            if name == "rmac":
                return (regions or rmac)(features.maps)
            return self._pooled(name, features)

        rows = []
        for batch in batches:
            of_scales = []
            for scale in scales:
                features = self._features(batch, scale)
                of_scales.append(torch.stack([pool(name, features) for name in poolings], dim=1))
            # One scale keeps its bits: to normalise again would change the last ones.
            if len(of_scales) > 1:
                of_scales = [self._joined(torch.stack(of_scales), poolings)]
            rows += of_scales
        return torch.cat(rows)

    def _joined(self, of_scales: Tensor, poolings: Sequence[Descriptor]) -> Tensor:
        """Join descriptors (s, b, p, d) of s scales: (b, p, d)."""
        joined = []
        for rows, name in zip(of_scales.unbind(2), poolings, strict=True):
            pooling = self.pooling if name == "embedding" and self.head is None else name
            if pooling == "gem":
                joined.append(gem(rows.permute(1, 2, 0)[..., None], self._exponent))
            else:
                joined.append(F.normalize(rows.sum(0), dim=1, eps=EPS))
        return torch.stack(joined, dim=1)

    def _embedding(self, features: Features) -> Tensor:
        """Pool features and apply the head: (b, d)."""
        if self.head is None:
            return self._pooled(self.pooling, features)
        pooled = self._pooled(self.pooling, features, normalized=self._variant.normalized)
        return F.normalize(self.head(pooled), eps=EPS)

    def _pooled(self, pooling: Pooling, features: Features, *, normalized: bool = True) -> Tensor:
        """Pool features to (b, c)."""
        maps = features.maps
        if pooling == "cls":
            token = cast(Tensor, features.token)  # `check_poolings` has seen to it
            return F.normalize(token, eps=EPS) if normalized else token
        if pooling == "gem":
            floor = self._variant.floor
            return gem(maps, self._exponent, floor=floor, normalized=normalized)
        if normalized:
            return POOLINGS[pooling](maps)
        return maps.amax((2, 3)) if pooling == "mac" else maps.mean((2, 3))

    @property
    def _exponent(self) -> float | Tensor:
        return self._variant.p if self.p is None else self.p

    def width(self, poolings: Sequence[Descriptor]) -> int:
        """Return the number of dimensions that these descriptors share.

        Raises
        ------
        ValueError
            The embedding of a head, which has its own number of dimensions, is not alone.
        """
        if "embedding" not in poolings:
            return self.channels
        if self.head is not None and set(poolings) != {"embedding"}:
            raise ValueError(
                f"descriptors {tuple(poolings)}: the embedding has {self.dim} dimensions, the "
                f"others {self.channels}; take it alone"
            )
        return self.dim

    def maps(self, images: Tensor, scale: float = 1.0) -> Tensor:
        """Compute the last map of each image: convolutional, or of patch tokens.

        A side shorter than the stride is padded to it on the right or below, with the colour that
        preprocessing makes 0.

        Parameters
        ----------
        images : (b, 3, h, w) uint8 RGB
        scale : multiple of its size that a preprocessed image is resized to

        Returns
        -------
        (b, c, h', w') float32.

        Raises
        ------
        ValueError
            The images have another shape or dtype.
        """
        return self._features(images, scale).maps

    def _features(self, images: Tensor, scale: float) -> Features:
        """Compute what `maps` returns, and the class tokens."""
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(
                "images must be (b, 3, h, w) uint8 RGB pixels, "
                f"not {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
            )
        pixels = images.to(torch.float32, memory_format=self.layout)
        inputs = resized((pixels - self.mean) / self.std, scale, smallest=self.stride)
        return Features.of(self.backbone(inputs))
