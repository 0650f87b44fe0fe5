"""The recipe of `jobs/search.py query`: search an index with images."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mmray.config.bounds import check_bounds, check_not_empty
from mmray.config.tools import QueryConfig, SearchedIndexConfig
from mmray.images.collection import ImageFile
from mmray.images.decoding import load_image
from mmray.mining.knn.results import Neighbors
from mmray.pipeline.named_indexes import INDEXES, current_index
from mmray.pipeline.reports.search_page import Result, Search, search_page
from mmray.pipeline.reports.tables import table
from mmray.pipeline.reports.thumbnails import picture_of
from mmray.pipeline.stage import StageFolder
from mmray.serving.encoder import ImageEncoder
from mmray.serving.search_index import COMPRESSED, VECTORS, SearchIndex
from mmray.system.arrays import Box
from mmray.system.errors import InputError, first_names
from mmray.system.folder import Folder, open_storage
from mmray.system.progress import announce
from mmray.system.uris import masked

SIDE = 240  # pixels of a thumbnail
_ANEW = "the same `search.py index` command as before makes them anew"


def run(config: QueryConfig) -> str:
    """Search an index with the query images, and write a page of the results.

    Returns
    -------
    A table of the results, in Markdown.

    Raises
    ------
    InputError
        There is no such index, or an image or a setting cannot be used.
    """
    if not config.query or not all(config.query):
        raise InputError("no image to search with: name one after `query`")
    check_bounds(config)
    check_not_empty(config)
    storage = open_storage(config.storage)
    index, encoder = opened_index(storage, config)
    queries = encoder.encode(config.query, index.about["longest_side"], box=config.box)
    found = index.nearest(queries, config.top, probes=config.probes)
    page = Path(config.page).absolute()
    try:
        page.write_text(_page(config, index, found), encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"--page {config.page}: cannot be written ({error.strerror}); name another file"
        ) from error
    announce(f"page: {page}")
    return _table(config.query, index, found)


def opened_index(storage: Folder, config: SearchedIndexConfig) -> tuple[SearchIndex, ImageEncoder]:
    """Read an index and its model; once more if it was updated meanwhile, and thus removed.

    Raises
    ------
    InputError
        There is no such index, or a file of it is missing or damaged.
    """
    stage = _index(storage, config)
    try:
        return _read(stage, config)
    except (OSError, InputError) as error:
        newer = _index(storage, config)
        if newer.fingerprint != stage.fingerprint:
            return _read(newer, config)
        if isinstance(error, FileNotFoundError):
            raise InputError(
                f"--name {config.index_name}: files are missing ({error}); {_ANEW}"
            ) from error
        raise


def _read(stage: StageFolder, config: SearchedIndexConfig) -> tuple[SearchIndex, ImageEncoder]:
    # A compressed index reads few of the vectors, so they are not compared with their digest.
    if stage.done and (bad := stage.damaged([VECTORS] if stage.folder.has(COMPRESSED) else [])):
        raise InputError(
            f"--name {config.index_name}: damaged files ({first_names(bad, 3)}); {_ANEW}"
        )
    index = SearchIndex.read(stage.folder)
    return index, ImageEncoder.load(index.model)


def _index(storage: Folder, config: SearchedIndexConfig) -> StageFolder:
    stage = current_index(storage, config.index_name)
    if stage is None:
        known = [name.removesuffix(".json") for name in (storage / INDEXES).names()]
        raise InputError(
            f"--name {config.index_name}: no such index under --storage {config.storage} (there: "
            f"{', '.join(known) or 'none'}); make it with "
            "`python jobs/search.py index --model FOLDER --images FOLDER`"
        )
    return stage


def _table(queries: Sequence[str], index: SearchIndex, found: Neighbors) -> str:
    several = len(queries) > 1
    rows = [
        [*([masked(query)] if several else []), location, str(rank), f"{cosine:.4f}"]
        for query, ids, cosines in zip(queries, found.ids, found.similarities, strict=True)
        for rank, (location, cosine) in enumerate(
            zip(index.images.locations_of(ids), cosines, strict=True), start=1
        )
    ]
    head = (*(["query"] if several else []), "image", "rank", "cosine")
    return table(head, rows, numbers=2)


def _page(config: QueryConfig, index: SearchIndex, found: Neighbors) -> str:
    searches = []
    for query, ids, cosines in zip(config.query, found.ids, found.similarities, strict=True):
        results = []
        locations = index.images.locations_of(ids)
        for item, location, cosine in zip(ids.tolist(), locations, cosines.tolist(), strict=True):
            image = index.images[item]
            # Where the name is repeated in the file, its place there follows.
            name = image.name + location.removeprefix(image.location)
            picture = replace(picture_of(image, SIDE), name=name)
            results.append(Result(picture=picture, similarity=cosine))
        asked = ImageFile(uri=query, name=PurePosixPath(masked(query)).name)
        searches.append(
            Search(
                query=picture_of(asked, SIDE, "anchor"),
                results=tuple(results),
                crop=None if config.box is None else _shares(asked, config.box),
            )
        )
    total = f"{len(index.images):,} images in the index {config.index_name!r}"
    return search_page(searches, summary=(total,))


def _shares(image: ImageFile, box: Box) -> Box:
    """Convert a box in pixels to shares of the image's width and height."""
    decoded = load_image(image, longest_side=SIDE)
    left, top, right, bottom = box
    width, height = decoded.width, decoded.height
    return left / width, top / height, right / width, bottom / height
