"""Damage to files, as a power cut or a bad disk leaves it."""

from pathlib import Path

import numpy as np

NEWEST = 15  # files that damage chooses from
KINDS = ("cut", "emptied", "zeroed", "one bit flipped")


def damage_newest(storage: Path, rng: np.random.Generator, *, tracker: bool) -> str:
    """Damage one of the newest files, and return what was done; "" where there is no file.

    Parameters
    ----------
    storage : folder of the runs
    rng : chooses the file, the kind of damage and its place
    tracker : whether to damage a file of MLflow instead of one of mmray or Ray
    """
    files = [path for path in storage.rglob("*") if path.is_file() and path.stat().st_size]
    files = [path for path in files if _is_trackers(path, storage) == tracker]
    files.sort(key=lambda path: (path.stat().st_mtime_ns, str(path)))
    if not files:
        return ""
    newest = files[-NEWEST:]
    path, kind = newest[rng.integers(len(newest))], KINDS[rng.integers(len(KINDS))]
    content = bytearray(path.read_bytes())
    place = int(rng.integers(len(content)))
    if kind == "one bit flipped":
        content[place] ^= 1 << int(rng.integers(8))
    elif kind == "zeroed":
        end = min(len(content), place + int(rng.integers(1, 4097)))
        content[place:end] = bytes(end - place)
    else:
        del content[place if kind == "cut" else 0 :]
    path.write_bytes(content)
    return f"{path.relative_to(storage)} {kind}"


def _is_trackers(path: Path, storage: Path) -> bool:
    top = path.relative_to(storage).parts[0]
    return top.startswith("mlflow.db") or top == "mlartifacts"
