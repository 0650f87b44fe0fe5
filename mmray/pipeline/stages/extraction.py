"""The stages that turn images into features to mine on: describe, learn PCA, whiten.

n items, d dims.
"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from mmray.config.choices import Descriptor
from mmray.config.learning import LearningConfig
from mmray.config.run import RunConfig
from mmray.descriptors import shards
from mmray.descriptors.known import KnownDescriptors
from mmray.descriptors.moments import blocks
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.pooling import RegionWhitening
from mmray.descriptors.regions import Rmac
from mmray.descriptors.settings import DescriptorSettings, Preprocessing
from mmray.descriptors.weights import state_digest
from mmray.descriptors.whitening import pca_from, pca_whitening, read_whitening, write_whitening
from mmray.images.collection import Collection, sample
from mmray.pipeline import distributed
from mmray.pipeline.session import Counts, Session
from mmray.pipeline.stage import StageFolder, fingerprint
from mmray.pipeline.stages.minable import need_items
from mmray.pipeline.stages.neighbors import FeatureSource
from mmray.system.arrays import Features, Ids
from mmray.system.errors import InputError, explained
from mmray.system.folder import Folder
from mmray.system.formats import write_header
from mmray.system.progress import announce
from mmray.system.rows import Rows, StoredMatrix


@dataclass(frozen=True)
class ExtractedDescriptors:
    """Readable images and their descriptors; the id of an image is its place in `items`.

    Attributes
    ----------
    stage : the stage that described them
    poolings : kinds of descriptors
    items : n images
    places : (n,) their places among all images
    rows : (n,) their rows among the descriptors, ascending; None: all rows
    """

    stage: StageFolder
    poolings: Sequence[Descriptor]
    items: Collection
    places: Ids
    rows: Ids | None = None

    @property
    def fingerprint(self) -> str:
        """Return the fingerprint of the stage and, where it is one, of the selection."""
        if self.rows is None:
            return self.stage.fingerprint
        # Not of the numbers themselves: ten million make a text of 90 MB.
        return fingerprint(self.stage.fingerprint, sha256(self.rows.tobytes()).hexdigest())

    def features(self, pooling: Descriptor) -> Features:
        """Return the descriptors (n, d) float32 of one kind, a row for each item, see `mapped`."""
        return self.rows_of(pooling).mapped()

    def rows_of(self, pooling: Descriptor) -> Rows:
        """Return what `features` reads, to be read in parts."""
        return Rows(shards.stored_features(self.stage.folder, self.poolings, pooling), self.rows)


DESCRIBED = "described"  # folder below the storage: for each way of describing, its extractions


def extract_descriptors(
    session: Session[RunConfig],
    images: Collection,
    model: EmbeddingNet,
    *,
    settings: DescriptorSettings,
    stage_flag: str,
    settings_fingerprint: Any = None,
    max_bad_fraction: float | None = 0.0,
    flag: str = "",
    deduplicate: bool = False,
) -> ExtractedDescriptors:
    """Run the stage that describes images by a network.

    Images whose content it has described before, in the same way, in this storage, are not
    described again.

    Parameters
    ----------
    session : the run
    images : the images to describe
    model : the network
    settings : descriptors, preprocessing and precision
    stage_flag : stage of --stages that this one belongs to
    settings_fingerprint : JSON-like
        Origin of the whitening of regions, which `settings.stored` does not show.
    max_bad_fraction : largest fraction of the images that may be unreadable; None: all of them
    flag : that sets this fraction, for the message
    deduplicate : whether to keep only the first of images with equal content

    Raises
    ------
    InputError
        More than this fraction of the images cannot be read.
    """
    way = (state_digest(model), settings.stored(), settings_fingerprint)
    described = session.storage / DESCRIBED / fingerprint(way)

    def work(stage: StageFolder) -> Counts:
        known = KnownDescriptors.of(_extractions(session.storage, described), settings.poolings)
        distributed.extract(
            images,
            model,
            settings=settings,
            output=stage.folder / "features",
            pool=distributed.with_gpus(session.pool),
            label=stage_flag,
            report=session.reporting(stage_flag),
            most_bad=int((1 if max_bad_fraction is None else max_bad_fraction) * len(images)),
            known=known,
        )
        counts = shards.finish_features(
            stage.folder,
            settings.poolings,
            total=len(images),
            max_bad_fraction=max_bad_fraction,
            flag=flag,
            deduplicate=deduplicate,
            locations=images.locations,
        )
        before = known.count(stage.folder.read_table("images.parquet", ["digest"])["digest"])
        if before:
            announce(
                f"{stage_flag}: {before} of {counts['images']} images had been described before"
            )
        return counts | {"described_before": before}

    inputs = (images.digest(), *way, settings.shard_size, deduplicate)
    stage = session.run_stage(
        "extract", *inputs, work=work, stage_flag=stage_flag, internal=["features/"]
    )
    if "deviation" in stage.counts:
        announce(
            f"{stage_flag}: cosines of {settings.precision} descriptors to those in float32: "
            f"1 - {stage.counts['deviation']:.2g} on average, "
            f"1 - {stage.counts['deviation_max']:.2g} at worst (one image of each shard)"
        )
    if not described.has(stage.fingerprint):
        described.write(stage.fingerprint, b"")
    kept = stage.folder.read_table("images.parquet", ["item"])["item"].to_numpy()
    return ExtractedDescriptors(stage, settings.poolings, images.take(kept), kept)


def _extractions(storage: Folder, described: Folder) -> list[Folder]:
    """Return the folders of the extractions that are named in a folder."""
    return [storage / f"extract-{mark}" for mark in described.names()]


REGION_IMAGES = 5000  # images that the PCA of regions is learned from


def extract_stage(
    session: Session[LearningConfig], model: EmbeddingNet, images: Collection
) -> ExtractedDescriptors:
    """Describe the unlabelled images by the network that gives the features to mine on.

    Raises
    ------
    InputError
        There are too few images, or too many of them cannot be read.
    """
    config = session.config.extraction
    need_items(session.config.mining, len(images), "images")
    preprocessing = Preprocessing(config.longest_side, enlarge=config.enlarge, scales=config.scales)
    settings = DescriptorSettings.of(config, preprocessing, config.poolings)
    settings = dataclasses.replace(settings, regions=Rmac(whole=config.rmac_whole))
    regions = _region_stage(session, images, model, settings) if config.region_whitening else None
    if regions is not None:
        whitening = RegionWhitening.of(read_whitening(regions.folder, "regions.npz"))
        whitened = dataclasses.replace(settings.regions, whitening=whitening)
        settings = dataclasses.replace(settings, regions=whitened)
    described = extract_descriptors(
        session,
        images,
        model,
        settings=settings,
        settings_fingerprint=None if regions is None else regions.fingerprint,
        stage_flag="extract",
        max_bad_fraction=config.max_bad_fraction,
        flag="--extraction.max-bad-fraction",
        deduplicate=session.config.deduplicate,
    )
    need_items(session.config.mining, len(described.items), "readable images")
    return described


def _region_stage(
    session: Session[LearningConfig],
    images: Collection,
    model: EmbeddingNet,
    settings: DescriptorSettings,
) -> StageFolder:
    """Run the stage that learns PCA whitening of R-MAC regions from a sample of the images."""
    config = session.config
    learned_from = sample(images, REGION_IMAGES, config.seed)

    def work(stage: StageFolder) -> Counts:
        moments = distributed.sum_up_regions(
            learned_from,
            model,
            settings=settings,
            output=stage.folder / "moments",
            pool=distributed.with_gpus(session.pool),
            label="regions",
        )
        if not moments.count:
            raise InputError(
                f"--extraction.region-whitening: none of the {len(learned_from)} images for it "
                f"could be read, the first of them {learned_from[0].location}; repair them"
            )
        with explained("--extraction.region-whitening", "leave it out, or choose other images"):
            whitening = pca_from(moments)
        write_whitening(stage.folder, "regions.npz", whitening)
        return {"images": len(learned_from), "regions": moments.count}

    frame = settings.preprocessing
    sizes = (frame.longest_side, frame.scales, *(["enlarge"] if frame.enlarge else []))
    options = (*sizes, settings.regions.whole, settings.max_pixels)
    inputs = (learned_from.digest(), state_digest(model), options)
    return session.run_stage(
        "regions", *inputs, work=work, stage_flag="extract", internal=["moments/"]
    )


def features_stage(
    session: Session[LearningConfig], described: ExtractedDescriptors
) -> FeatureSource:
    """Return the features to mine on: the first descriptor, reduced by PCA if that is set.

    What has fewer dimensions, as the embedding of a head, is whitened and not reduced.
    """
    pooling, dims = described.poolings[0], session.config.extraction.pca
    source = FeatureSource(
        described.fingerprint,
        len(described.items),
        described.rows_of(pooling),
        "images",
    )
    if dims is None:
        return source

    def work(stage: StageFolder) -> Counts:
        features = source.rows.mapped()
        with explained(f"--extraction.pca {dims}", "choose None, or other images"):
            whitening = pca_whitening(features)
        write_whitening(stage.folder, "pca.npz", whitening)
        left = min(dims, features.shape[1])
        with stage.folder.writing("features.npy") as sink:
            write_header(sink, (len(features), left))
            for block in blocks(len(features)):
                sink.write(whitening.apply(features[block], left).tobytes())
        return {"images": len(features), "dims": left}

    stage = session.run_stage("pca", source.fingerprint, dims, work=work, stage_flag="extract")
    return dataclasses.replace(
        source,
        fingerprint=stage.fingerprint,
        rows=Rows(StoredMatrix(stage.folder, "features.npy")),
    )
