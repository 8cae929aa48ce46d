"""The process of the server: its files, its connections and its loop."""

import asyncio
import socket
from pathlib import Path
from typing import Any, Optional

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from kd_search import __version__
from kd_search.gallery.opening import gallery_name, open_gallery
from kd_search.visualization.style import colour_variables

from .api import create_api
from .guard import Access, Guard, Limits
from .library import Library
from .uploads import Uploads

_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
#: Open connections; further ones are turned away.
_CONNECTIONS = 400


def create_app(
    gallery: str,
    searcher: Any,
    access: Access,
    limits: Optional[Limits] = None,
    max_pixels: Optional[int] = None,
) -> Guard:
    """The whole application.

    Args:
        gallery: folder, or URL of a database.
        searcher: :class:`kd_search.runtime.PersonSearcher` of the network that indexed it.
        access, limits: see :class:`Guard`.
        max_pixels: of pictures; ``None`` for the network's limit.

    Raises:
        GalleryError: the gallery cannot be read, or belongs to another network.
    """
    manifest, limits = searcher.manifest, limits or Limits()
    opened = open_gallery(gallery)
    opened.manifest.check_model(gallery_name(gallery), manifest["file_sha256"], manifest["file"])
    pixels = max_pixels or manifest["max_pixels"]
    status = {
        "gallery": Path(gallery_name(gallery)).resolve().name,
        "model": manifest["file"],
        "model_sha256": manifest["file_sha256"],
        "calibrated": bool(manifest["calibration"]),
        "min_score": manifest["search_score_threshold"],
        "max_bytes": limits.max_bytes,
        "max_pixels": pixels,
        "version": __version__,
    }
    library = Library(opened, manifest["calibration"], pixels)
    return Guard(create_api(library, Uploads(searcher, pixels), status), files(), access, limits)


def files() -> dict[str, tuple[bytes, str]]:
    """Content and media type of the page and its files, by path."""
    folder = Path(__file__).with_name("static")
    found = {
        f"/{path.name}": (path.read_bytes(), _KINDS[path.suffix])
        for path in sorted(folder.iterdir())
        if path.suffix in _KINDS
    }
    found["/colours.css"] = (colour_variables().encode(), _KINDS[".css"])
    found["/"] = found["/index.html"]
    return found


class Connection(H11Protocol):
    """A connection that is ended if a request takes too long to arrive or to be answered."""

    head_seconds = 10.0
    request_seconds = 150.0
    _timer: Optional[asyncio.TimerHandle] = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._limit(self.head_seconds)

    def data_received(self, data: bytes) -> None:
        before = self._busy
        if not before and self._timer is None:
            self._limit(self.head_seconds)
        super().data_received(data)
        if self._busy and not before:
            self._limit(self.request_seconds)

    def on_response_complete(self) -> None:
        self._limit(None)
        super().on_response_complete()
        if self._busy:  # a request that was sent without waiting for the answer before
            self._limit(self.request_seconds)

    def connection_lost(self, exc: Optional[Exception]) -> None:
        self._limit(None)
        super().connection_lost(exc)

    @property
    def _busy(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _limit(self, seconds: Optional[float]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        # Not close(), which waits until the other side has read everything.
        self._timer = seconds and self.loop.call_later(seconds, self.transport.abort) or None


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens.

    Raises:
        OSError: the address is in use, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=256)
    listener.set_inheritable(True)
    return listener


def run(app: Guard, listener: socket.socket) -> None:
    """Serve until the process is interrupted."""
    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=_CONNECTIONS,
        h11_max_incomplete_event_size=16_384,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=5,
    )
    asyncio.run(uvicorn.Server(config).serve(sockets=[listener]))
