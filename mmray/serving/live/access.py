"""Access to a server: its token, the Host and Origin of requests, and the headers of answers.

Without a token a server listens on loopback alone. Any page of the web can have the user's browser
ask 127.0.0.1, by a form or by a name of its own that resolves there (DNS rebinding): requests that
name another host, or come from another site, are refused.
"""

import hmac
from collections.abc import Collection
from http.cookies import CookieError, SimpleCookie
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
SHORTEST = 16  # letters of a token
_PAGE = "/"


class Guard:
    """A layer around an application that refuses who may not ask, and adds the headers.

    Parameters
    ----------
    token : that a request must have, in its cookie, as `Authorization: Bearer`, or for the page in
        the URL, upon which it is kept in the cookie; None: none is needed
    hosts : values of the header Host that are answered; None: any
    cookie : name of the cookie, which another server of this machine must not share
    """

    def __init__(
        self, app: ASGIApp, *, token: str | None, hosts: Collection[str] | None, cookie: str
    ) -> None:
        self._app, self._token, self._hosts, self._cookie = app, token, hosts, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        is_new = self._token is not None and self._in_url(scope)

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = MutableHeaders(scope=message)
                added.update(HEADERS)
                added.setdefault("Cache-Control", "no-store")
                if is_new:
                    kept = f"{self._cookie}={self._token}; Path=/; HttpOnly; SameSite=Strict"
                    added.append("Set-Cookie", kept)
            await send(message)

        refused = self._refused(scope, headers, is_new)
        if refused is None:
            await self._app(scope, receive, send_guarded)
            return
        status, why = refused
        challenge = {"WWW-Authenticate": "Bearer"} if status == 401 else None
        answer = JSONResponse({"error": why}, status, {"Connection": "close"} | (challenge or {}))
        await answer(scope, receive, send_guarded)

    def _refused(self, scope: Scope, headers: Headers, is_new: bool) -> tuple[int, str] | None:
        """Return the status and the sentence for a request that is refused; None: it is not."""
        host = headers.get("host", "").lower()
        if self._hosts is not None and host not in self._hosts:
            return 421, "this server is reached by another name: open the URL that it printed"
        opens_page = scope["method"] == "GET" and scope["path"] == _PAGE
        if not opens_page:
            origin = headers.get("origin")
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none") or (
                origin is not None and origin.lower().partition("://")[2] != host
            ):
                return 403, "asked by a page of another site"
        if self._token is not None and not (is_new or self._has_token(headers)):
            return 401, "the token is missing or wrong: open the URL that the server printed"
        return None

    def _in_url(self, scope: Scope) -> bool:
        """Tell whether the URL of the page has the token."""
        if scope["method"] != "GET" or scope["path"] != _PAGE:
            return False
        given = parse_qs(scope["query_string"].decode("latin1")).get("token", [""])
        return self._is_token(given[0])

    def _has_token(self, headers: Headers) -> bool:
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() == "bearer" and self._is_token(given.strip()):
            return True
        try:
            cookies = SimpleCookie(headers.get("cookie", ""))
        except CookieError:
            return False
        return self._cookie in cookies and self._is_token(cookies[self._cookie].value)

    def _is_token(self, given: str) -> bool:
        """Compare in a time that does not tell how much of it is right."""
        assert self._token is not None
        return hmac.compare_digest(
            given.encode("utf-8", "surrogateescape"), self._token.encode("utf-8")
        )
