from __future__ import annotations

import json
import socket
import stat
import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest

from appliance.federation.errors import FederationError, SiteServiceError
from appliance.federation.unixclient import UnixClient
from appliance.federation.unixhttp import PIECE_BYTES, Answer, Request, RequestError, Route, UnixServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def echo(request: Request) -> object:
    return {"parameters": dict(request.parameters), "query": dict(request.query), "body": request.json()}


def fail(request: Request) -> object:
    raise ZeroDivisionError


def refuse(request: Request) -> object:
    raise FederationError("not now")


def forbid(request: Request) -> object:
    raise RequestError(403, "not you")


def double(request: Request) -> object:
    return Answer(request.content * 2, headers={"X-Kind": "double"})


@pytest.fixture
def server(tmp_path: Path) -> Iterator[UnixServer]:
    def keep(request: Request) -> object:
        """Keep a body in a file, piece by piece; say how many pieces it took."""
        with (tmp_path / "kept").open("wb") as stream:
            return {"pieces": [stream.write(piece) for piece in request.body.pieces()]}

    def give(request: Request) -> object:
        return Answer((tmp_path / "kept").open("rb"), headers={"X-Kind": "file"})

    routes = [
        Route("PUT", "/v1/kept", keep, 2**24, streamed=True),
        Route("GET", "/v1/kept", give),
        Route("POST", "/v1/echo/{name}", echo),
        Route("GET", "/v1/fail", fail),
        Route("GET", "/v1/refuse", refuse),
        Route("GET", "/v1/forbid", forbid),
        Route("PUT", "/v1/double", double, 1024),
    ]
    running = UnixServer(tmp_path / "s.sock", routes)
    running.start()
    yield running
    running.stop()


@pytest.fixture
def client(server: UnixServer) -> UnixClient:
    return UnixClient(server.path, 5.0)


def test_parameters_query_and_body_arrive(client: UnixClient) -> None:
    answer = client.json("POST", "/v1/echo/north-1?limit=3", {"a": [1, None]})

    assert answer == {"parameters": {"name": "north-1"}, "query": {"limit": "3"}, "body": {"a": [1, None]}}


def test_bytes_go_through_unchanged(client: UnixClient) -> None:
    reply = client.send("PUT", "/v1/double", bytes(range(256)))

    assert reply.content == bytes(range(256)) * 2
    assert reply.headers["X-Kind"] == "double"


def test_pieces_arrive_as_one_body(client: UnixClient) -> None:
    pieces = [memoryview(b"ab"), memoryview(b""), memoryview(bytearray(b"cd"))]

    assert client.send("PUT", "/v1/double", pieces).content == b"abcd" * 2


@pytest.mark.parametrize("size", [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 5 * PIECE_BYTES - 1])
def test_a_file_is_taken_and_given_in_pieces(client: UnixClient, size: int) -> None:
    content = np.random.default_rng(size).bytes(size)

    taken = client.send("PUT", "/v1/kept", content)

    pieces = json.loads(taken.content)["pieces"]
    assert sum(pieces) == size
    assert max(pieces, default=0) <= PIECE_BYTES
    given = client.send("GET", "/v1/kept")
    assert given.content == content
    assert given.headers["X-Kind"] == "file"


def test_a_streamed_body_that_ends_early_is_an_error(server: UnixServer, client: UnixClient) -> None:
    with socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(server.path))
        caller.sendall(b"PUT /v1/kept HTTP/1.1\r\nContent-Length: 100\r\n\r\n" + b"x" * 40)
        caller.shutdown(socket.SHUT_WR)
        answer = caller.makefile("rb").read()

    assert b" 400 " in answer
    assert b"the body ended early" in answer


def test_a_file_that_is_gone_is_worth_asking_again(client: UnixClient) -> None:
    with pytest.raises(SiteServiceError) as caught:
        client.send("GET", "/v1/kept")
    assert caught.value.retryable


@pytest.mark.parametrize(
    ("method", "path", "retryable", "words"),
    [
        ("GET", "/v1/fail", True, "log says why"),
        ("GET", "/v1/refuse", False, "not now"),
        ("GET", "/v1/forbid", False, "not you"),
        ("GET", "/v1/unknown", False, "no such path"),
        ("GET", "/v1/echo/x", False, "no such path"),
        ("POST", "/v1/echo/..%2f..", False, "no such path"),
        ("POST", "/v1/echo/" + "x" * 200, False, "no such path"),
    ],
)
def test_a_failure_says_what_and_whether_asking_again_makes_sense(
    client: UnixClient, method: str, path: str, retryable: bool, words: str
) -> None:
    with pytest.raises(SiteServiceError, match=words) as caught:
        client.json(method, path, {} if method == "POST" else None)

    assert caught.value.retryable is retryable


def test_a_body_over_the_routes_limit_is_refused(client: UnixClient) -> None:
    with pytest.raises(SiteServiceError, match="1024"):
        client.send("PUT", "/v1/double", b"x" * 1025)


def test_the_reason_arrives_though_the_body_was_still_being_sent(client: UnixClient) -> None:
    for path, words in (("/v1/double", "1024"), ("/v1/unknown", "no such path")):
        with pytest.raises(SiteServiceError, match=words) as caught:
            client.send("PUT", path, b"x" * 2**24)
        assert not caught.value.retryable


def test_a_body_that_is_no_object_is_refused(client: UnixClient) -> None:
    for content in (b"[1]", b"{", b"\xff"):
        with pytest.raises(SiteServiceError, match="JSON"):
            client.send("POST", "/v1/echo/x", content)


def test_garbage_on_the_socket_does_not_stop_the_server(server: UnixServer, client: UnixClient) -> None:
    for garbage in (b"\x00" * 100, b"GET\r\n\r\n", b"POST /v1/echo/x HTTP/1.1\r\nContent-Length: x\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.settimeout(5)
            raw.connect(str(server.path))
            raw.sendall(garbage)
            raw.shutdown(socket.SHUT_WR)
            raw.recv(65536)

    assert client.json("POST", "/v1/echo/x", {})["body"] == {}


def test_nobody_else_may_open_the_socket(server: UnixServer) -> None:
    assert stat.S_IMODE(server.path.stat().st_mode) == 0o600


def test_a_server_that_is_not_there_is_worth_asking_again(tmp_path: Path) -> None:
    with pytest.raises(SiteServiceError) as caught:
        UnixClient(tmp_path / "none.sock").json("GET", "/")

    assert caught.value.retryable


def test_it_starts_again_on_a_socket_that_a_killed_process_left(
    server: UnixServer, client: UnixClient
) -> None:
    again = UnixServer(server.path, server.routes)
    again.start()

    assert client.json("POST", "/v1/echo/x", {})["body"] == {}
    again.stop()


def test_many_clients_are_served_at_once(client: UnixClient) -> None:
    answers: list[object] = []

    def ask(number: int) -> None:
        answers.append(client.json("POST", "/v1/echo/x", {"n": number})["body"]["n"])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)

    assert sorted(map(str, answers)) == sorted(map(str, range(32)))
