"""Requests to an ASGI application in this process, with headers and bodies as they are given."""

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any, Optional
from urllib.parse import unquote


@dataclass
class Answer:
    """Of an application."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def code(self) -> str:
        """Of an error."""
        return self.json["error"]["code"]


async def ask(
    app: Any,
    method: str,
    target: str,
    body: Any = b"",
    headers: Optional[dict[str, str]] = None,
    *,
    parts: int = 1,
    pause: float = 0.0,
) -> Answer:
    """Send one request.

    Args:
        app: ASGI application.
        method, target: path and query.
        body: bytes, or anything else for JSON.
        headers: beside Host, Content-Type and Content-Length; an empty one is left out.
        parts: in which the body arrives, with a ``pause`` in seconds before each.
    """
    kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    given = {"host": "localhost:8000", "content-type": kind, "content-length": str(len(content))}
    given.update({name.lower(): value for name, value in (headers or {}).items()})
    path, _, query = target.partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(path),
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [
            (k.encode(), v.encode("utf-8", "surrogateescape")) for k, v in given.items() if v
        ],
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 5),
    }
    step = -(-len(content) // parts) or 1
    pieces = [content[i : i + step] for i in range(0, len(content), step)] or [b""]
    answer, done = Answer(), asyncio.Event()

    async def receive() -> dict:
        await asyncio.sleep(pause)
        if pieces:
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}
        await done.wait()
        return {"type": "http.disconnect"}

    async def send(message: dict) -> None:
        if message["type"] == "http.response.start":
            answer.status = message["status"]
            answer.headers = {k.decode(): v.decode("latin-1") for k, v in message["headers"]}
        else:
            answer.body += message.get("body", b"")

    try:
        await app(scope, receive, send)
    finally:
        done.set()
    return answer
