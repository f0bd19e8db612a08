"""Who may talk to the page's server: this machine's own page, in a browser that was given a token.

The server listens on 127.0.0.1 only, but any website open in the same browser can send requests there. So a request
must name this address as its host (a website whose name was rebound to 127.0.0.1 names itself), and must not come from
another origin. Other users of this machine can reach the port too. So the address that is opened carries a token, which
is exchanged for a cookie; nothing is answered without it. Answers may load nothing from elsewhere and stand in no other
page's frame. Whoever can read this user's screen, files or memory is not kept out.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import HTTPConnection
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

NO_TOKEN = "Open the whole address that keras-pneumo view has told, with its token."
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
    """What opens the page, made anew whenever it is served."""

    printed: str = field(default_factory=secrets.token_urlsafe)
    """Token of the address that is told on the screen; it opens the page in any browser, as often as it is asked."""
    once: str = field(default_factory=secrets.token_urlsafe)
    """Token of the address on a browser's command line, which every user of a machine may list: it is good once."""
    cookie: str = field(default_factory=secrets.token_urlsafe)
    """What a browser has for either token from then on."""

    def opened(self, token: str) -> bool:
        """Whether a token opens the page; the one that is good once is then used up."""
        if self.once and _same(token, self.once):
            self.once = ""
            return True
        return _same(token, self.printed)

    def fits(self, cookie: str) -> bool:
        """Whether a cookie is the one that was given for a token."""
        return _same(cookie, self.cookie)


def cookie_name(port: int) -> str:
    """The cookie's name: cookies are kept by host, and pages at several ports of one host must not overwrite theirs."""
    return f"keras_pneumo_{port}"


class Guard:
    """ASGI middleware that lets through only requests of the page itself."""

    def __init__(self, app: ASGIApp, port: int, keys: Keys) -> None:
        """Guard ``app``, which is served at ``port`` and opened with ``keys``."""
        self.app = app
        self.keys = keys
        self.cookie = cookie_name(port)
        self.hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        if port == 80:  # HTTP's own, which browsers leave out
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
        """What the guard itself answers: a refusal, or a cookie for a token; None lets the request pass."""
        reason = self.refusal(request.headers, method)
        if reason:
            return JSONResponse({"error": reason}, 403)
        if request.url.path == "/" and self.keys.opened(request.query_params.get("token", "")):
            page = RedirectResponse("/", 303)  # the token stays neither in the address nor in the history
            page.set_cookie(self.cookie, self.keys.cookie, httponly=True, samesite="strict")
            return page
        if not self.keys.fits(request.cookies.get(self.cookie, "")):
            return JSONResponse(
                {"error": "Open the whole address that keras-pneumo view has told, with its token."}, 403
            )
        return None

    def refusal(self, headers: Headers, method: str) -> str:
        """Why a request is not of this page's own, or nothing."""
        if headers.get("host", "") not in self.hosts:
            return "This server answers only to its own address on this machine."
        origin = headers.get("origin")
        if origin is not None and origin not in self.origins:
            return "Another website asked for this; only the page itself may."
        if method not in ("GET", "HEAD") and origin is None:
            return "This request does not say which page it comes from, so it is not taken."
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return "Another website asked for this; only the page itself may."
        return ""


def _same(given: str, secret: str) -> bool:
    return secrets.compare_digest(given.encode("utf-8", "surrogatepass"), secret.encode())
