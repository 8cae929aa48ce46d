"""A real server: start and end, tokens, slow clients, 200 at once, bombs."""

import http.client
import json
import os
import re
import socket
import stat
import struct
import sys
import threading
import time
import zlib

import pytest

from kd_search.cli import main
from kd_search.cli.serve import read_token
from tests.gallery.fake_searcher import FakeSearcher
from tests.server.inputs import index, png, push_to
from tests.server.process import running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("served")
    index(folder, FakeSearcher())
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with running(folder) as started:
        yield started


def ask(address, method, target, body=None, headers=None):
    """Status and body."""
    connection = http.client.HTTPConnection(address.split("/")[2], timeout=60)
    try:
        connection.request(method, target, body, headers or {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def send(address, content, kind="image/png"):
    status, body = ask(address, "POST", "/api/pictures", content, {"Content-Type": kind})
    return status, json.loads(body)


def raw(address, content):
    """A connection that has sent some bytes."""
    host, port = address.split("/")[2].split(":")
    connection = socket.create_connection((host, int(port)), timeout=30)
    connection.sendall(content)
    return connection


def resident(process) -> int:
    """Bytes of memory of a process."""
    with open(f"/proc/{process.pid}/status") as file:
        (line,) = (line for line in file if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])


def png_bomb(width, height) -> bytes:
    """A picture of a few bytes that claims to have many pixels, and has them."""

    def chunk(kind, content):
        checked = kind + content
        return struct.pack(">I", len(content)) + checked + struct.pack(">I", zlib.crc32(checked))

    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    rows = zlib.compress(bytes((width // 8 + 1) * 1000) * (height // 1000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_search(server):
    _, address, log = server
    assert ask(address, "GET", "/")[1].startswith(b"<!DOCTYPE html>")
    status, sent = send(address, png(9, 1))
    assert status == 200
    search = {"query": [{"picture": sent["id"], "person": 1}], "top_k": 2}
    kind = {"Content-Type": "application/json"}
    status, body = ask(address, "POST", "/api/search", json.dumps(search), kind)
    assert status == 200
    found = json.loads(body)["results"]
    assert found[0]["verdict"] == "likely"
    status, picture = ask(address, "GET", f"/api/people/{found[0]['id']}/picture?size=large")
    assert status == 200 and picture.startswith(b"\xff\xd8")
    assert "POST /api/search 200" in log() and "size=large" not in log()


def test_two_hundred_at_once(server):
    process, address, log = server
    before, answers = resident(process), []
    content = png(*range(1, 5))

    def one():
        answers.append(send(address, content))

    threads = [threading.Thread(target=one) for _ in range(200)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [status for status, _ in answers].count(200) == len(answers) == 200
    assert resident(process) - before < 60_000_000
    assert ask(address, "GET", "/api/status")[0] == 200


def test_two_hundred_searches_of_a_database_at_once(folder):
    """Beside slow clients, and while the server of the database is started anew."""
    from tests.gallery.postgres_server import Server

    database = Server()
    try:
        url = database.new_schema()
        push_to(url, folder)
        with running(folder, "--gallery", url) as (process, address, log):
            wanted = [{"picture": send(address, png(9, 1))[1]["id"], "person": 1}]
            body = json.dumps({"query": wanted, "cameras": ["door"], "min_score": 0.5})
            answers = []

            def one(number):
                if number % 10 == 0:  # no valid search
                    text = body[: 3 * number % len(body)]
                else:
                    text = body
                kind = {"Content-Type": "application/json"}
                answers.append((number, *ask(address, "POST", "/api/search", text, kind)))

            def all_at_once():
                answers.clear()
                threads = [threading.Thread(target=one, args=(n,)) for n in range(200)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()

            slow = [
                raw(
                    address,
                    b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n",
                )
                for _ in range(40)
            ]
            all_at_once()
            before = resident(process)
            all_at_once()
            for number, status, content in answers:
                assert status == (200 if number % 10 else 422), content
                assert not number % 10 or len(json.loads(content)["results"]) == 3
            assert resident(process) - before < 20_000_000
            for connection in slow:
                connection.close()
            database.stop()
            answers.clear()
            one(1)
            _, status, content = answers[0]
            error = json.loads(content)["error"]
            assert (status, error["code"]) == (503, "gallery") and error["request"] in log()
            database.start()
            one(2)
            assert answers[1][1] == 200
            assert "Traceback" not in log() and not re.search(r" 500 \d+ ms", log())
    finally:
        database.remove()


def test_bombs_and_broken_pictures(server):
    process, address, log = server
    before = resident(process)
    bomb = png_bomb(32_000, 32_000)  # a gigapixel
    assert len(bomb) < 200_000
    for content, kind, status, code in (
        (bomb, "image/png", 422, "picture"),
        (b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03", "image/jpeg", 422, "picture"),
        (png(1)[:-20] + bytes(20), "image/png", 422, "picture"),
        (bytes(21_000_000), "image/png", 413, "bytes"),
    ):
        try:
            answer = send(address, content, kind)
        except (BrokenPipeError, ConnectionResetError):
            assert status == 413  # it hangs up before everything was sent
            continue
        assert (answer[0], answer[1]["error"]["code"]) == (status, code)
    assert resident(process) - before < 30_000_000
    assert "Traceback" not in log() and send(address, png(1))[0] == 200


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GET / HT",
        b"GET /api/status HTTP/1.1\r\nHost: localhost\r\nX-Slow: ",
        b"POST /api/pictures HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9000\r\n\r\nabc",
    ],
)
def test_slow_clients_hold_up_nobody(server, content):
    _, address, _ = server
    slow = [raw(address, content) for _ in range(40)]
    start = time.monotonic()
    assert ask(address, "GET", "/api/status")[0] == 200
    assert send(address, png(1))[0] == 200
    assert time.monotonic() - start < 5
    for connection in slow:
        connection.close()


def test_what_is_no_http(server):
    _, address, log = server
    for content in (
        b"\x16\x03\x01\x02\x00\x01",
        b"GET / HTTP/1.1\r\n\r\n",
        b"A" * 70_000,
        b"\n\n\n",
    ):
        with raw(address, content) as connection:
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(1000)
        assert not answer or answer.startswith(b"HTTP/1.1 4")
    smuggled = b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    with raw(address, smuggled + b"Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n") as connection:
        assert connection.recv(1000).startswith(b"HTTP/1.1 4")
    assert "Traceback" not in log() and ask(address, "GET", "/api/status")[0] == 200


def test_connections_that_take_too_long_are_ended():
    """In this process, with shorter limits."""
    import asyncio

    import uvicorn

    from kd_search.server.serving import Connection, listen

    class Hasty(Connection):
        head_seconds, request_seconds = 0.2, 0.6

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(400):
            await send({"type": "http.response.body", "body": bytes(100_000), "more_body": True})

    listener = listen("127.0.0.1", 0)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    config = uvicorn.Config(app, http=Hasty, lifespan="off", log_config=None, ws="none")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None
    serve = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    serve.start()
    try:
        for content in (b"", b"GET / HTTP/1.1\r\nHost: a\r\nX: "):
            start = time.monotonic()
            with raw(address, content) as connection:
                assert connection.recv(10) == b""
            assert time.monotonic() - start < 2
        # Somebody who asks and does not read the answer.
        with raw(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n") as connection:
            time.sleep(1.0)
            assert not server.server_state.connections
            assert connection.fileno() >= 0
    finally:
        server.should_exit = True
        serve.join()


def test_tokens(folder, tmp_path):
    file = tmp_path / "token.txt"
    with running(folder, "--token-file", str(file)) as (_, address, log):
        token = file.read_text().strip()
        assert stat.S_IMODE(os.stat(file).st_mode) == 0o600 and len(token) >= 40
        assert ask(address, "GET", "/")[0] == 200
        assert ask(address, "GET", "/api/status")[0] == 401
        headers = {"Authorization": f"Bearer {token}"}
        assert ask(address, "GET", "/api/status", headers=headers)[0] == 200
        assert ask(address, "GET", f"/api/status?token={token}")[0] == 401
        assert ask(address, "GET", "/", headers={"Host": "evil.example"})[0] == 421
        assert token not in log()


def test_a_token_that_is_short_or_no_text_is_refused(tmp_path, capsys):
    for content in (b"", b"short", b"two words that are long", b"\xff" * 40):
        file = tmp_path / "token.txt"
        file.write_bytes(content)
        with pytest.raises(ValueError, match="token.txt"):
            read_token(str(file))
    file.write_bytes(b"a-token-that-is-long-enough\n")
    file.chmod(0o644)
    assert read_token(str(file)) == "a-token-that-is-long-enough"
    assert "chmod 600" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--host", "0.0.0.0"], "--token-file"),
        (["--port", "70000"], "--port"),
        (["--max-bytes", "0"], "--max-bytes"),
        (["--gallery", "missing"], "missing"),
        (["--token-file", "no/such/folder"], "no/such/folder"),
    ],
)
def test_what_cannot_be_served(folder, options, named, capsys, monkeypatch):
    import kd_search.runtime
    from tests.server.process import Runtime

    monkeypatch.setattr(kd_search.runtime, "PersonSearcher", Runtime)
    command = ["serve", "--gallery", str(folder / "people"), "--model", "student.onnx", *options]
    assert main(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert named in line


def test_a_missing_package_is_named(folder, monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith("kd_search.server")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert main(["serve", "--gallery", str(folder / "people"), "--model", "student.onnx"]) == 2
    assert "pip install fastapi uvicorn" in capsys.readouterr().err
