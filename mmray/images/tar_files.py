"""Images in uncompressed tar files: listed from the headers, read by part, never unpacked."""

import errno
import io
import os
import posixpath
import re
import tarfile
from collections.abc import Iterable, Iterator
from dataclasses import replace

from mmray.images.collection import SUFFIXES, ImageFile
from mmray.images.left_out import SPECIAL, LeftOut, by_suffix, hidden_in
from mmray.system.errors import InputError
from mmray.system.locations import as_text, local_path, size_error
from mmray.system.retrying_file import UNREADABLE, RetryingFile, os_error

# Bytes fetched per header. For a remote file a request costs more than a MiB, and small images come
# with the headers between them: 1 MiB a request, not 512 bytes. On a disk, skipping saves time.
_FAR, _NEAR = 1 << 20, 1 << 14
_LONGEST_HEADER = 1 << 24  # bytes; pax and GNU headers hold a name, so a longer one is damage
_TAIL = 1 << 20  # bytes after the end of the archive: writers pad with 10 KiB of zeros, or more
_HOPS = 40  # links followed to one image, as Linux does
_GAP, _MOST = 1 << 20, 1 << 26  # bytes: read rather than skipped; read by one request
_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\0": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x04\x22\x4d\x18": "lz4",
    b"PK\x03\x04": "zip",
}


# -- listing --------------------------------------------------------------------------------------


def list_tar(uri: str) -> Iterator[ImageFile | LeftOut]:
    """Yield the images of an archive in its order, then the links to images; raise damage last.

    An image that cannot be read has an `error`. Of several members with one name each is an image,
    and a link means the last. Links are followed from member to member, not through linked folders.
    A member that is left out is counted by a `LeftOut`, a hidden folder once.

    Raises
    ------
    OSError, InputError
        The file cannot be read, or is no complete tar file. All images before the damage have been
        yielded.
    """
    members: dict[str, ImageFile | str] = {}  # by its normal path: where it is, or a link's target
    links: list[tuple[tarfile.TarInfo, str]] = []
    known: set[str] = set()  # hidden folders
    failure: Exception | None = None
    try:
        near = local_path(uri) is not None
        with _HeaderFile(RetryingFile(uri), _NEAR if near else _FAR) as file:
            for member, whole in _members(file):
                path = posixpath.normpath(member.name)
                if member.issym() or member.islnk():
                    members[path] = _target(member)
                elif member.isreg():
                    members[path] = _placed(uri, member, whole)
                left_out = _left_out(member, known)
                if left_out is not None:
                    yield from left_out
                elif member.isreg():
                    yield _placed(uri, member, whole)
                    if not whole:
                        break  # its error reports the damage
                else:
                    links.append((member, _target(member)))
    except (OSError, InputError) as error:
        failure = error
    for link, target in links:
        yield _followed(uri, link, target, members)
    if failure is not None:
        raise failure


class _HeaderFile(io.BufferedReader):
    """A file that refuses reads of the sizes in damaged headers, which would fill the memory."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size} bytes")
        return super().read(size)


def _members(file: _HeaderFile) -> Iterator[tuple[tarfile.TarInfo, bool]]:
    """Yield every member, and whether all of its data is there; raises as `list_tar`."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    # Not by tarfile alone: it takes damage after the first member for the end of the archive.
    try:
        archive = tarfile.TarFile(fileobj=file, encoding="utf-8")  # uncompressed alone
    except OSError:
        raise
    except Exception as error:  # damaged headers make tarfile raise nearly anything
        raise InputError(_no_tar(file, end)) from error
    count = 0
    while (member := _next(archive, file, count, end)) is not None:
        archive.members.clear()  # type: ignore # of a million members they would take a GB
        stored = member.isreg() and not member.issparse()
        data_end = member.offset_data + member.size if stored else archive.offset
        whole = data_end <= end
        yield member, whole
        count += whole
    file.seek(archive.offset)
    mark = file.read(tarfile.BLOCKSIZE)
    if len(mark) < tarfile.BLOCKSIZE:
        raise InputError(_cut_short(count))
    if mark.strip(b"\0"):
        raise InputError(_damaged(count, archive.offset))
    if end - archive.offset > _TAIL or file.read(_TAIL).strip(b"\0"):
        raise InputError(
            f"the archive ends at byte {archive.offset}, its file at byte {end}, and what lies "
            "between is not listed; if archives were joined, give each by itself; if the file was "
            "not fetched to its end, fetch it again"
        )


def _next(
    archive: tarfile.TarFile, file: _HeaderFile, count: int, end: int
) -> tarfile.TarInfo | None:
    start = archive.offset
    try:
        member = archive.next()
    except OSError:
        raise
    except Exception as error:  # as above
        cut = file.tell() >= end
        raise InputError(_cut_short(count) if cut else _damaged(count, start)) from error
    # A negative size would lead tarfile back to a header it has read, again and again.
    if member is not None and (member.size < 0 or archive.offset < member.offset_data):
        raise InputError(_damaged(count, member.offset))
    return member


def _cut_short(count: int) -> str:
    return f"the archive is cut short after {count} members; fetch it again"


