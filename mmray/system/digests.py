"""Digests of files: what was written is compared with what is read."""

from collections.abc import Iterable, Mapping
from typing import Any

import xxhash

from mmray.system.folder import Folder
from mmray.system.locations import prefetch, with_retries

Digest = tuple[int, str | None]  # size in bytes; XXH3 of the content, or None: not compared
_CHUNK = 1 << 23  # bytes read at a time: in a bucket each is a request


def digests_of(folder: Folder, names: Iterable[str]) -> dict[str, Digest]:
    """Read files whole, and return the digest of each by its name; OSError if one fails."""
    listed = list(names)
    found = prefetch(lambda name: _digest(folder, name), listed)
    return dict(zip(listed, found, strict=True))


def damaged_files(folder: Folder, recorded: Mapping[str, Any]) -> list[str]:
    """List the files that are missing or not as recorded.

    Parameters
    ----------
    folder : of the files
    recorded : name -> digest, as `digests_of` returns them and JSON stores them
    """
    sizes = folder.sizes()
    bad = {name for name, (size, _) in recorded.items() if sizes.get(name) != size}
    whole = {name: tuple(wrote) for name, wrote in recorded.items() if name not in bad and wrote[1]}

    def differs(name: str) -> bool:
        try:
            return _digest(folder, name) != whole[name]
        except OSError:
            if folder.local is None:
                raise  # a network that fails is no damage
            return True

    return sorted(
        bad | {n for n, differ in zip(whole, prefetch(differs, whole), strict=True) if differ}
    )


def _digest(folder: Folder, name: str) -> Digest:
    def read() -> Digest:
        digest, size = xxhash.xxh3_64(), 0
        with folder.reading(name) as source:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                size += len(chunk)
        return size, digest.hexdigest()

    return with_retries(read, folder.uri)
