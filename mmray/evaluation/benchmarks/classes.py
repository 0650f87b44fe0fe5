"""Images in classes: in a folder per class, or in the layout of CUB-200-2011 (Wah et al., 2011).

n images.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import pyarrow as pa

from mmray.images.collection import ImageFile
from mmray.images.sources import list_images
from mmray.system.errors import InputError, first_names
from mmray.system.folder import Folder
from mmray.system.locations import error_line, read_bytes
from mmray.system.text_files import normalized, read_lines

# The files of CUB-200-2011: its images, the class of each, and the names of the classes.
_IMAGES, _LABELS, _NAMES = "images.txt", "image_class_labels.txt", "classes.txt"
_FOLDER = "images"  # what images.txt names lies below it
_ID, _TEXT = "[0-9]{1,18}", r"\S.*"


@dataclass(frozen=True, eq=False, kw_only=True)
class ClassSet:
    """A set of images, each labelled with its class.

    Attributes
    ----------
    source : str
        The folder, for messages and names.
    images : tuple of n ImageFile
    labels : tuple of n str
        The name of the class of each image.
    classes : tuple of str
        The names of the classes, in their order; each has an image.
    """

    source: str
    images: tuple[ImageFile, ...]
    labels: tuple[str, ...]
    classes: tuple[str, ...]

    @property
    def has_pairs(self) -> bool:
        """Tell whether any two images are of the same class."""
        return len(self.classes) < len(self.images)

    def of_classes(self, names: Sequence[str]) -> "ClassSet":
        """Select classes by name, with their images; the order stays.

        Raises
        ------
        InputError
            A name is not that of a class.
        """
        wanted = set(names)
        unknown = sorted(wanted.difference(self.classes))
        if unknown:
            raise InputError(
                f"{self.source}: no class is named {first_names(unknown)}; name some of "
                f"{first_names(self.classes)}"
            )
        kept = [row for row, label in enumerate(self.labels) if label in wanted]
        return replace(
            self,
            images=tuple(self.images[row] for row in kept),
            labels=tuple(self.labels[row] for row in kept),
            classes=tuple(name for name in self.classes if name in wanted),
        )

    def halves(self) -> tuple["ClassSet", "ClassSet"]:
        """Split the classes into a first half and the rest, one more where their number is odd.

        This is the split of metric learning (Song et al., CVPR 2016): train on the first half, test
        on the rest, classes that were never seen.

        Raises
        ------
        InputError
            There are fewer than two classes.
        """
        count = len(self.classes)
        if count < 2:
            raise InputError(
                f"{self.source}: images of {count} class{'' if count == 1 else 'es'}, expected at "
                "least 2, half of them to train on and half to test on; add images of other classes"
            )
        middle = count // 2
        return self.of_classes(self.classes[:middle]), self.of_classes(self.classes[middle:])


def class_set(folder: str) -> ClassSet:
    """Find the images of a folder and their classes.

    A folder with a file image_class_labels.txt is read as CUB_200_2011, as it is published: images
    in the order of images.txt, and no others; classes by ascending id, those without images left
    out. Without classes.txt the id of a class is its name.

    Any other folder is read as one with a folder per class: the class is the whole path before the
    file's name. Images and classes are in alphabetical order.

    Parameters
    ----------
    folder : a local path or a URI

    Raises
    ------
    InputError
        A file is missing or damaged (which, which line), an image is missing, has no class or is
        listed twice, or no two images are of the same class; see also `list_images`.
    """
    images = list_images(folder)
    labels = _read(folder, _LABELS)
    return _by_folder(images, folder) if labels is None else _by_files(images, labels, folder)


# -- a folder per class ---------------------------------------------------------------------------


def _by_folder(images: Sequence[ImageFile], source: str) -> ClassSet:
    """Label images with the folders that they are in."""
    outside = [image.name for image in images if "/" not in image.name]
    if outside:
        raise InputError(
            f"{source}: {len(outside)} of {len(images)} images are in no class: "
            f"{first_names(outside)}; put each in a folder of its class"
        )
    labels = tuple(normalized(image.name).rpartition("/")[0] for image in images)
    found = ClassSet(
        source=source, images=tuple(images), labels=labels, classes=tuple(sorted(set(labels)))
    )
    if not found.has_pairs:
        raise InputError(
            f"{source}: no two of {len(images)} images are in the same folder, so that nothing "
            "could be found; put the images of a class in one folder"
        )
    return found


# -- the files of CUB-200-2011 --------------------------------------------------------------------


class _Entry(NamedTuple):
    line: int
    value: str


def _by_files(images: Sequence[ImageFile], labels: Sequence[str], source: str) -> ClassSet:
    """Label the images of images.txt by the other files of CUB-200-2011."""
    listing, labelling = _place(source, _IMAGES), _place(source, _LABELS)
    paths = _entries(_needed(source, _IMAGES), "image id", "path", _TEXT, place=listing)
    class_of = _entries(labels, "image id", "class id", _ID, place=labelling)
    unlabelled = [f"{id_} ({path[:63]})" for id_, (_, path) in paths.items() if id_ not in class_of]
    if unlabelled:
        raise InputError(
            f"{labelling}: {len(unlabelled)} of the {len(paths)} images of {_IMAGES} have no "
            f"class: {first_names(unlabelled)}; add a line for each"
        )
    ids = [int(class_of[id_].value) for id_ in paths]
    name_of = _class_names(sorted(set(ids)), source)
    found = ClassSet(
        source=source,
        images=_named(paths.values(), images, place=listing),
        labels=tuple(name_of[id_] for id_ in ids),
        classes=tuple(name_of.values()),
    )
    if not found.has_pairs:
        raise InputError(
            f"{labelling}: no two of {len(paths)} images are of the same class, so that nothing "
            "could be found; give those of a class the same id"
        )
    return found


def _named(
    entries: Collection[_Entry], images: Sequence[ImageFile], *, place: str
) -> tuple[ImageFile, ...]:
    """Find the files that images.txt lists."""
    if not entries:
        raise InputError(f"{place}: names no image; add a line 'image id path' for each")
    line_of: dict[str, int] = {}
    for line, written in entries:
        path = normalized(written)
        if path in line_of:
            raise InputError(
                f"{place}:{line}: {path[:99]} is in line {line_of[path]} too; keep one of them"
            )
        line_of[path] = line
    below = f"{_FOLDER}/"
    file_of: dict[str, ImageFile] = {}
    for image in images:
        name = normalized(image.name)
        if name.startswith(below):
            other = file_of.setdefault(name.removeprefix(below), image)
            if other is not image:
                raise InputError(
                    f"{place}: {other.name!r} and {image.name!r} are one name; remove one of them"
                )
    missing = [
        f"{path[:63]} (line {line})" for path, line in line_of.items() if path not in file_of
    ]
    if missing:
        none_fits = file_of and len(missing) == len(entries)
        there = f" (it holds {min(file_of)!r:.300})" if none_fits else ""
        raise InputError(
            f"{place}: {len(missing)} of {len(entries)} images are not in the folder {_FOLDER} "
            f"beside it{there}: {first_names(missing)}; add them, or remove their lines"
        )
    return tuple(file_of[path] for path in line_of)


def _class_names(ids: Sequence[int], source: str) -> dict[int, str]:
    """Read the name of each class; its id stands in where there is no classes.txt."""
    place, lines = _place(source, _NAMES), _read(source, _NAMES)
    if lines is None:
        return {id_: str(id_) for id_ in ids}
    entries = _entries(lines, "class id", "name", _TEXT, place=place)
    nameless = [str(id_) for id_ in ids if id_ not in entries]
    if nameless:
        raise InputError(
            f"{place}: {len(nameless)} of {len(ids)} classes have no name: {first_names(nameless)};"
            " add a line for each, or remove the file"
        )
    id_of: dict[str, int] = {}
    for id_ in ids:
        line, name = entries[id_]
        if name in id_of:
            raise InputError(
                f"{place}:{line}: class {id_} is named {name[:99]}, as class {id_of[name]} is; "
                "give each class its own name"
            )
        id_of[name] = id_
    return {id_: name for name, id_ in id_of.items()}


def _entries(
    lines: Sequence[str], key: str, value: str, pattern: str, *, place: str
) -> dict[int, _Entry]:
    """Parse the lines 'id value' of a file into values by id, in order; blank lines are skipped."""
    found: dict[int, _Entry] = {}
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        match = re.fullmatch(rf"({_ID})\s+({pattern})", line)
        if match is None:
            raise InputError(
                f"{place}:{number}: {line!r:.80}: expected '{key} {value}'; mend the line"
            )
        id_ = int(match[1])
        if id_ in found:
            raise InputError(
                f"{place}:{number}: {key} {id_} is in line {found[id_].line} too; keep one of them"
            )
        found[id_] = _Entry(number, match[2])
    return found


def _needed(source: str, file: str) -> list[str]:
    lines = _read(source, file)
    if lines is None:
        raise InputError(
            f"{_place(source, file)}: there is no such file, though {_LABELS} needs it; give the "
            "folder CUB_200_2011 as it is published"
        )
    return lines


def _read(source: str, file: str) -> list[str] | None:
    """Read the lines of a file directly in the folder; None where there is no such file."""
    place = _place(source, file)
    try:
        content = read_bytes(place)
    except FileNotFoundError:
        return None
    except (OSError, pa.ArrowException) as error:
        raise InputError(
            f"{place}: cannot be read ({error_line(error)}); make it readable"
        ) from error
    try:
        return read_lines(content)
    except ValueError as error:
        raise InputError(f"{place}: {error}; save the file as UTF-8") from error


def _place(source: str, file: str) -> str:
    return Folder(source).location(file)
