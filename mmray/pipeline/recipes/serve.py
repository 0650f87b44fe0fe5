"""The recipe of `mmray serve`: an index, or two side by side, behind a server for browsers."""

import hashlib
import ipaddress
import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import replace

import uvicorn

from mmray.config.bounds import check_bounds, check_not_empty
from mmray.config.tools import ServeConfig
from mmray.pipeline.recipes.search import opened_index
from mmray.pipeline.reports.templating import render
from mmray.serving.live.access import SHORTEST, Guard
from mmray.serving.live.app import Assets, Limits, LiveSearch
from mmray.serving.live.labels import LabelledPhotos
from mmray.serving.live.limits import HeadTimeoutProtocol
from mmray.serving.live.searching import LiveIndex
from mmray.system.errors import InputError
from mmray.system.folder import Folder, open_storage
from mmray.system.locations import read_bytes

LABELLED_SETS = "labelled-sets"  # folder below the storage, with a set for each index
_TOKEN = re.compile(rf"[A-Za-z0-9._~+/=-]{{{SHORTEST},512}}")  # that fits a cookie and a header
_CONNECTIONS = 1024
_GRACE = 10  # seconds for the requests that run when the server is told to end


def run(config: ServeConfig) -> None:
    """Serve an index until the process is told to end.

    Raises
    ------
    InputError
        There is no such index, or a setting cannot be used.
    """
    check_bounds(config)
    check_not_empty(config)
    with _listener(config) as listener:
        address = ipaddress.ip_address(listener.getsockname()[0].partition("%")[0])
        port: int = listener.getsockname()[1]
        token = _token(config, needed=not address.is_loopback)
        live = live_search(open_storage(config.storage), config)
        app = Guard(
            live.app(),
            token=token,
            hosts=_hosts(config.host, port) if address.is_loopback else None,
            cookie=f"mmray-token-{port}",
        )
        live.start()
        given = "" if token is None else f"?token={token}"
        if config.token_file is not None:
            given = f"?token=...  (what {config.token_file} holds)"
        print(f"http://{_reached_by(config.host, address)}:{port}/{given}", flush=True)
        server_of(app).run(sockets=[listener])


def server_of(app: Guard) -> uvicorn.Server:
    """Return the server that runs an application; its `run` ends by a signal."""
    config = uvicorn.Config(
        app,
        http=HeadTimeoutProtocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_graceful_shutdown=_GRACE,
    )
    return uvicorn.Server(config)


def live_search(storage: Folder, config: ServeConfig) -> LiveSearch:
    """Open the indexes of the settings, to be served."""
    names = [config.index_name, *([] if config.compare is None else [config.compare])]
    if len(set(names)) < len(names):
        raise InputError(f"--compare {config.compare}: this is the index itself; name another")
    indexes = []
    for name in names:
        index, encoder = opened_index(storage, replace(config, name=name))
        indexes.append(LiveIndex(name=name, index=index, encoder=encoder, probes=config.probes))
    version = _version(indexes)
    return LiveSearch(
        indexes,
        assets=_assets(indexes, version),
        labelled=LabelledPhotos(storage / LABELLED_SETS / names[0], names[0]),
        limits=Limits(
            top=config.top,
            body_bytes=config.max_megabytes << 20,
            body_seconds=config.upload_seconds,
            pixels=config.max_pixels,
            waiting=config.waiting,
        ),
        version=version,
    )


def _version(indexes: Sequence[LiveIndex]) -> str:
    """Return a text that differs where the photos or their numbers do."""
    digests = "".join(each.index.images.digest() for each in indexes)
    return hashlib.sha256(digests.encode()).hexdigest()[:12]


def _assets(indexes: Sequence[LiveIndex], version: str) -> Assets:
    names = [each.name for each in indexes]
    counts = [len(each.index.images) for each in indexes]
    return Assets(
        page=render("live.html", names=names, counts=counts, version=version, contents={}),
        script=render("live.js"),
        style=render("live.css"),
    )


def _listener(config: ServeConfig) -> socket.socket:
    """Listen on the address and port of the settings; InputError where that is not possible."""
    place = f"--host {config.host} --port {config.port}"
    try:
        found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {config.host}: no such address ({error})") from error
    family, *_, address = found[0]
    try:
        return socket.create_server(address[:2], family=family, backlog=_CONNECTIONS)
    except OSError as error:
        raise InputError(
            f"{place}: cannot listen there ({error.strerror or error}); choose another --port, "
            "or 0 for any that is free"
        ) from error


def _token(config: ServeConfig, *, needed: bool) -> str | None:
    """Return the token that requests must have: that of the file, or a new one where it is needed.

    Raises
    ------
    InputError
        The file cannot be read, or what it holds is too short or has other letters.
    """
    if config.token_file is None:
        return secrets.token_urlsafe(32) if needed else None
    try:
        token = read_bytes(config.token_file, limit=4096).decode("ascii").strip()
    except (OSError, ValueError) as error:
        raise InputError(f"--token-file {config.token_file}: cannot be read ({error})") from error
    if not _TOKEN.fullmatch(token):
        raise InputError(
            f"--token-file {config.token_file}: write {SHORTEST} to 512 letters, digits or ._~+/=- "
            'into it, such as those of `python -c "import secrets; print(secrets.token_urlsafe())"`'
        )
    return token


def _hosts(host: str, port: int) -> frozenset[str]:
    """Return the values of the header Host by which a browser of this machine reaches it."""
    names = {"127.0.0.1", "localhost", "[::1]", f"[{host}]" if ":" in host else host.lower()}
    return frozenset({f"{name}:{port}" for name in names} | (names if port == 80 else set()))


def _reached_by(host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> str:
    """Return the host to type into a browser."""
    if address.is_unspecified:
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host
