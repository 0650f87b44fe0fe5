"""Small search indexes of real files, made without Ray: what `mmray serve` opens."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from mmray.images.containers import index, read_image
from mmray.images.sources import find
from mmray.pipeline.named_indexes import set_current_index
from mmray.pipeline.stage import StageFolder
from mmray.serving.catalog import Catalog
from mmray.serving.encoder import ImageEncoder, TrainedModel
from mmray.serving.search_index import ABOUT, IMAGES, MODEL, write_vectors
from mmray.system.folder import Folder
from mmray.system.formats import write_json


def write_files(folder: Path, files: Mapping[str, bytes]) -> Path:
    """The files in a new folder."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def make_index(storage: Folder, name: str, source: Path, model: Path) -> StageFolder:
    """An index of the images of a folder or container, as `mmray search index` leaves it."""
    listed = find(str(source)).images if source.is_dir() else index(str(source))[0]
    catalog = Catalog.empty().merged([(str(source), listed)], retry=False)
    encoder = ImageEncoder.load(model)
    rows = encoder.encode([read_image(image, limit=1 << 30) for image in listed])
    return write_index(storage, name, catalog, rows, model)


def write_index(
    storage: Folder, name: str, catalog: Catalog, rows: np.ndarray, model: Path
) -> StageFolder:
    """An index of a catalog of new images, all readable, with these vectors (n, d) float32."""
    catalog, origins = catalog.with_descriptors(np.arange(len(rows)), [None] * len(rows))
    stage = StageFolder.of(storage, "index", name, catalog.images.digest())
    nothing = np.empty((0, rows.shape[1]), np.float32)
    write_vectors(stage.folder, origins, old=nothing, new=rows, whiten=lambda new: new)
    stage.folder.write_table(IMAGES, catalog.table)
    trained = TrainedModel.read(Folder(str(model)))
    about = {"model": trained.digest(), **trained.preprocessing.stored(), "precision": "float32"}
    write_json(stage.folder, ABOUT, about)
    for file in Folder(str(model)).names():
        (stage.folder / MODEL).write(file, (model / file).read_bytes())
    stage.finish({"images": len(rows), "kind": "flat"})
    set_current_index(storage, name, stage)
    return stage
