"""What every request passes before the API sees it: host, token, limits; and headers and log."""

import asyncio
import hashlib
import hmac
import ipaddress
import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Callable, Optional

from starlette.responses import Response

from .errors import LOG, NUMBER, ApiError, one_line, problem

#: Of every answer. The page has no script and no style inside of it, loads nothing from elsewhere,
#: and cannot be framed.
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-store",
}
_LOOPBACK = {"localhost", "127.0.0.1", "::1"}
#: Bodies of other requests than pictures, and all bodies in memory together.
_JSON_BYTES, _ALL_BYTES = 300_000, 200_000_000


@dataclass(frozen=True)
class Limits:
    """What a request may take."""

    #: Of a picture that is sent.
    max_bytes: int = 20_000_000
    #: For the body to arrive, and for waiting until others are done.
    body_seconds: float = 30.0
    wait_seconds: float = 30.0
    #: Requests at work, and waiting; further ones are turned away.
    active: int = 8
    waiting: int = 256


@dataclass
class Access:
    """Who may ask."""

    #: Names in the header Host beside those of this machine: a page of another site that makes its
    #: name point here (DNS rebinding) sends its own.
    hosts: frozenset[str] = frozenset()
    #: Whether any address counts as a host: they cannot be made to point elsewhere.
    addresses: bool = False
    token: Optional[str] = field(default=None, repr=False)

    def allows_host(self, host: str) -> bool:
        """Whether a header Host names this server."""
        name, _, port = host.rpartition(":")
        if not port.isdecimal() or (":" in name and not name.endswith("]")):
            name = host
        name = name.strip("[]").lower()
        if name in _LOOPBACK or name in self.hosts:
            return True
        try:
            return self.addresses and bool(ipaddress.ip_address(name))
        except ValueError:
            return False

    def allows(self, authorization: str) -> bool:
        """Whether a header Authorization has the token; the time it takes does not tell."""
        if self.token is None:
            return True
        kind, _, given = authorization.partition(" ")
        # Of equal length, whatever was given.
        ours, theirs = (
            hashlib.sha256(text.strip().encode("utf-8", "surrogateescape")).digest()
            for text in (self.token, given)
        )
        return hmac.compare_digest(ours, theirs) and kind.lower() == "bearer"


