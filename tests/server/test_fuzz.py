"""Mutated requests: none is answered 500, and memory of the server's state stays limited."""

import asyncio
import json
import logging
import random

import pytest

from tests.server.asgi import ask
from tests.server.inputs import png

VALUES = [
    None,
    True,
    -1,
    0,
    1e308,
    2**63,
    2**2000,
    0.5,
    "",
    "a",
    "1.0",
    "0.0",
    "9" * 40 + ".1",
    "١.٠",
    "\ud800",
    "\x00",
    "../../etc/passwd",
    "/",
    "%2e%2e/",
    "2026-11-03",
    "٢٠٢٦1103",
    "x" * 5000,
    [],
    [[]],
    {},
    {"id": "1.0"},
    [1, 2, 3, 4],
    ["door"],
    float("inf"),
]
METHODS = ["GET", "POST", "HEAD", "PUT", "OPTIONS", "TRACE", "get", "PATCH"]
PATHS = [
    "/api/status",
    "/api/timeline",
    "/api/pictures",
    "/api/search",
    "/api/export",
    "/api/people/1.0",
    "/api/people/1.0/picture",
    "/",
    "/app.js",
    "/api/",
    "/api",
    "/api/openapi.json",
]
HEADERS = {
    "content-type": [
        "",
        "image/png",
        "image/jpeg",
        "application/json",
        "\udcff",
        "a" * 9000,
        "multipart/form-data",
    ],
    "content-length": ["", "0", "-1", "1", "99999999999", "0x10", "٣"],
    "host": ["localhost", "", "evil", "[", "]:", "localhost:99999999", "\udcfe"],
    "authorization": ["", "Bearer", "Bearer x", "\udcff"],
    "origin": ["null", "http://localhost:8000", "://", "\udcff"],
    "if-none-match": ["*", '"x"'],
    "transfer-encoding": ["chunked"],
    "range": ["bytes=0-9999999"],
}


