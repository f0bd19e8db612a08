"""Access control of the page's server: only the page itself may use it, in a browser that has the token.

The server listens on 127.0.0.1 only, but any website open in the same browser can send requests there. So a request
must name this address as its host (a website whose name was rebound to 127.0.0.1 names itself), and must not come from
another origin. Other users of this machine can reach the port too. So the address of the page carries a token, which is
exchanged for a cookie, and without it every request is refused. The page may load nothing from elsewhere and may not
stand in another page's frame. This does not protect against somebody who can read this user's screen, files or memory.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_TOKEN = "Open the full address that keras-pneumo view printed, with its token."
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}


@dataclass
class Keys:
    """Tokens and cookie of the page, made anew each time it is served."""

    printed: str = field(default_factory=secrets.token_urlsafe)
    """Token of the address that is printed; it opens the page in any browser, any number of times."""
    once: str = field(default_factory=secrets.token_urlsafe)
    """Token of the address on a browser's command line, which other users of the machine can see: it works once."""
    cookie: str = field(default_factory=secrets.token_urlsafe)
    """Value of the cookie that a browser gets for either token."""

    def opened(self, token: str) -> bool:
        """Whether a token opens the page; the one that works once is then used up."""
        if self.once and _same(token, self.once):
            self.once = ""
            return True
        return _same(token, self.printed)

    def fits(self, cookie: str) -> bool:
        """Whether a cookie has the value that is given for a token."""
        return _same(cookie, self.cookie)


def cookie_name(port: int) -> str:
    """Name of the cookie: browsers keep cookies by host, and pages at other ports must not overwrite this one."""
    return f"keras_pneumo_{port}"


class Guard:
    """ASGI middleware that lets through only requests of the page itself."""

    def __init__(self, app: ASGIApp, port: int, keys: Keys) -> None:
        """Guard ``app``, served at ``port``; ``keys`` open it."""
        self.app = app
        self.keys = keys
        self.cookie = cookie_name(port)
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if port == 80:  # HTTP's default port, which browsers leave out
            self.hosts |= {"127.0.0.1", "localhost"}
        self.origins = {f"http://{host}" for host in self.hosts}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer it with 403."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def sealed(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self.answer(HTTPConnection(scope), scope["method"]) or self.app
        await answer(scope, receive, sealed)

    def answer(self, request: HTTPConnection, method: str) -> Response | None:
        """The guard's own response: a refusal, or a cookie for a token; None lets the request pass."""
        reason = self.refusal(request.headers, method)
        if reason:
            return JSONResponse({"error": reason}, 403)
        if request.url.path == "/" and self.keys.opened(request.query_params.get("token", "")):
            page = RedirectResponse("/", 303)  # the token stays neither in the address nor in the history
            page.set_cookie(self.cookie, self.keys.cookie, httponly=True, samesite="strict")
            return page
        if not self.keys.fits(request.cookies.get(self.cookie, "")):
            return JSONResponse({"error": NO_TOKEN}, 403)
        return None

    def refusal(self, headers: Headers, method: str) -> str:
        """Why a request does not come from this page, in a sentence; empty where it does."""
        if headers.get("host", "") not in self.hosts:
            return "This server answers only at its own address. Open the one that keras-pneumo view printed."
        sender = headers.get("origin")
        if sender is not None and sender not in self.origins:
            return "Another website sent this request; only the page itself may."
        if method not in ("GET", "HEAD") and sender is None:
            return "This request does not say which page it comes from, so it is refused."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "Another website sent this request; only the page itself may."
        return ""


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())
