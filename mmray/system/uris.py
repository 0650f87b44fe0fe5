"""Rules for URIs: the schemes that are opened, what a list may name, how credentials are hidden.

Whatever a user types may carry credentials and options, such as the server of a bucket
(endpoint_override). What a list or a column names may not: whoever wrote it could send the user's
own credentials to any host.
"""

import re
from collections.abc import Sequence
from urllib.parse import unquote

BUCKETS = ("s3", "gs", "gcs")  # schemes whose URI names a bucket, then a path in it
SCHEMES = ("file", *BUCKETS)
# pyarrow opens more, but some of these start programs or end the process (abfs, hdfs).
ONLY = "only local files and files in buckets (s3:// and gs://) are read"
HIDDEN = "***"  # in place of credentials

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_LOCAL = re.compile(r"file://(?:localhost)?/", re.IGNORECASE)
# The region alone may be chosen: it becomes a part of a host's name, so no other characters.
_IN_BUCKET = re.compile(r"\w+://[A-Za-z0-9._-]+(/[^?#]*)?(\?region=[a-z0-9-]+)?", re.ASCII)
_SECRET = re.compile(r"key|secret|token|passw|pwd|credential|sig(nature)?$|auth|proxy", re.I)
_OPTIONS = re.compile(r"([?&;#][^=?&;#]*=)([^&;#]*)")
_NOT_SECRET = ("", "anonymous", HIDDEN)  # what stands before the @ of a bucket
_START = r"[A-Za-z][A-Za-z0-9+.-]*://"
_IN_TEXT = re.compile(rf"{_START}(?:(?!{_START})[^\s'\"<>`])*")
# Of a URI with a blank in it: `_IN_TEXT` ends there.
_OPTION = re.compile(
    r"([?&;]\w*(?:access_key|secret|token|password)\w*=)(?!\*\*\*)[^\s&;#'\"<>)]+", re.I
)


def scheme_of(uri: str) -> str | None:
    """Return the scheme of a URI in lower case; None for a path."""
    match = _SCHEME.match(uri) if "://" in uri else None
    return None if match is None else match[1].lower()


def is_remote(uri: str) -> bool:
    """Tell whether a path or URI names a file in a bucket."""
    return scheme_of(uri) in BUCKETS


def refusal(name: str, *, of_list: str) -> str | None:
    """Tell why a list must not name a path or URI; None: it may.

    Parameters
    ----------
    name : as the list has it
    of_list : path or URI of the list
    """
    scheme = scheme_of(name)
    if scheme is not None and scheme not in SCHEMES:
        return ONLY
    if "\0" in name:
        return "no file has a NUL character in its name"
    if scheme is not None and re.search(r"[\x01-\x1f\x7f]", name):
        return "a URI has no control characters; percent-encode them"
    if scheme in (None, "file"):
        if is_remote(of_list) and (scheme is not None or name.startswith("/")):
            return "a list in a bucket names files in buckets alone, no local ones"
        if scheme is not None and not _LOCAL.match(name):
            return "a file:// URI is one of this machine, file:///folder/file"
        return None
    if "@" in name.split("/")[2] or any(_SECRET.search(key) for key in _option_names(name)):
        return "credentials are not taken from a list; give them as other programs have them"
    if _IN_BUCKET.fullmatch(name):
        return None
    if "#" in name:
        return "write # in the name of a file as %23"
    if "?" in name:
        return (
            "options but a region are not taken from a list; give them with the list itself, for "
            "its own bucket, and write ? in the name of a file as %3F"
        )
    return f"not the name of a bucket and a file, {scheme}://bucket/folder/file"


def inherited(name: str, *, of_list: str) -> str:
    """Return a URI in a list with the credentials and options of the list, if in its bucket."""
    scheme, place = scheme_of(name), name.partition("://")[2]
    if scheme not in BUCKETS:
        return name
    name = f"{scheme}://{place}"
    if scheme != scheme_of(of_list):
        return name
    own, _, options = of_list.partition("?")
    where = own.split("/")[2]
    bucket, slash, path = place.partition("/")
    if bucket != where.rpartition("@")[2] or "?" in path:
        return name
    return f"{scheme}://{where}{slash}{path}{'?' if options else ''}{options}"


# -- credentials ----------------------------------------------------------------------------------


def masked(uri: str) -> str:
    """Hide what is secret in a URI: whatever stands before @, and options named like secrets.

    A path is returned as it is, and so is a URI without credentials.
    """
    if scheme_of(uri) is None:
        return uri
    start, _, rest = uri.partition("://")
    if not any(sign in rest for sign in "@:?#"):
        return uri
    where = re.split("[/?#]", rest, maxsplit=1)[0]
    user, at, host = where.rpartition("@")
    port = host.rpartition(":")[2]
    if at:
        user = user if user in _NOT_SECRET else HIDDEN
        rest = f"{user}@{rest[len(where) - len(host) :]}"
    elif ":" in where and not where.startswith("[") and port:
        # Credentials with a character that should have been encoded, or without a bucket. The
        # digits of a secret are no port, which a bucket has not.
        if "@" in rest and (start.lower() in BUCKETS or not port.isdecimal()):
            rest = f"{HIDDEN}@{rest.rpartition('@')[2]}"
        elif not port.isdecimal():
            rest = HIDDEN
    return f"{start}://{_OPTIONS.sub(_masked_option, rest)}"


def _masked_option(match: re.Match[str]) -> str:
    is_secret = _SECRET.search(unquote(match[1])[:-1]) or "@" in unquote(match[2])
    return f"{match[1]}{HIDDEN}" if is_secret else match[0]


def _option_names(uri: str) -> list[str]:
    return [unquote(match[1])[1:-1] for match in _OPTIONS.finditer(uri)]


def masked_text(text: str) -> str:
    """Hide what is secret in every URI of a text."""
    if "://" not in text:
        return text
    return _OPTION.sub(rf"\1{HIDDEN}", _IN_TEXT.sub(_masked_in_text, text))


def _masked_in_text(match: re.Match[str]) -> str:
    uri = match[0].rstrip(").,;:")
    return masked(uri) + match[0][len(uri) :]


def unmasked(uri: str, sources: Sequence[str]) -> str:
    """Return a URI that was stored masked with the credentials of the source it came from.

    Parameters
    ----------
    uri : perhaps masked
    sources : paths and URIs as the user gave them; the nearest in the same bucket is taken
    """
    if HIDDEN not in uri or not is_remote(uri):
        return uri
    place, _, _ = uri.partition("?")
    _, _, where, *path = place.split("/")
    bucket = where.rpartition("@")[2]
    fitting = []
    for source in sources:
        own, mark, options = source.partition("?")
        if masked(source) != source and scheme_of(source) == scheme_of(uri):
            root = own.split("/")[2]
            if root.rpartition("@")[2] == bucket:
                near = masked(own) == place[: len(masked(own))]
                fitting.append((near, len(own), root, f"{mark}{options}"))
    if not fitting:
        return uri
    _, _, root, options = max(fitting)
    return f"{scheme_of(uri)}://{'/'.join([root, *path])}{options}"


def without_mask(uri: str) -> str:
    """Return a masked URI without the marks, so that it is opened as the environment allows."""
    if HIDDEN not in uri:
        return uri
    place, _, options = uri.partition("?")
    kept = "&".join(part for part in options.split("&") if not part.endswith(f"={HIDDEN}"))
    return place.replace(f"://{HIDDEN}@", "://", 1) + (f"?{kept}" if kept else "")