def mutated_json(rng, value):
    """A valid document with something changed, added or removed anywhere."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        value = dict(value)
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.15:
            del value[key]
        elif kind < 0.25:
            value[str(rng.choice(VALUES))] = rng.choice(VALUES)
        else:
            value[key] = mutated_json(rng, value[key])
        return value
    if isinstance(value, list) and value and rng.random() < 0.7:
        value = list(value)
        place = rng.randrange(len(value))
        value[place] = mutated_json(rng, value[place])
        return value * rng.choice([1, 1, 1, 2, 300])
    return rng.choice(VALUES)


def mutated_bytes(rng, content):
    content = bytearray(content)
    for _ in range(rng.randrange(1, 6)):
        kind, place = rng.random(), rng.randrange(len(content) + 1)
        if kind < 0.5 and place < len(content):
            content[place] ^= 1 << rng.randrange(8)
        elif kind < 0.7:
            del content[place : place + rng.randrange(40)]
        else:
            content[place:place] = rng.randbytes(rng.randrange(20))
    return bytes(content)


def mutated(rng, picture):
    """Method, target, body and headers of one request."""
    search = {
        "query": [
            {"picture": picture, "person": 0},
            {"id": "1.0"},
            {"picture": picture, "box": [1, 1, 30, 15]},
        ],
        "cameras": ["door"],
        "start": "2026-11-01",
        "end": 1794000000.0,
        "folders": ["/footage"],
        "min_score": 0.1,
        "per": "picture",
        "top_k": 5,
        "marks": [{"id": "1.0", "right": True}, {"id": "2.0", "right": False}],
    }
    kind, headers = rng.random(), {}
    if kind < 0.4:
        target = rng.choice(["/api/search", "/api/search", "/api/export?format=json"])
        body, method = mutated_json(rng, search), "POST"
        if rng.random() < 0.25:
            body = mutated_bytes(rng, json.dumps(search).encode())
            headers["content-type"] = "application/json"
    elif kind < 0.7:
        method, target, body = "POST", "/api/pictures", mutated_bytes(rng, png(1, 2))
        headers["content-type"] = "image/png"
    else:
        method, target, body = rng.choice(METHODS), rng.choice(PATHS), rng.randbytes(30)
        if rng.random() < 0.5:
            target += "/" + str(rng.choice(VALUES)).encode("utf-8", "replace").decode()[:100]
        if rng.random() < 0.5:
            target += f"?size={rng.choice(VALUES)!r}&bins={rng.choice(VALUES)!r}"[:300]
        target = target.encode("ascii", "xmlcharrefreplace").decode()
    if rng.random() < 0.2:
        name = rng.choice(list(HEADERS))
        headers[name] = rng.choice(HEADERS[name])
    return method, target, body, headers


@pytest.mark.parametrize(("store", "number"), [("folder", 700), ("database", 300)])
def test_mutated_requests(client, caplog, request, store, number):
    if store == "database":
        client.move_to(request.getfixturevalue("server").new_schema())
    caplog.set_level(logging.INFO)
    rng = random.Random(17)
    picture = client.send(9, 1)["id"]
    seen = []

    async def all_of_them():
        for _ in range(number):
            method, target, body, headers = mutated(rng, picture)
            answer = await ask(client.app, method, target, body, headers)
            seen.append((answer.status, method, target, headers, body, answer))

    asyncio.run(all_of_them())
    for status, *what, answer in seen:
        assert 200 <= status < 500, what
        assert "x-request-id" in answer.headers
        if status >= 400:
            assert set(answer.json["error"]) == {"code", "message", "request"}
            assert len(answer.body) < 1000 and b"Traceback" not in answer.body
    statuses = [status for status, *_ in seen]
    # Not all of them stop at the first check.
    assert statuses.count(200) > number / 14 and {404, 405, 413, 415, 421, 422} <= set(statuses)
    lines = [r for r in caplog.records if r.name == "kd_search.server"]
    assert len(lines) == number + 1 and all("\n" not in r.getMessage() for r in lines)
    # What was kept of them is limited, and the server goes on.
    assert client.search({"id": "1.0"})["results"]


def test_json_that_is_nested_deeply(client):
    for body in (
        b"[" * 100_000,
        b'{"query":' * 20_000,
        b'{"query": [' + b"[" * 50_000 + b"]" * 50_000,
    ):
        kind = {"content-type": "application/json"}
        assert client.ask("POST", "/api/search", body, kind).status in (400, 422)


@pytest.mark.parametrize("limit", ["_PICTURES", "_BYTES"])
def test_pictures_that_are_kept_are_limited(client, monkeypatch, limit):
    size = len(png(1))
    monkeypatch.setattr(
        f"kd_search.server.uploads.{limit}", 3 if limit == "_PICTURES" else 3.5 * size
    )
    sent = [client.send(1)["id"] for _ in range(6)]
    kept = [
        client.ask("POST", "/api/search", {"query": [{"picture": i, "person": 0}]}) for i in sent
    ]
    assert [answer.status for answer in kept] == [404] * 3 + [200] * 3
    assert kept[0].code == "picture-gone"


def test_pictures_are_kept_for_a_while(client, monkeypatch):
    monkeypatch.setattr("kd_search.server.uploads._SECONDS", -1.0)
    search = {"query": [{"picture": client.send(1)["id"], "person": 0}]}
    assert client.ask("POST", "/api/search", search).code == "picture-gone"


def test_a_gallery_that_was_removed_meanwhile(client, monkeypatch, caplog):
    monkeypatch.setattr("kd_search.server.library._REFRESH", 0.0)
    (client.folder / "people" / "gallery.json").write_text("{")
    answer = client.get("/api/status")
    assert (answer.status, answer.code) == (503, "gallery")
    assert str(client.folder) not in answer.body.decode()
    number = answer.json["error"]["request"]
    assert any(
        number in r.getMessage() and "gallery.json" in r.getMessage() for r in caplog.records
    )