def _damaged(count: int, offset: int) -> str:
    return (
        f"the archive is damaged after {count} members: no header at byte {offset}; fetch it again"
    )


def _no_tar(file: _HeaderFile, end: int) -> str:
    at_end = file.tell() >= end
    file.seek(0)
    head = file.read(tarfile.BLOCKSIZE)
    for magic, method in _COMPRESSED.items():
        if head.startswith(magic):
            return f"compressed ({method}): unpack it, images in it cannot be read in parts"
    if end == 0:
        return "empty file (0 bytes)"
    if end < tarfile.BLOCKSIZE:
        return f"not a tar file: only {end} bytes; fetch it again"
    if head[257:262] == b"ustar":  # the next header is at fault, one of a long name has two
        return _cut_short(0) if at_end else _damaged(0, 0)
    return f"not a tar file: it begins with {head[:16]!r}; fetch it again"


def _placed(uri: str, member: tarfile.TarInfo, whole: bool) -> ImageFile:
    image = ImageFile(uri=uri, name=_name(member.name), offset=member.offset_data)
    if not whole:
        return replace(image, error="the archive is cut short within this image; fetch it again")
    if member.issparse():
        return replace(image, error="stored with holes: write the archive without --sparse")
    return replace(image, size=member.size)


def _target(link: tarfile.TarInfo) -> str:
    """Return the normal path of the member that a link points to."""
    folder = posixpath.dirname(link.name) if link.issym() else ""
    return posixpath.normpath(posixpath.join(folder, link.linkname))


def _followed(
    uri: str, link: tarfile.TarInfo, target: str, members: dict[str, ImageFile | str]
) -> ImageFile:
    found: ImageFile | str | None = target
    for _ in range(_HOPS):
        if not isinstance(found, str):
            break
        found = members.get(found)
    name = _name(link.name)
    if isinstance(found, ImageFile):
        return replace(found, name=name)
    circle = isinstance(found, str)
    told = "a link that leads in a circle" if circle else "a link to what is not in the archive"
    error = f"{told}: {_name(target)}"
    return ImageFile(uri=uri, name=name, offset=link.offset_data, error=error)


def _left_out(member: tarfile.TarInfo, known: set[str]) -> tuple[LeftOut, ...] | None:
    """Return what a member is counted as that is no image; None if it is one, or a link to one.

    Parameters
    ----------
    member : of an archive; a folder is nothing to count
    known : the hidden folders so far, to which that of this member is added
    """
    if member.isdir():
        return ()
    unseen = hidden_in(member.name, known)
    if unseen is not None:
        return unseen
    if not member.name.lower().endswith(SUFFIXES):
        return (by_suffix(posixpath.basename(member.name)),)
    return None if member.isreg() or member.issym() or member.islnk() else (SPECIAL,)


def _name(name: str) -> str:
    """Return a member's name without a leading ./, in a form that fits a table."""
    return as_text(re.sub(r"^(\./+)+", "", name))


# -- reading --------------------------------------------------------------------------------------


def read_tar(uri: str, images: Iterable[ImageFile], *, limit: int) -> Iterator[bytes | OSError]:
    """Yield the content of images of one archive, in the order given, or the error for each.

    Images that lie side by side, in ascending order, are fetched up to 64 MiB at a time.
    """
    with RetryingFile(uri) as file:
        for piece in _pieces(images, limit):
            yield from _read_piece(file, piece, limit)


def _refusal(image: ImageFile, limit: int) -> OSError | None:
    if image.error is not None:
        return OSError(image.error)
    return size_error(image.size, limit) if image.size > limit else None


def _extent(image: ImageFile) -> tuple[int, int]:
    assert image.offset is not None, image
    assert image.size >= 0, image
    return image.offset, image.offset + image.size


def _pieces(images: Iterable[ImageFile], limit: int) -> Iterator[list[ImageFile]]:
    """Group images into runs that one request reads; refused images may lie anywhere."""
    piece: list[ImageFile] = []
    first: int | None = None
    previous = last = 0
    for image in images:
        if _refusal(image, limit) is None:
            start, end = _extent(image)
            near = previous <= start <= last + _GAP
            if first is not None and not (near and end - first <= _MOST):
                yield piece
                piece, first = [], None
            if first is None:
                first = start
            previous, last = start, end
        piece.append(image)
    if piece:
        yield piece


def _read_piece(
    file: RetryingFile, piece: list[ImageFile], limit: int
) -> Iterator[bytes | OSError]:
    extents = [_extent(image) for image in piece if _refusal(image, limit) is None]
    first, last = (extents[0][0], max(end for _, end in extents)) if extents else (0, 0)
    data, failure = memoryview(b""), None
    try:
        data = memoryview(file.at(first, last - first)) if extents else data
    except UNREADABLE as error:
        failure = os_error(error)
    for image in piece:
        refusal = _refusal(image, limit) or failure
        if refusal is not None:
            yield refusal
            continue
        start, end = _extent(image)
        if end - first > len(data):
            yield OSError(errno.EIO, "the archive ends before this image does; list it again")
        else:
            yield bytes(data[start - first : end - first])
