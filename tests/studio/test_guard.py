"""Other pages, other names of this machine and too large requests are refused."""

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


def client(hosts=LOCAL, body=100) -> TestClient:
    routes = [Route("/", _echo, methods=["GET", "POST"]), WebSocketRoute("/socket", _socket)]
    app = Guard(Starlette(routes=routes), hosts, body)
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
        ({"content-length": "10000000"}, 413),
        ({"content-length": "-1"}, 413),
    ],
)
def test_who_may_ask(headers, status):
    assert client().post("/", headers=headers).status_code == status


def test_a_page_for_others_has_any_name_but_only_its_own_origin():
    others = client(hosts=())
    own = {"host": "server:7860", "origin": "http://server:7860"}
    assert others.post("/", headers=own).status_code == 200
    assert others.post("/", headers=own | {"origin": "http://evil.example"}).status_code == 403


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
