"""Sources of images that a user names: a folder, an image, a tar or Parquet file, or a list.

n images. The images in tar and Parquet files are listed later, by `containers.index`.
"""

import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import fs

from mmray.images import containers, folders, left_out, lists
from mmray.images.collection import SUFFIXES, Collection, ImageFile
from mmray.images.folders import PARQUET, TAR, Stamp, unchanged
from mmray.images.left_out import LeftOut
from mmray.system import locations
from mmray.system.errors import InputError
from mmray.system.locations import as_text, bare, error_line, local_path, uri_of
from mmray.system.progress import announce
from mmray.system.text_files import natural_order
from mmray.system.uris import ONLY, SCHEMES, scheme_of

__all__ = ["SourceListing", "Stamp", "find", "list_images", "probe", "unchanged"]

Kind = Literal["folder", "image", "tar", "parquet", "list"]

_LISTS = (".txt", ".lst", ".list")
_PACKED = (".gz", ".tgz", ".zip", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar")
_KINDS: tuple[tuple[tuple[str, ...], Kind], ...] = (
    *((SUFFIXES, "image"), ((TAR,), "tar"), ((PARQUET,), "parquet"), (_LISTS, "list")),
)
_READABLE = (
    f"a folder, an image ({' '.join(SUFFIXES)}), a tar file ({TAR}), a Parquet file ({PARQUET}), "
    f"or a list with one path or URI a line ({' '.join(_LISTS)})"
)
_BLOCK = 65_536  # files held as objects at a time, which take more memory than a table


@dataclass(frozen=True)
class SourceListing:
    """The images and the containers of images that were found in a source.

    Attributes
    ----------
    images : those that are files of their own: of a folder sorted by name, of a list in its order,
        as often as it names them
    containers : sorted paths and URIs of tar and Parquet files whose images are still to be listed,
        part.2 before part.10
    watched : stamps by which `unchanged` detects changes
    left_out : what is in a folder and not an image -> its number
    summary : a sentence for the user
    """

    images: Collection
    containers: tuple[str, ...]
    watched: tuple[Stamp, ...]
    left_out: Counter[str]
    summary: str


def find(source: str, *, column: str | None = None) -> SourceListing:
    """Find the images of one source, and the files in it that hold images.

    Parameters
    ----------
    source : a local path, or a percent-encoded URI (s3://bucket/photos, gs://bucket/photos)
    column : column of a Parquet file with the images, or their paths and URIs; None: detect it

    Raises
    ------
    InputError
        The source is missing, of no known kind, out of reach, or without images.
    """
    kind = _kind(source)
    if kind == "folder":
        return _source_listing(source, _files(source), is_folder=True)
    uri = _uri(source)
    watched = folders.stamps([uri])
    if kind == "list":
        return _source_listing(source, lists.in_blocks(uri, lists.lines(uri)), watched)
    if kind == "parquet" and not containers.holds_images(uri, column):
        return _source_listing(source, lists.in_blocks(uri, lists.cells(uri, column)), watched)
    return _source_listing(
        source, [ImageFile(uri=uri, name=_name(uri), size=watched[0].size)], watched
    )


def probe(source: str, *, column: str | None = None) -> None:
    """Raise the error that `find` would raise, as far as it can be detected quickly.

    A local folder is searched for a first image, tar or Parquet file; a remote one only has to
    exist.
    """
    kind = _kind(source)
    if kind == "list":
        lists.lines(_uri(source))
    elif kind == "parquet" and not containers.holds_images(_uri(source), column):
        lists.column_of(_uri(source), column)
    elif kind == "folder" and local_path(source) is not None:
        failed, passed = [], Counter[str]()
        for file in _files(source):
            if isinstance(file, ImageFile):
                if file.error is None:
                    return
                failed.append(file)
            elif isinstance(file, LeftOut):
                passed[file] += 1
        raise _nothing(source, failed, passed, is_folder=True)


def list_images(folder: str) -> list[ImageFile]:
    """List the image files below a folder, sorted by name; say what is left out.

    That are tar and Parquet files too.

    Raises
    ------
    InputError
        The folder is missing, a file, out of reach or without images, or a part cannot be listed.
    """
    if _kind(folder) != "folder":
        raise InputError(f"{folder}: this is a file; give the folder that holds the images")
    found = find(folder)
    for image in found.images:
        if image.error is not None:
            raise InputError(f"{folder}: {image.name}: {image.error}; mend or remove it")
    if not len(found.images):
        raise InputError(f"{folder}: no images in this folder (looked for {' '.join(SUFFIXES)})")
    passed = +Counter(found.left_out | {TAR: len(found.containers)})
    if passed:
        announce(f"{folder}: {len(found.images):,} images; left out: {left_out.counted(passed)}")
    return list(found.images)


def list_files(folder: str) -> list[ImageFile]:
    """List the files below a folder with any suffix, except hidden ones, in no order.

    Raises
    ------
    InputError
        The folder is missing, a file, or out of reach.
    """
    if not _is_folder(folder):
        raise InputError(f"{folder}: this is a file; give the folder that holds the images")
    return [file for file in _files(folder, ("",)) if isinstance(file, ImageFile)]


# -- kinds of sources -----------------------------------------------------------------------------


def _kind(source: str) -> Kind:
    scheme = scheme_of(source)
    if scheme is not None and scheme not in SCHEMES:
        raise InputError(f"{source}: {ONLY}")
    if _is_folder(source):
        return "folder"
    name = _name(source).lower()
    for suffixes, kind in _KINDS:
        if name.endswith(suffixes):
            return kind
    remedy = "unpack it" if name.endswith(_PACKED) else f"give {_READABLE}"
    raise InputError(f"{source}: images are not read from such a file; {remedy}")


def _is_folder(source: str) -> bool:
    """Tell whether a source is a folder and not a file; InputError if it is neither."""
    missing = InputError(f"{source}: no such file or folder")
    if not source:
        raise missing
    try:
        path = local_path(source)
        if path is not None:
            mode = path.stat().st_mode
            is_folder, is_file = stat.S_ISDIR(mode), stat.S_ISREG(mode)
        else:
            filesystem, name = locations.open_folder(source)
            kind = filesystem.get_file_info(name).type
            if kind == fs.FileType.NotFound:
                raise missing
            is_folder, is_file = kind == fs.FileType.Directory, kind == fs.FileType.File
    except (FileNotFoundError, NotADirectoryError) as error:
        raise missing from error
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{source}: cannot be reached ({error_line(error)})") from error
    if not is_folder and not is_file:
        raise InputError(f"{source}: neither a file nor a folder; give {_READABLE}")
    return is_folder


def _uri(source: str) -> str:
    path = local_path(source)
    return source if path is None else uri_of(path)


def _name(uri: str) -> str:
    """Return the name of a file as a person writes it."""
    path = local_path(uri)
    return unquote(bare(uri).rpartition("/")[2]) if path is None else as_text(path.name)


def _files(
    folder: str, wanted: tuple[str, ...] = folders.WANTED
) -> Iterator[ImageFile | Stamp | LeftOut]:
    path = local_path(folder)
    try:
        if path is None:
            yield from folders.remote_files(folder, wanted)
        else:
            yield from folders.walk(path, wanted)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"{folder}: cannot be listed ({error_line(error)})") from error


