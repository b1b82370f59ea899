"""Clients that misbehave, against a server on a socket; it has no model, so that it is quick."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import uvicorn

from gr_jax.serving.http import connections, server
from gr_jax.serving.http.limits import Limits

LIMITS = Limits(
    body_bytes=100_000, body_seconds=3.0, head_seconds=0.5, send_seconds=1.0, connections=8
)
HEAD = b"POST /recommend HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"


@contextlib.contextmanager
def serving(app, limits: Limits) -> Iterator[int]:
    """The port on which the app is served, in a thread."""
    config = uvicorn.Config(app, port=0, log_level="critical", http=connections.limited(limits))
    running = uvicorn.Server(config)
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not running.started and thread.is_alive():
            time.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join()


@pytest.fixture(scope="module")
def port():
    """A server whose model takes for ever to be loaded."""
    end = threading.Event()

    def load():
        end.wait()
        raise OSError("no model")

    with serving(server.make_app(load, LIMITS), LIMITS) as port:
        yield port
        end.set()


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=20)


def whole_answer(connection: socket.socket) -> tuple[int, dict]:
    """Status and JSON of what the server sends until it closes the connection."""
    received = b""
    while part := connection.recv(1 << 16):
        received += part
    head, _, body = received.partition(b"\r\n\r\n")
    return int(head[9:12]), json.loads(body)


def ask(port: int, path: str) -> tuple[int, dict]:
    with connect(port) as connection:
        request = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        connection.sendall(request.encode())
        return whole_answer(connection)


def counted(port: int) -> str:
    with connect(port) as connection:
        connection.sendall(b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
        return connection.makefile("rb").read().decode()


def test_while_the_model_is_loaded_the_server_says_so(port):
    assert ask(port, "/healthz") == (503, {"status": "loading"})
    assert ask(port, "/items") == (503, {"error": "the server is loading"})


@pytest.mark.parametrize("size", [200_000, 20_000_000, 10**15])
def test_an_answer_to_a_body_that_is_too_large_arrives_although_all_of_it_is_sent(port, size):
    with connect(port) as connection:
        connection.sendall(HEAD + f"content-length: {size}\r\n\r\n".encode())
        for _ in range(min(size, 20_000_000) // 100_000):
            connection.sendall(b" " * 100_000)
        if size > 20_000_000:
            connection.shutdown(socket.SHUT_WR)
        status, told = whole_answer(connection)
    assert status == 413 and "at most 100,000 are taken" in told["error"]


def test_an_answer_to_chunks_that_are_too_large_arrives_as_well(port):
    with connect(port) as connection:
        connection.sendall(HEAD.replace(b"content-type", b"transfer-encoding: chunked\r\nx"))
        connection.sendall(b"\r\n")
        for _ in range(300):
            connection.sendall(b"8000\r\n" + b" " * 0x8000 + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        status, told = whole_answer(connection)
    # Without a model there is no room for a body that may be large; with one it would be too large.
    assert status in (413, 503) and told["error"]


def test_a_client_that_leaves_in_mid_body_is_not_an_error_of_the_server(port):
    before = counted(port)
    for _ in range(3):
        with connect(port) as connection:
            connection.sendall(HEAD + b"content-length: 1000\r\n\r\n{")
    deadline = time.monotonic() + 10
    wanted = 'gr_jax_requests_total{path="/recommend",status="499"} 3.0'
    while wanted not in counted(port) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert wanted in counted(port) and wanted not in before
    assert 'path="/recommend",status="500"' not in counted(port)


@pytest.mark.parametrize("start", [b"", b"GET /healthz HTT", HEAD + b"x-slow: "])
def test_a_connection_without_a_whole_head_is_closed(port, start):
    with connect(port) as connection:
        connection.sendall(start)
        began = time.monotonic()
        assert connection.recv(100) == b""
        assert time.monotonic() - began < 10


def test_a_head_that_trickles_in_is_closed_too(port):
    with connect(port) as connection, contextlib.suppress(ConnectionError):
        for byte in HEAD * 100:
            connection.sendall(bytes([byte]))
            time.sleep(0.05)
        pytest.fail("it went on for ever")


def test_a_second_request_of_which_half_comes_is_closed(port):
    with connect(port) as connection:
        connection.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\nGET /he")
        received = connection.recv(1000)
        assert b" 503 " in received
        while connection.recv(1000):
            pass


def test_idle_connections_make_room_for_new_ones():
    patient = Limits(connections=8, head_seconds=60.0)
    end = threading.Event()
    with serving(server.make_app(lambda: end.wait() and None, patient), patient) as port:
        idle = [connect(port) for _ in range(30)]
        assert ask(port, "/healthz")[0] == 503
        assert idle[0].recv(100) == b"", "the oldest had to go"
        for connection in idle:
            connection.close()
        end.set()


def test_connections_are_fewer_than_the_files_that_the_process_may_open(monkeypatch):
    for files, most in ((200, 136), (64, 8), (10**6, 1000)):
        monkeypatch.setattr(connections.resource, "getrlimit", lambda _, n=files: (n, n))
        assert connections.most_connections(Limits()) == most


def test_a_client_that_does_not_read_is_closed():
    app = server.make_app(lambda: None, LIMITS)

    @app.get("/endless")
    async def endless():
        from fastapi.responses import StreamingResponse

        return StreamingResponse(b"x" * 10**6 for _ in range(1000))

    with serving(app, LIMITS) as port, connect(port) as connection:
        connection.sendall(b"GET /endless HTTP/1.1\r\nhost: localhost\r\n\r\n")
        time.sleep(3)
        received = 0
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(1 << 20):
                received += len(part)
        assert received < 10**9
