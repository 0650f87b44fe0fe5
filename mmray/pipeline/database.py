"""MLflow's database in a file: its URI, its making as a whole, and its artifacts after a move.

MLflow would migrate a new file forty times in place: a process that is killed meanwhile, or a
second one that begins at the same time, leaves a database that neither can open. So a database is
made in memory here, and gets its name when it is complete.

`python -m mmray.pipeline.database STORAGE` prints the URI for that folder's database, and needs no
package for it; with `--ready` it first makes the database ready to be opened. `make ui` uses both.
"""

import fcntl
import os
import secrets
import sqlite3
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from mmray.system.errors import InputError

DATABASE = "mlflow.db"  # below a local storage folder
ARTIFACTS = "mlartifacts"  # beside it
REMEDY = "make room, or see that you may write there"

# Tables and columns in which MLflow keeps the places of artifacts, as absolute URIs.
_PLACES = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
_SECONDS = 10.0  # to wait for another process that writes


def database_uri(path: Path) -> str:
    """Return the URI of an SQLite database for MLflow.

    SQLAlchemy decodes the path and takes what follows ? for options. MLflow does not decode it, and
    would make a folder of the encoded name, unless the URI also names the driver.
    """
    encoded = str(path).replace("%", "%25").replace("?", "%3F")
    scheme = "sqlite" if encoded == str(path) else "sqlite+pysqlite"
    return f"{scheme}:///{encoded}"


def database_path(uri: str) -> Path | None:
    """Return the file of an SQLite database from its URI, or None for any other tracking server."""
    if not uri.startswith(("sqlite:///", "sqlite+pysqlite:///")):
        return None
    path, _, options = uri.partition(":///")[2].partition("?")
    return None if options or path in ("", ":memory:") else Path(unquote(path))


def make_ready(path: Path) -> None:
    """Make the database unless it exists, and enter the places of its artifacts if it was moved.

    An unfinished database that an earlier version left is set aside as `<name>.damaged`.

    Raises
    ------
    InputError
        The file is damaged, or cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not _is_complete(path):
            with _alone(path):
                if not _is_complete(path):
                    _make(path)
        _follow(path)
    except sqlite3.OperationalError as error:
        raise unusable(path, error) from error
    except sqlite3.DatabaseError as error:
        raise InputError(
            f"{path}: MLflow's database is damaged ({error}); restore it from a copy, or rename it "
            "and run the same command again: a new one is begun, and stages that are done are kept"
        ) from error
    except OSError as error:
        raise unusable(path, error.strerror or error) from error


def unusable(path: Path, reason: object) -> InputError:
    """Return the error for a database that cannot be read or written."""
    return InputError(
        f"{path}: MLflow's database cannot be used ({reason}); {REMEDY}, then run the same command "
        "again: what is done is kept"
    )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Let one process at a time pass, as far as the file system has locks."""
    with ExitStack() as stack:
        with suppress(OSError):
            lock = stack.enter_context(path.with_name(f".{path.name}.lock").open("w"))
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _is_complete(path: Path) -> bool:
    """Tell whether MLflow's migrations came to their end: its first experiment comes after them."""
    if not path.exists():
        return False
    with closing(sqlite3.connect(path, timeout=_SECONDS)) as database:
        try:
            return database.execute("SELECT 1 FROM experiments").fetchone() is not None
        except sqlite3.OperationalError as error:
            if "no such table" not in str(error):
                raise
            return False


def _make(path: Path) -> None:
    content = _empty((path.absolute().parent / ARTIFACTS).as_uri())
    unfinished = path.with_name(f".{path.name}.part-{secrets.token_hex(4)}")
    try:
        with unfinished.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if path.exists() and path.stat().st_size:
            path.replace(path.with_name(f"{path.name}.damaged"))
        for rest in ("-journal", "-wal", "-shm"):  # SQLite would apply them to the new file
            path.with_name(path.name + rest).unlink(missing_ok=True)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _empty(artifacts: str) -> bytes:
    """Return the content of a new database, whose first experiment keeps artifacts in a place."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    store = SqlAlchemyStore("sqlite://", artifacts)  # type: ignore[no-untyped-call] # MLflow's
    with closing(store.engine.raw_connection()) as connection:
        memory: Any = connection.driver_connection
        content = bytes(memory.serialize())
    store.engine.dispose()  # the next one is to be empty, too
    return content


def _follow(path: Path) -> None:
    """Enter the places of artifacts anew in a database that was moved or copied with them.

    MLflow keeps absolute URIs. A place changes where the artifacts are beside the database now, or
    are no longer where they were; what lies elsewhere and is still there stays.
    """
    folder = path.absolute().parent / ARTIFACTS
    if not folder.is_dir():
        return
    here = folder.as_uri()
    with closing(sqlite3.connect(path, timeout=_SECONDS)) as database:
        found = database.execute("SELECT DISTINCT artifact_location FROM experiments")
        # Experiments keep theirs in the folder itself, MLflow's own first one in a folder within.
        roots = {str(place).removesuffix("/0") for (place,) in found} - {here}
        others = [root for root in roots if _is_another(root, folder)]
        if not others:
            return
        with database:  # one transaction
            for old in others:
                for table, column in _PLACES:
                    _move(database, table, column, old, here)


def _move(database: sqlite3.Connection, table: str, column: str, old: str, new: str) -> None:
    query = f"SELECT rowid, {column} FROM {table} WHERE substr({column}, 1, ?) = ?"
    for row, place in database.execute(query, (len(old), old)).fetchall():
        rest = place.removeprefix(old)
        now = new + rest
        if rest[:1] in ("", "/") and (_local(now).exists() or not _local(place).exists()):
            database.execute(f"UPDATE {table} SET {column} = ? WHERE rowid = ?", (now, row))


def _local(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _is_another(uri: str, folder: Path) -> bool:
    """Tell whether a URI is that of another such folder, and not of this one through a link."""
    if not (uri.startswith("file:") and uri.endswith(f"/{ARTIFACTS}")):
        return False
    return not (_local(uri).is_dir() and _local(uri).samefile(folder))


def main(arguments: list[str]) -> int:
    """Print the URI of a storage folder's database; after `--ready`, make it ready first."""
    path = Path(arguments[-1]).expanduser().absolute() / DATABASE
    if arguments[0] == "--ready":
        try:
            make_ready(path)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    else:
        print(database_uri(path))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
