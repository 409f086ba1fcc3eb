"""Who may talk to the page: pages of its own origin, under a name that it is known by.

Without this, any page that a browser has open could start jobs here (cross-site requests), also
under a host name that it points at this machine (DNS rebinding).
"""

import ipaddress
import socket
from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

BODY_BYTES = 34 * 10**6  # a picture in base64 and what stands around it
UPLOAD_BYTES = 2**28 + 2**20  # a request with its pictures, see `drawing.PACKED_BYTES`
_FRAMES = ("iframe", "frame", "embed", "object")
_ALONE = ((b"x-frame-options", b"DENY"), (b"content-security-policy", b"frame-ancestors 'none'"))
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
        hosts: names that the page is reached by, without ports.
        body: bytes that a request may hold, but for uploads of files.
        others: whether other machines may come, by a number or by this machine's name.
    """

    def __init__(
        self,
        app: ASGIApp,
        hosts: Collection[str] = LOCAL,
        body: int = BODY_BYTES,
        others: bool = False,
    ):
        self.app, self.body, self.others = app, body, others
        self.hosts = frozenset(hosts) | ({socket.gethostname().lower()} if others else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        most = UPLOAD_BYTES if scope["path"].endswith("/upload") else self.body
        refused = self._refusal(Headers(scope=scope), most)
        if refused is not None:
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
                return
            await PlainTextResponse(refused[1], refused[0])(scope, receive, send)
            return
        body = _Body(receive, _unframed(send), most)
        try:
            await self.app(scope, body.receive, body.send)
        except Exception:
            if not body.too_large:
                raise
        if body.too_large and not body.answered:
            await PlainTextResponse("the request is too large", 413)(scope, receive, send)

    def _refusal(self, headers: Headers, most: int) -> tuple[int, str] | None:
        """The status and the reason if a request is refused."""
        host = headers.get("host", "")
        name = _without_port(host).lower()
        if name not in self.hosts and not (self.others and _is_address(name)):
            return 403, "the studio is not known by this name"
        if headers.get("sec-fetch-dest") in _FRAMES:
            return 403, "another page may not show the studio"
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            return 403, "another page may not use the studio"
        if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") not in (
            "navigate",
            None,
        ):
            return 403, "another page may not use the studio"
        length = headers.get("content-length", "0")
        if not length.isdecimal() or int(length[:20]) > most:
            return 413, "the request is too large"
        return None


def _unframed(send: Send) -> Send:
    """Answers that no page may show inside of itself."""

    async def sent(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message.get("headers", []), *_ALONE]}
        await send(message)

    return sent


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return name if colon and port.isdecimal() else host
