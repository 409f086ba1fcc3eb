"""Who may talk to the page: pages of its own origin, under a name that it is known by.

Without this, any page that a browser has open could start jobs here (cross-site requests), also
under a host name that it points at this machine (DNS rebinding).
"""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 34 * 10**6  # a picture in base64 and what stands around it
LOCAL = ("localhost", "127.0.0.1", "[::1]")


class _Body:
    """Counts what arrives; of too much nothing more is read, and what the app answers is held."""

    def __init__(self, receive: Receive, send: Send, most: int):
        self._receive, self._send, self._left = receive, send, most
        self.answered = False

    @property
    def too_large(self) -> bool:
        return self._left < 0

    async def receive(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        return {"type": "http.disconnect"} if self.too_large else message

    async def send(self, message: Message) -> None:
        if self.too_large and not self.answered:
            return
        self.answered = True
        await self._send(message)


class Guard:
    """Middleware that refuses what does not come from the page itself.

    Args:
        app: what it guards.
        hosts: names that the page is reached by, without ports; empty: any.
        body: bytes that a request may hold.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] = LOCAL, body: int = BODY_BYTES):
        self.app, self.hosts, self.body = app, frozenset(hosts), body

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        refused = self._refusal(Headers(scope=scope))
        if refused is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await PlainTextResponse(refused[1], refused[0])(scope, receive, send)
            return
        body = _Body(receive, send, self.body)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if not body.too_large:
                raise
        if body.too_large and not body.answered:
            await PlainTextResponse("the request is too large", 413)(scope, receive, send)

    def _refusal(self, headers: Headers) -> tuple[int, str] | None:
        """The status and the reason if a request is refused."""
        host = headers.get("host", "")
        if self.hosts and _without_port(host) not in self.hosts:
            return 403, "the studio is not known by this name"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "another page may not use the studio"
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") not in (
            "navigate",
            None,
        ):
            return 403, "another page may not use the studio"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > self.body:
            return 413, "the request is too large"
        return None


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
