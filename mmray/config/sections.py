"""The sections of a job's settings: extraction, mining, training, whitening, measuring.

Values are the paper's (Iscen et al., CVPR 2018, section in brackets) unless said otherwise.
"""

from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from mmray.config.bounds import EXECUTION, Between
from mmray.config.choices import (
    Augmentation,
    BenchmarkName,
    Descriptor,
    Loss,
    Negatives,
    Optimizer,
    Pooling,
    Positives,
    Precision,
    QuerySearch,
    Schedule,
    Search,
    Selection,
    TrainingPrecision,
)
from mmray.config.describing import SCALE

_CHECK_ITEMS = tyro.conf.arg(aliases=["--training.check-items"])  # as the flag was called before


@dataclass(frozen=True, kw_only=True)
class DemoConfig:
    """The rendered demonstration set, used where no images are given."""

    objects: Annotated[int, Between(2, 10_000)] = 24
    """Objects in each of the two parts: one trains without labels, the other tests."""
    photos: Annotated[int, Between(3, 1000)] = 13
    """Photos of each object."""
    distractors: Annotated[int, Between(0, 100_000)] = 40
    """Photos of none of the objects, in each part."""
    longest_side: Annotated[int, Between(32, 4096)] = 256
    """Longest side of a photo, pixels."""
    seed: Annotated[int, Between(0, 2**63 - 1)] = 0
    """Another seed renders other objects."""


SIZES = ("graph_k", "positive_k", "negative_k")  # may be chosen from the collection


