"""The stages that turn images into features Y to mine on: list, describe, whiten.

n items, d dims.
"""

import dataclasses

from mmray.artifacts import Stage
from mmray.config.learning import LearningConfig
from mmray.describing import Described, describe
from mmray.descriptors.moments import blocks
from mmray.descriptors.network import EmbeddingNet
from mmray.descriptors.pooling import RegionWhitening, Rmac
from mmray.descriptors.settings import Description
from mmray.descriptors.weights import state_digest
from mmray.descriptors.whitening import pca_from, pca_whitening, read_whitening, write_whitening
from mmray.distributed import cluster
from mmray.distributed.extraction import sum_up_regions
from mmray.images.collection import Collection, sample
from mmray.mining_stages import Source, need_items
from mmray.session import Counts, Session
from mmray.system.errors import InputError
from mmray.system.formats import read_array, write_header

REGION_IMAGES = 5000  # of which the PCA of regions is learned


def extract_stage(
    session: Session[LearningConfig], model: EmbeddingNet, images: Collection
) -> Described:
    """Descriptors of the unlabelled images by the initial network.

    Raises
    ------
    InputError
        There are too few images, or too many of them cannot be read.
    """
    config = session.config.extraction
    need_items(session.config.mining, len(images), "images")
    how = Description(
        longest_side=config.longest_side,
        scales=config.scales,
        poolings=config.poolings,
        regions=Rmac(whole=config.rmac_whole),
        precision=config.precision,
        batch_size=config.batch_size,
        max_pixels=config.max_pixels,
    )
    regions = _region_stage(session, images, model, how) if config.region_whitening else None
    if regions is not None:
        whitening = RegionWhitening.of(read_whitening(regions.folder, "regions.npz"))
        how = dataclasses.replace(how, regions=Rmac(whole=config.rmac_whole, whitening=whitening))
    described = describe(
        session,
        images,
        model,
        how=how,
        shard_size=config.shard_size,
        how_mark=None if regions is None else regions.fingerprint,
        part_of="extract",
        max_bad_fraction=config.max_bad_fraction,
        flag="--extraction.max-bad-fraction",
        deduplicate=session.config.deduplicate,
    )
    need_items(session.config.mining, len(described.items), "readable images")
    return described


def _region_stage(
    session: Session[LearningConfig], images: Collection, model: EmbeddingNet, how: Description
) -> Stage:
    """PCA whitening of the regions of R-MAC, learned from a sample of the images."""
    config = session.config
    learned_from = sample(images, REGION_IMAGES, config.seed)

    def work(stage: Stage) -> Counts:
        moments = sum_up_regions(
            learned_from,
            model,
            how=how,
            output=stage.folder / "moments",
            shard_size=config.extraction.shard_size,
            pool=cluster.with_gpus(session.pool),
            label="regions",
        )
        if not moments.count:
            raise InputError(
                f"--extraction.region-whitening: none of the {len(learned_from)} images for it "
                f"could be read, the first of them {learned_from[0].location}; mend that"
            )
        write_whitening(stage.folder, "regions.npz", pca_from(moments))
        return {"images": len(learned_from), "regions": moments.count}

    settings = (how.longest_side, how.scales, how.regions.whole, how.max_pixels)
    inputs = (learned_from.digest(), state_digest(model), settings)
    return session.stage("regions", *inputs, work=work, part_of="extract")


def features_stage(session: Session[LearningConfig], described: Described) -> Source:
    """The features to mine on: the first of the descriptors, whitened where that is asked for."""
    pooling, dims = described.poolings[0], session.config.extraction.pca
    source = Source(
        described.stage.fingerprint,
        len(described.items),
        lambda: described.features(pooling),
        "images",
    )
    if dims is None:
        return source

    def work(stage: Stage) -> Counts:
        features = source.load()
        whitening = pca_whitening(features)
        write_whitening(stage.folder, "pca.npz", whitening)
        with stage.folder.writing("features.npy") as sink:
            write_header(sink, (len(features), dims))
            for block in blocks(len(features)):
                sink.write(whitening.apply(features[block], dims).tobytes())
        return {"images": len(features), "dims": dims}

    stage = session.stage("pca", source.fingerprint, dims, work=work, part_of="extract")
    return dataclasses.replace(
        source,
        fingerprint=stage.fingerprint,
        load=lambda: read_array(stage.folder, "features.npy"),
    )
