"""Who may talk to the page's server: this machine's own page, and nobody else.

The server listens on 127.0.0.1 only, but any website open in the same browser can send requests there. So a request
must name this address as its host (a website whose name was rebound to 127.0.0.1 names itself), and must not come from
another origin. Answers may load nothing from elsewhere and stand in no other page's frame.
"""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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


class Guard:
    """ASGI middleware that lets through only requests of the page itself."""

    def __init__(self, app: ASGIApp, port: int) -> None:
        """Guard ``app``, which is served at ``port``."""
        self.app = app
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

        reason = self.refusal(Headers(scope=scope), scope["method"])
        if reason:
            await JSONResponse({"error": reason}, 403)(scope, receive, sealed)
        else:
            await self.app(scope, receive, sealed)

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