@dataclass(frozen=True, kw_only=True)
class MiningConfig:
    """Graph, anchors, diffusion and pools (Sec. 3.1-3.3; values of Sec. 4.3)."""

    graph_k: Annotated[int | None, Between(2, 1_000_000)] = 30
    """Neighbours of an item in the graph, eq. (1); None: chosen so that no component has more than
    a quarter of the items."""
    count_self: bool = True
    """The item is one of its own graph_k neighbours, as in the authors' released code."""
    search: Search = "exact"
    """k-NN of all items: exact, or approximate by faiss's inverted lists or navigable graph."""
    search_effort: Annotated[int, Between(1, 10**9)] = 64
    """Lists probed (ivf) or items kept while walking (hnsw): more find more, in more time."""
    power: Annotated[float, Between(0.01, 100)] = 3.0
    """Exponent of the similarities, eq. (1)."""
    component: Literal["largest", "all"] = "largest"
    """Keep the graph's largest connected component only, or every item."""
    selection: Selection = "walk"
    """Anchors: the random walk's local maxima; these, filled up by others drawn at random; every
    linked item; or some drawn at random."""
    anchors: Annotated[int | None, Between(1, 10**9)] = 1500
    """Anchors kept, by importance in the random walk (as released); None: all that are selected."""
    positives: Positives = "manifold"
    """P+ of eq. (5), or of a baseline: the 5 nearest, or those on a cycle of 4 (Li et al. 2016)."""
    negatives: Negatives = "manifold"
    """P- of eq. (6), or of a baseline: random ones past the 5 nearest, or far along the graph
    (Li)."""
    alpha: Annotated[float, Between(0, 0.999999)] = 0.99
    """Teleport parameter of the diffusion, eq. (2), in [0, 1)."""
    rtol: Annotated[float, Between(0, 1)] = 1e-10
    """Relative residual at which conjugate gradients stop (as released)."""
    max_iter: Annotated[int, Between(1, 1_000_000)] = 20
    """Most iterations of conjugate gradients (as released)."""
    hops: Annotated[int | None, Between(1, 1000)] = None
    """Diffuse within so many edges of an anchor only, for graphs whose vectors no machine has the
    memory for; None: in the whole graph, as in the paper."""
    positive_k: Annotated[int | None, Between(2, 1_000_000)] = 50
    """Neighbours compared for the positives, eq. (5), the anchor itself included; None: twice those
    in the graph."""
    positive_cut: Annotated[float, Between(0, 1)] = 0.0
    """Positives below this share of the anchor's highest similarity on the manifold are dropped."""
    negative_k: Annotated[int | None, Between(2, 10**9)] = 10_000
    """Neighbours compared for the negatives, eq. (6), capped at half of the items; None: 1% of
    them, from 100 to 10,000."""
    max_negatives: Annotated[int, Between(1, 1_000_000)] = 50
    """Negatives kept for an anchor (as released)."""
    geodesic_far: Annotated[float, Between(0, 1)] = 0.5
    """Geodesic negatives are farther along the graph than this share of the items it connects."""
    device: Annotated[Literal["auto", "cpu", "cuda"], EXECUTION] = "auto"
    """Where the k-NN search and the diffusion run; auto: on GPUs if the cluster has any."""
    threads: Annotated[int | None, Between(1, 10_000), EXECUTION] = None
    """CPUs of an actor that searches or diffuses: more of them need less memory. None: one, or as
    many as it takes for the actors to fit into the memory of a machine."""
    memory: Annotated[float | None, Between(0.0001, 1e6), EXECUTION] = None
    """GB of a machine's memory for shared objects that the features may take; larger ones are
    searched in parts. None: two fifths of what the machine with the least has for them."""
    query_block: Annotated[int, Between(1, 10**9)] = 4096
    """Queries of the k-NN search in a shard."""
    anchor_block: Annotated[int, Between(1, 100_000)] = 32
    """Anchors in a shard of the diffusion."""

    @property
    def sizes(self) -> tuple[int | None, int | None, int | None]:
        """Numbers of neighbours to compare, in the order of SIZES."""
        return self.graph_k, self.positive_k, self.negative_k

    @property
    def chosen_sizes(self) -> tuple[int, int, int]:
        """The numbers in `sizes`, once all of them are known."""
        graph_k, positive_k, negative_k = (size for size in self.sizes if size is not None)
        return graph_k, positive_k, negative_k

    def width(self, graph_k: int) -> int:
        """Return the neighbours of an item to find for a graph of `graph_k`, the item included."""
        return graph_k if self.count_self else graph_k + 1


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Fine-tuning on the mined tuples (Sec. 3.4; values of Sec. 4.3, which STEADY changes)."""

    pooling: Pooling = "mac"
    loss: Loss = "contrastive"
    """Contrastive loss of eq. (7), triplet loss of eq. (8), or InfoNCE, which compares an anchor
    with all images of a step that are not among its manifold neighbours."""
    margin: Annotated[float | None, Between(0, 4)] = None
    """Margin m; by default 0.7 (contrastive) or 0.5 (triplet)."""
    temperature: Annotated[float, Between(0.001, 10)] = 0.07
    """Temperature of InfoNCE, as in MoCo."""
    weighted: bool = True
    """Multiply a tuple's loss by the manifold similarity of its positive (+W)."""
    normalized_weights: bool = False
    """Divide the weights by their mean: their scale depends on the graph, and would change the
    learning rate."""
    epochs: Annotated[int, Between(1, 100_000)] = 30
    anchors_per_epoch: Annotated[int, Between(1, 10**9)] = 1000
    """Tuples drawn anew in each epoch, one per anchor."""
    batch_size: Annotated[int, Between(1, 1_000_000)] = 5
    """Tuples in an optimiser step, in total over all workers."""
    micro_batch_size: Annotated[int | None, Between(1, 1_000_000), EXECUTION] = None
    """Most tuples of a worker in one forward and backward pass, for want of memory: the gradients
    of several passes are accumulated. None: all of its tuples of a step."""
    positives: Annotated[int, Between(1, 1000)] = 1
    """Positives of a tuple; its loss is the mean over all pairs of a positive and a negative."""
    negatives: Annotated[int, Between(1, 1000)] = 1
    """Negatives of a tuple."""
    top_positives: Annotated[int | None, Between(1, 1_000_000)] = None
    """Positives in a pool to draw from, the most similar on the manifold; None: all."""
    hard_negatives: Annotated[int, Between(1, 1_000_000)] = 10
    """Negatives in a pool to draw from, the nearest to the anchor (as released)."""
    ranked_images: Annotated[int | None, Between(2, 1_000_000)] = None
    """Images to embed for each tuple to know its nearest negatives: more are reduced at random."""
    negative_pool: Annotated[int, Between(2, 10**9)] = 20_000
    """With --tuples: images drawn anew in each epoch, the pool of all its anchors' negatives."""
    mean_of_pairs: bool = False
    """Contrastive loss as in Radenović et al. (ECCV 2016): half the squares, averaged over the 1 +
    negatives pairs of a tuple."""
    augmentation: Augmentation = "none"
    """crop: random resized crops and flips, for fine-grained learning."""
    crop_size: Annotated[int, Between(32, 4096)] = 224
    """Pixels of a side of a crop."""
    crop_scale: Annotated[tuple[float, float], Between(0.001, 1)] = (0.2, 1.0)
    """Least and greatest share of an image's area in a random crop."""
    resize_size: Annotated[int | None, Between(32, 16_384)] = None
    """Pixels of the shorter side of an image whose centre is cropped, where it is embedded and not
    trained on; by default those of the crop."""
    optimizer: Optimizer = "sgd"
    learning_rate: Annotated[float, Between(0, 1000)] = 1e-2
    gem_rate: Annotated[float, Between(0, 10_000)] = 0.0
    """Learning rate of the exponent p of GeM, as a multiple of that of the weights; p has no weight
    decay. cirtorch takes 10. 0: p is constant."""
    schedule: Schedule = "step"
    """Course of the learning rate: it falls in steps, along half a cosine to 0, or not at all."""
    decay: Annotated[float, Between(0, 1)] = 0.1
    """Factor on the learning rate every `decay_epochs` epochs (step)."""
    decay_epochs: Annotated[int, Between(1, 100_000)] = 10
    warmup_epochs: Annotated[float, Between(0, 100_000)] = 0.0
    """Epochs during which the learning rate rises from 0."""
    momentum: Annotated[float, Between(0, 1)] = 0.9
    """Momentum of sgd."""
    dampening: Annotated[float, Between(0, 1)] = 0.0
    """Dampening of sgd: a gradient counts 1 - this in the momentum, but for the first one."""
    weight_decay: Annotated[float, Between(0, 1000)] = 5e-4
    clip_norm: Annotated[float | None, Between(0, 1e9)] = None
    """Largest norm of a step's gradient; None: no limit."""
    precision: TrainingPrecision = "float32"
    """Precision of the passes through the network; weights and losses stay in float32."""
    longest_side: Annotated[int, Between(32, 16_384)] = 362
    """Longest side of training images, pixels."""
    embed_batch_size: Annotated[int, Between(1, 65_536)] = 32
    """Most images in a forward pass without gradients; all have one shape."""
    held_out: Annotated[float, Between(0, 0.9)] = 0.0
    """Share of the anchors that are never trained on; their loss is logged."""
    validation_items: Annotated[int, _CHECK_ITEMS, Between(0, 1_000_000)] = 300
    """Items drawn at random whose manifold neighbours a good network finds, the check without
    labels that chooses an epoch; 0: no check."""
    average: bool = False
    """Measure and keep the mean of the networks after all epochs so far and before the first."""
    keep: Literal["best", "last"] = "last"
    """The network that is kept: that of the best epoch by the check without labels, the initial one
    included, or the last."""
    patience: Annotated[int | None, Between(1, 100_000)] = None
    """Epochs without a better network after which training ends; None: never early."""
    monitor_every: Annotated[int, Between(0, 100_000)] = 1
    """Epochs between two measurements of mAP during training, where labels exist; 0: never."""
    workers: Annotated[int | None, Between(1, 100_000), EXECUTION] = None
    """Most workers of distributed data parallel; by default one per GPU, or one."""