# -- what was found -------------------------------------------------------------------------------


def _source_listing(
    source: str,
    files: Iterable[ImageFile | Collection | Stamp | LeftOut],
    watched: Sequence[Stamp] = (),
    *,
    is_folder: bool = False,
) -> SourceListing:
    stamps, passed = list(watched), Counter[str]()
    inside: dict[str, set[str]] = {TAR: set(), PARQUET: set()}
    blocks: list[Collection] = []
    block: list[ImageFile] = []
    for file in files:
        if isinstance(file, Stamp):
            stamps.append(file)
            continue
        if isinstance(file, LeftOut):
            passed[file] += 1
            continue
        if isinstance(file, Collection):
            blocks += [Collection.of(block), file]
            block = []
            continue
        suffix = bare(file.name).lower().rpartition(".")[2]
        if file.error is None and f".{suffix}" in inside:
            inside[f".{suffix}"].add(file.uri)
            continue
        block.append(file)
        if len(block) == _BLOCK:
            blocks.append(Collection.of(block))
            block = []
    images = Collection.joined([*blocks, Collection.of(block)])
    if is_folder:
        images = images.take(pc.sort_indices(images.table["name"]).to_numpy())
    usable = images.table["error"].null_count
    tars, parquets = inside[TAR], inside[PARQUET]
    beside = is_folder and bool(usable or tars)  # tables of labels and the like
    if not usable and not tars and not parquets:
        raise _nothing(source, images, passed, is_folder=is_folder)
    held = sorted(tars if beside else tars | parquets, key=natural_order)
    counts = (usable, len(tars), len(parquets), len(images) - usable)
    rest = f"; left out: {left_out.counted(passed)}" if passed else ""
    passed[PARQUET] += len(parquets) if beside else 0
    return SourceListing(
        images=images,
        containers=tuple(held),
        watched=tuple(dict.fromkeys([*stamps, *folders.stamps(held)])),
        left_out=+passed,
        summary=f"{source}: {_counted(*counts, beside=beside)}{rest}",
    )


def _counted(images: int, tars: int, parquets: int, failed: int, *, beside: bool) -> str:
    parquet = "Parquet file beside them, left out" if beside else "Parquet file"
    said = []
    for count, noun in ((images, "image file"), (tars, "tar file"), (parquets, parquet)):
        if count:
            said.append(f"{count:,} {noun if count == 1 else noun.replace('file', 'files')}")
    if failed:
        said.append(f"{failed:,} that cannot be read")
    return ", ".join(said)


def _nothing(
    source: str, failed: Sequence[ImageFile], passed: Counter[str], *, is_folder: bool
) -> InputError:
    """Return the error for a source without images, or with none that can be read."""
    if is_folder:
        looked_for = f"looked for {' '.join(SUFFIXES)}, {TAR}, {PARQUET}"
        problem = f"no images in this folder ({looked_for}"
        problem += f"; it holds {left_out.counted(passed)})" if passed else ")"
    else:
        problem = "this list names no file that can be read"
    if failed:
        problem += f"; {len(failed):,} cannot be read, as {failed[0].name}: {failed[0].error}"
    return InputError(f"{source}: {problem}")
