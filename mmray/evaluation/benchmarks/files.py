"""Search for the files of a benchmark in folders, local or remote."""

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import pyarrow as pa
from pyarrow import fs

from mmray.images.collection import SUFFIXES, ImageFile
from mmray.images.sources import list_files
from mmray.system import locations
from mmray.system.errors import InputError
from mmray.system.folder import Folder
from mmray.system.locations import error_line, local_path, prefetch, read_bytes
from mmray.system.uris import masked

# Usual folders of distractors: Flickr's 100,000 of Oxford, and R1M.
FLICKR100K = ("oxc1_100k", "flickr100k", "oxford100k", "distractors")
R1M = ("revisitop1m", "r1m")
_DISTRACTORS = FLICKR100K + R1M
_TEXTS = ("_query.txt", "_good.txt", "_ok.txt", "_junk.txt")
_LARGEST = 1 << 28  # bytes that a ground truth may have


@dataclass(frozen=True, eq=False, kw_only=True)
class Place:
    """A folder to search for the files of a benchmark.

    Attributes
    ----------
    uri : path or URI
    below : the folder that names of files are relative to: this one, or the one that holds it
    own : whether the folder is the benchmark's own, in which every file must be readable
    """

    uri: str
    below: str
    own: bool

    @cached_property
    def files(self) -> list[ImageFile]:
        """List all files, sorted by name."""
        prefix = "" if self.uri == self.below else f"{_last(self.uri)}/"
        found = []
        for file in list_files(self.uri):
            if file.error is None:
                found.append(replace(file, name=f"{prefix}{file.name}"))
            elif self.own:
                raise InputError(f"{self.uri}: {file.name}: {file.error}; repair or remove it")
        return sorted(found, key=lambda file: file.name)

    @property
    def images(self) -> dict[str, ImageFile]:
        """Return the image files by name, except those in a usual folder of distractors."""
        return {
            file.name: file
            for file in self.files
            if file.name.lower().endswith(SUFFIXES)
            and file.name.partition("/")[0].lower() not in _DISTRACTORS
        }


def folders(data: str) -> dict[str, str]:
    """List the folders directly in a folder: name in lower case -> path or URI.

    Raises
    ------
    InputError
        The folder is missing or cannot be read.
    """
    path = local_path(data)
    try:
        if path is not None:
            names = [entry.name for entry in path.iterdir() if entry.is_dir()]
        else:
            filesystem, root = locations.open_folder(data)
            entries = locations.with_retries(
                lambda: filesystem.get_file_info(fs.FileSelector(root)), data
            )
            names = [each.base_name for each in entries if each.type == fs.FileType.Directory]
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{data}: cannot be listed ({error_line(error)}); name the folder that holds the "
            "benchmarks"
        ) from error
    return {name.lower(): Folder(data).location(name) for name in sorted(names, reverse=True)}


def find_ground_truth(
    places: Sequence[Place], names: Collection[str], landmarks: tuple[str, ...]
) -> tuple[list[ImageFile], bool]:
    """Find the ground truth in the first place that has one.

    Parameters
    ----------
    names : of files that hold a ground truth
    landmarks : beginnings of the names of queries; empty where the benchmark has no text files.
        A folder of text files is a ground truth in the benchmark's own place; elsewhere, where the
        name of a query in it begins with a landmark

    Returns
    -------
    (files, is_text) : the one file, or the text files of the folder.

    Raises
    ------
    InputError
        There is no ground truth, or there are two in one place.
    """
    for place in places:
        files = [file for file in place.files if file.name.rpartition("/")[2] in names]
        texts = _texts(place, landmarks) if landmarks else []
        found = [*(([file], False) for file in files), *((folder, True) for folder in texts)]
        if len(found) > 1:
            one, two = (
                files[0].uri.rpartition("/")[0] if is_text else files[0].uri
                for files, is_text in found[:2]
            )
            raise InputError(f"{place.uri}: two ground truths, {one} and {two}: keep one")
        if found:
            return found[0]
    expected = " or ".join(names) + (" or a folder of *_query.txt files" if landmarks else "")
    raise InputError(f"{places[0].uri}: no ground truth, {expected}, in this folder")


def _texts(place: Place, landmarks: tuple[str, ...]) -> list[list[ImageFile]]:
    """List the text files of each folder that has files of queries."""
    inside = defaultdict(list)
    with_queries = set()
    for file in place.files:
        folder, _, name = file.name.rpartition("/")
        if name.endswith(_TEXTS):
            inside[folder].append(file)
        if name.endswith("_query.txt") and (place.own or name.startswith(landmarks)):
            with_queries.add(folder)
    return [files for folder, files in inside.items() if folder in with_queries]


def contents(files: Sequence[ImageFile]) -> dict[str, bytes]:
    """Read files of one folder: name -> content; InputError where one cannot be read."""
    names = [file.name.rpartition("/")[2] for file in files]
    return dict(zip(names, prefetch(_content, files), strict=True))


def _content(file: ImageFile) -> bytes:
    try:
        return read_bytes(file.uri, limit=_LARGEST)
    except OSError as error:
        raise InputError(f"{file.uri}: cannot be read ({error_line(error)}); repair it") from error


def _last(uri: str) -> str:
    return masked(uri).partition("?")[0].rstrip("/").rpartition("/")[2]