class Guard:
    """An ASGI application around the API, which answers for the static files itself."""

    def __init__(
        self,
        api: Callable[..., Any],
        files: Mapping[str, tuple[bytes, str]],
        access: Access,
        limits: Optional[Limits] = None,
    ):
        """
        Args:
            api: ASGI application for the paths under ``/api/``.
            files: content and media type by path.
            access, limits: of all requests.
        """
        self._api, self._access, self._limits = api, access, limits or Limits()
        self._files = {path: (*file, _tag(file[0])) for path, file in files.items()}
        #: Requests at work or waiting, and bytes of bodies in memory.
        self._inside = self._bytes = 0
        self._slots: Optional[asyncio.Semaphore] = None

    async def __call__(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        number, start = secrets.token_hex(4), time.monotonic()
        scope = {**scope, NUMBER: number}
        status = 0

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                given = {name.lower() for name, _ in message["headers"]}
                headers = list(message["headers"])
                for name, value in {**HEADERS, "X-Request-Id": number}.items():
                    if name.lower().encode() not in given:
                        headers.append((name.lower().encode(), value.encode()))
                message = {**message, "headers": headers}
            await send(message)

        try:
            await self._serve(scope, receive, answer)
        except _GoneError:
            pass
        except ApiError as error:
            if not status:
                code, text = error.code, str(error.detail)
                response = problem(scope, error.status_code, code, text, error.headers)
                await response(scope, receive, answer)
        except Exception:
            LOG.exception("%s failed", number)
            if not status:
                text = "something failed: see the log of the server, by the number of the request"
                await problem(scope, 500, "internal", text)(scope, receive, answer)
        finally:
            # Queries and headers are left out: they may hold what is nobody's business.
            where = f"{scope['method']} {scope['path']}"
            took = 1000 * (time.monotonic() - start)
            LOG.info("%s %s %d %.0f ms", number, one_line(where), status, took)

    async def _serve(self, scope: dict[str, Any], receive: Any, send: Any) -> None:
        headers = {name.lower(): value.decode("latin-1") for name, value in scope["headers"]}
        if not self._access.allows_host(headers.get(b"host", "")):
            raise ApiError(421, "host", "this server has another name: see --allow-host")
        path, method = scope["path"], scope["method"]
        if not path.startswith("/api/"):
            await self._file(scope, headers)(scope, receive, send)
            return
        self._check_origin(headers)
        if not self._access.allows(headers.get(b"authorization", "")):
            raise ApiError(
                401, "token", "the token is missing or wrong", {"WWW-Authenticate": "Bearer"}
            )
        limit = self._limits.max_bytes if path == "/api/pictures" else _JSON_BYTES
        length = headers.get(b"content-length", "0" if method == "GET" else str(limit))
        if method not in ("POST", "GET"):
            raise ApiError(405, "method", "use GET or POST", {"Allow": "GET, POST"})
        if not length.isdecimal() or len(length) > 15 or int(length) > limit:
            raise _too_large(limit)
        if self._bytes + int(length) > _ALL_BYTES:
            raise _busy()
        answer: list[dict[str, Any]] = []

        async def keep(message: dict[str, Any]) -> None:
            answer.append(message)

        self._bytes += int(length)
        try:
            # Clients that send or read slowly take no place among the requests at work.
            body = await self._body(receive, limit) if method == "POST" else b""
            async with self._slot():
                await self._api(scope, _replay(body, receive), keep)
            del body
        finally:
            self._bytes -= int(length)
        for message in answer:
            await send(message)

    def _check_origin(self, headers: Mapping[bytes, str]) -> None:
        """Refuse what the page of another site asks the browser to send here."""
        site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
        ours = headers.get(b"host", "").lower()
        if site not in (None, "same-origin", "none") or (
            origin is not None and origin.lower().partition("://")[2] != ours
        ):
            raise ApiError(403, "origin", "requests of other sites are refused")

    def _file(self, scope: Mapping[str, Any], headers: Mapping[bytes, str]) -> Response:
        file = self._files.get(scope["path"])
        if scope["method"] not in ("GET", "HEAD"):
            return problem(scope, 405, "method", "use GET", {"Allow": "GET, HEAD"})
        if file is None:
            return problem(scope, 404, "path", "there is nothing here")
        content, kind, tag = file
        # The page belongs to the version of the server, and is nobody's secret.
        caching = {"ETag": tag, "Cache-Control": "no-cache"}
        if headers.get(b"if-none-match") == tag:
            return Response(status_code=304, headers=caching)
        response = Response(content, media_type=kind, headers=caching)
        if scope["method"] == "HEAD":
            response.body = b""
        return response

    def _slot(self) -> "_Slot":
        if self._slots is None:  # Python 3.9 ties it to the loop in which it is made
            self._slots = asyncio.Semaphore(self._limits.active)
        return _Slot(self, self._slots)

    async def _body(self, receive: Any, limit: int) -> bytes:
        parts, size = [], 0
        end = time.monotonic() + self._limits.body_seconds
        while True:
            try:
                message = await asyncio.wait_for(receive(), max(end - time.monotonic(), 0.001))
            except asyncio.TimeoutError:
                raise ApiError(408, "slow", "the request took too long to arrive") from None
            if message["type"] == "http.disconnect":
                raise _GoneError
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > limit:
                raise _too_large(limit)
            if not message.get("more_body", False):
                return b"".join(parts)


class _GoneError(Exception):
    """The client has hung up."""


class _Slot:
    """A place among the requests at work."""

    def __init__(self, guard: Guard, slots: asyncio.Semaphore):
        self._guard, self._slots = guard, slots

    async def __aenter__(self) -> None:
        guard, limits = self._guard, self._guard._limits
        if guard._inside >= limits.active + limits.waiting:
            raise _busy()
        guard._inside += 1
        try:
            await asyncio.wait_for(self._slots.acquire(), limits.wait_seconds)
        except BaseException as error:
            guard._inside -= 1
            if isinstance(error, asyncio.TimeoutError):
                raise _busy() from None
            raise

    async def __aexit__(self, *_: object) -> None:
        self._guard._inside -= 1
        self._slots.release()


def _replay(body: bytes, receive: Any) -> Any:
    sent = False

    async def once() -> dict[str, Any]:
        nonlocal sent
        if sent:
            return await receive()
        sent = True
        return {"type": "http.request", "body": body, "more_body": False}

    return once


def _busy() -> ApiError:
    return ApiError(503, "busy", "too many requests: try again soon", {"Retry-After": "2"})


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "bytes", f"the request may have {limit} bytes")


def _tag(content: bytes) -> str:
    return f'"{hashlib.sha256(content).hexdigest()[:20]}"'