@dataclass(frozen=True, kw_only=True)
class WhiteningConfig:
    """PCA whitening for the initial network, LDA for the fine-tuned one (Sec. 4.3)."""

    images: Annotated[int, Between(2, 10**9)] = 5000
    """Unlabelled images from which PCA whitening is learned."""
    pairs: Annotated[int, Between(2, 10**9)] = 10_000
    """Matching pairs (anchor, manifold neighbour) from which LDA whitening is learned."""


@dataclass(frozen=True, kw_only=True)
class LabelledSetsConfig:
    """Labelled sets, how their images are described, and how they are searched (Sec. 4.3)."""

    benchmark: tuple[BenchmarkName, ...] = ()
    """Published benchmarks, whose files are found below `data`."""
    data: str | None = None
    """Folder that holds the benchmarks, each in a folder of its own or one alone."""
    distractors: str | None = None
    """Folder of the 100k distractors of oxford105k and paris106k, or of the million of roxford5k_1m
    and rparis6k_1m; by default found below `data`."""
    images: str | None = None
    """Folder of a labelled set of your own."""
    ground_truth: str | None = None
    """A gnd_*.pkl file or a folder of *_query.txt, *_good.txt, *_ok.txt, *_junk.txt; None: each
    class has a folder of its own with its images."""
    longest_side: Annotated[int, Between(32, 16_384)] = 1024
    """Longest side of test images, pixels; a query's box is cut out before they are reduced."""
    scales: Annotated[tuple[float, ...], SCALE] = (1.0,)
    """Each image is described at these multiples of its size, and the descriptors are summed."""
    poolings: tuple[Descriptor, ...] = ("rmac", "mac")
    """Descriptors that are measured; embedding: the network's own output, a head included."""
    crop: bool = True
    """Search with the box of a query, where it has one; else with the whole image."""
    precision: Precision = "float32"
    """The others are several times as fast on hardware that has them; the deviation is reported."""
    pca_images: str | None = None
    """Folder of independent images from which PCA whitening is learned."""
    dims: Annotated[int | None, Between(1, 100_000)] = None
    """Dimensions that whitened descriptors are reduced to; None: all."""
    search: tuple[QuerySearch, ...] = ("plain",)
    """Ways to search: plain, by expanded queries (averaged, or weighted by similarity), or by
    diffusion."""
    clusterings: Annotated[int, Between(1, 10_000)] = 5
    """Runs of k-means, each with another seed, whose NMI is averaged; for sets of classes."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig(LabelledSetsConfig):
    """Labelled sets on which the networks are measured before and after training."""

    pool_labels: str | None = None
    """CSV file of name,label of the unlabelled images, used only to measure how pure the pools
    are."""


@dataclass(frozen=True, kw_only=True)
class ClassesConfig:
    """The classes that Recall@k and NMI are measured on; nothing is learned from them."""

    images: str | None = None
    """Folder of images in classes: one folder per class, or CUB-200-2011's own layout; by default
    the second half of the classes of --images, of which only the first half is then trained on."""
    split: bool = True
    """Split --images in this way where no test images are given; else nothing is measured."""
    labels: str | None = None
    """CSV file of name,label of these images, where they do not lie in folders of their classes."""
    clusterings: Annotated[int, Between(1, 10_000)] = 5
    """Runs of k-means, each with another seed, whose NMI is averaged."""
