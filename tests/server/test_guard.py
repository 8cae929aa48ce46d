"""Host, origin, token, limits, headers and log of every request."""

import asyncio
import logging
import time

import pytest

pytest.importorskip("fastapi", reason="FastAPI is not installed")

from kd_search.server.guard import Access, Guard, Limits
from tests.server.asgi import ask

TOKEN = "correct-horse-battery-staple"


async def echo(scope, receive, send):
    """An application that gives the length of what it is sent."""
    message = await receive()
    if b"fail" in scope["query_string"]:
        raise RuntimeError("secret detail")
    if b"sleep" in scope["query_string"]:
        await asyncio.sleep(0.15)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(message["body"])).encode()})


def guard(limits=None, **access):
    files = {"/": (b"<p>page", "text/html")}
    return Guard(echo, files, Access(**access), limits)


def one(app, *args, **options):
    return asyncio.run(ask(app, *args, **options))


@pytest.mark.parametrize(
    ("host", "allowed", "elsewhere"),
    [
        ("localhost:8000", True, True),
        ("127.0.0.1", True, True),
        ("[::1]:8000", True, True),
        ("LOCALHOST", True, True),
        ("people.example", True, True),
        ("people.example:443", True, True),
        ("evil.example", False, False),
        ("localhost.evil.example", False, False),
        ("127.0.0.1.evil.example:8000", False, False),
        ("10.0.0.7:8000", False, True),
        ("[fe80::1]:8000", False, True),
        ("", False, False),
        ("a:b:c", False, False),
    ],
)
def test_a_name_that_was_made_to_point_here_is_refused(host, allowed, elsewhere):
    for addresses, expected in ((False, allowed), (True, elsewhere)):
        app = guard(hosts=frozenset({"people.example"}), addresses=addresses)
        for target in ("/", "/api/x"):
            answer = one(app, "GET", target, headers={"host": host})
            assert answer.status == (200 if expected else 421), (host, addresses)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec-fetch-site": "same-origin", "origin": "http://localhost:8000"}, 200),
        ({"sec-fetch-site": "none"}, 200),
        ({}, 200),
        ({"sec-fetch-site": "cross-site"}, 403),
        ({"sec-fetch-site": "same-site"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "http://localhost:3000"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_pages_of_other_sites_cannot_ask(headers, status):
    assert one(guard(), "POST", "/api/x", b"a", headers).status == status
    # A link to the page is no harm.
    assert one(guard(), "GET", "/", headers=headers).status == 200


@pytest.mark.parametrize(
    ("authorization", "status"),
    [
        (f"Bearer {TOKEN}", 200),
        (f"bearer  {TOKEN} ", 200),
        ("", 401),
        (TOKEN, 401),
        (f"Basic {TOKEN}", 401),
        (f"Bearer {TOKEN[:-1]}", 401),
        (f"Bearer {TOKEN}x", 401),
        ("Bearer ", 401),
        ("Bearer \udcff\udcfe", 401),
    ],
)
def test_token(authorization, status, caplog):
    caplog.set_level(logging.DEBUG)
    app = guard(token=TOKEN)
    answer = one(app, "POST", f"/api/x?token={TOKEN}", b"", {"authorization": authorization})
    assert answer.status == status
    assert TOKEN not in caplog.text and TOKEN not in repr(app._access)
    if status == 401:
        assert answer.headers["www-authenticate"] == "Bearer" and TOKEN not in str(answer)
    # The page itself has nothing to hide: it asks for the token.
    assert one(app, "GET", "/").status == 200


def test_tokens_are_compared_in_constant_time(monkeypatch):
    seen = []

    def compare(one, other):
        seen.append((len(one), len(other)))
        return one == other

    monkeypatch.setattr("kd_search.server.guard.hmac.compare_digest", compare)
    for given in ("", "x", TOKEN, TOKEN * 50):
        assert Access(token=TOKEN).allows(f"Bearer {given}") == (given == TOKEN)
    assert seen == [(32, 32)] * 4


def test_every_answer_has_the_headers():
    app = guard(token=TOKEN)
    for answer in (
        one(app, "GET", "/"),
        one(app, "GET", "/nothing"),
        one(app, "GET", "/api/x"),
        one(app, "POST", "/api/x?fail", b"", {"authorization": f"Bearer {TOKEN}"}),
        one(app, "GET", "/", headers={"host": "evil.example"}),
    ):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert len(answer.headers["x-request-id"]) == 8


def test_files_and_their_caching():
    first = one(guard(), "GET", "/")
    assert (first.body, first.headers["content-type"]) == (b"<p>page", "text/html; charset=utf-8")
    again = one(guard(), "GET", "/", headers={"if-none-match": first.headers["etag"]})
    assert (again.status, again.body) == (304, b"")
    for path in ("/../guard.py", "/%2e%2e/guard.py", "//", "/index.html/", "/etc/passwd"):
        assert one(guard(), "GET", path).status == 404
    assert one(guard(), "DELETE", "/").status == 405
    assert one(guard(), "HEAD", "/").body == b""
    assert one(guard(), "PUT", "/api/x").status == 405


def test_bytes_are_limited_by_the_header_and_by_what_arrives():
    app = guard(Limits(max_bytes=1000))
    assert one(app, "POST", "/api/pictures", b"x" * 1000).body == b"1000"
    assert one(app, "POST", "/api/pictures", b"x" * 1001).status == 413
    lying = {"content-length": ""}
    assert one(app, "POST", "/api/pictures", b"x" * 5000, lying, parts=9).status == 413
    assert one(app, "POST", "/api/pictures", b"x" * 900, lying, parts=9).body == b"900"
    for length in ("-1", "9" * 30, "1e3", "٣"):
        assert one(app, "POST", "/api/x", b"", {"content-length": length}).status == 413
    # Other requests are short, whatever the limit of pictures.
    assert one(guard(), "POST", "/api/search", b"x" * 400_000).status == 413


def test_a_body_that_arrives_slowly_is_given_up():
    start = time.monotonic()
    app = guard(Limits(body_seconds=0.1))
    answer = one(app, "POST", "/api/x", b"x" * 50, parts=50, pause=0.02)
    assert (answer.status, answer.code) == (408, "slow") and time.monotonic() - start < 0.6


def test_requests_at_work_are_limited_and_others_wait_or_are_turned_away():
    app = guard(Limits(active=2, waiting=3, wait_seconds=5))

    async def all_at_once():
        return await asyncio.gather(*(ask(app, "GET", "/api/x?sleep") for _ in range(9)))

    answers = asyncio.run(all_at_once())
    assert sorted(a.status for a in answers) == [200] * 5 + [503] * 4
    busy = next(a for a in answers if a.status == 503)
    assert busy.code == "busy" and busy.headers["retry-after"]

    impatient = guard(Limits(active=1, wait_seconds=0.05))

    async def two():
        return await asyncio.gather(*(ask(impatient, "GET", "/api/x?sleep") for _ in range(2)))

    assert sorted(a.status for a in asyncio.run(two())) == [200, 503]
    assert one(app, "GET", "/").status == 200


def test_slow_clients_take_no_place_among_those_at_work():
    app = guard(Limits(active=1, body_seconds=5))

    async def both():
        slow = asyncio.ensure_future(ask(app, "POST", "/api/x", b"x" * 20, parts=20, pause=0.02))
        await asyncio.sleep(0.02)
        quick = await ask(app, "POST", "/api/x", b"abc")
        assert not slow.done()
        return quick, await slow

    quick, slow = asyncio.run(both())
    assert (quick.body, slow.body) == (b"3", b"20")


def test_bodies_of_all_requests_together_are_limited(monkeypatch):
    monkeypatch.setattr("kd_search.server.guard._ALL_BYTES", 1000)
    app = guard(Limits(max_bytes=600))

    async def two():
        return await asyncio.gather(
            *(ask(app, "POST", "/api/pictures", b"x" * 600, parts=4, pause=0.01) for _ in range(2))
        )

    assert sorted(a.status for a in asyncio.run(two())) == [200, 503]
    assert one(app, "POST", "/api/pictures", b"x" * 600).status == 200


def test_a_failure_has_a_number_and_a_line_in_the_log_and_no_detail(caplog):
    caplog.set_level(logging.INFO)
    answer = one(guard(), "GET", "/api/x?fail")
    assert answer.status == 500 and b"secret" not in answer.body
    number = answer.json["error"]["request"]
    assert number == answer.headers["x-request-id"]
    failed = [r for r in caplog.records if number in r.getMessage() and r.exc_info]
    assert len(failed) == 1 and "secret detail" in caplog.text


def test_a_path_cannot_write_a_line_of_its_own_into_the_log(caplog):
    caplog.set_level(logging.INFO)
    one(guard(), "GET", "/api/x%0a2026%20fake%20line%1b[31m?secret=7")
    (line,) = (r.getMessage() for r in caplog.records if r.name == "kd_search.server")
    assert "\n" not in line and "\x1b" not in line and "secret" not in line
