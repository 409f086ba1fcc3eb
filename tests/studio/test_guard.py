"""Other pages, other names of this machine and too large requests are refused."""

import socket

import pytest

pytest.importorskip("starlette")

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from tora2_jax.studio.guard import LOCAL, Guard

SOCKET = "ws://localhost:7860/socket"


async def _echo(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


async def _socket(socket: WebSocket) -> None:
    await socket.accept()
    await socket.send_text("hello")
    await socket.close()


def client(others: bool = False) -> TestClient:
    routes = [Route(path, _echo, methods=["GET", "POST"]) for path in ("/", "/x/upload")]
    routes.append(WebSocketRoute("/socket", _socket))
    app = Guard(Starlette(routes=routes), LOCAL, 100, others)
    return TestClient(app, base_url="http://localhost:7860")


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"origin": "http://localhost:7860"}, 200),
        ({"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, 200),
        ({"host": "[::1]:7860"}, 200),
        ({"origin": "http://localhost:8000"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
        ({"host": "evil.example:7860"}, 403),
        ({"host": "localhost.evil.example"}, 403),
        ({"host": ""}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"}, 403),
        ({"sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"}, 200),
        ({"sec-fetch-site": "cross-site", "sec-fetch-dest": "iframe"}, 403),
        ({"content-length": "10000000"}, 413),
        ({"content-length": "-1"}, 413),
    ],
)
def test_who_may_ask(headers, status):
    assert client().post("/", headers=headers).status_code == status


def test_a_page_for_others_is_known_by_numbers_and_its_machines_name():
    others = client(others=True)
    for name in ("192.168.0.7:7860", "[fe80::1]:7860", f"{socket.gethostname()}:7860"):
        own = {"host": name, "origin": f"http://{name}"}
        assert others.post("/", headers=own).status_code == 200
        assert client().post("/", headers=own).status_code == 403
        assert others.post("/", headers=own | {"origin": "http://evil"}).status_code == 403
    # A name that somebody else points at this machine.
    evil = {"host": "evil.example:7860", "origin": "http://evil.example:7860"}
    assert others.post("/", headers=evil).status_code == 403


def test_no_page_shows_it_inside_of_itself():
    headers = client().get("/").headers
    assert headers["x-frame-options"] == "DENY"
    assert headers["content-security-policy"] == "frame-ancestors 'none'"


def test_only_uploads_of_files_may_be_large():
    assert client().post("/x/upload", content=b"x" * 200).text == "200"
    assert client().post("/", content=b"x" * 200).status_code == 413


def test_bodies_are_counted_whatever_they_claim():
    def parts():
        for _ in range(3):
            yield b"x" * 40

    assert client().post("/", content=b"x" * 100).text == "100"
    assert client().post("/", content=parts()).status_code == 413


def test_sockets_of_other_pages_are_closed():
    with client().websocket_connect(SOCKET, headers={"origin": "http://localhost:7860"}) as own:
        assert own.receive_text() == "hello"
    with (
        pytest.raises(WebSocketDisconnect),
        client().websocket_connect(SOCKET, headers={"origin": "http://evil.example"}),
    ):
        pass
