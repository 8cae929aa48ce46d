"""A gallery of two cameras and the application that serves it, in this process."""

import asyncio
import io

import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="FastAPI is not installed")
pytest.importorskip("uvicorn", reason="uvicorn is not installed")

from kd_search.gallery import Gallery, GalleryWriter
from kd_search.gallery.capture import Capture, CaptureRules
from kd_search.gallery.indexing import Indexer, Settings
from kd_search.server.guard import Access
from kd_search.server.serving import create_app
from tests.gallery.fake_searcher import picture, save
from tests.gallery.gallery_inputs import manifest
from tests.server.asgi import ask

CALIBRATION = {
    "points": [
        {"false_match_rate": 1e-2, "threshold": 0.6},
        {"false_match_rate": 1e-3, "threshold": 0.9},
    ]
}
#: Persons of the pictures of each camera, by day of November 2026, at 08:00.
PICTURES = {("door", 1): (1, 2), ("door", 2): (3,), ("door", 4): (), ("door", 5): (5, 1),
            ("gate", 3): (1, 4), ("gate", 6): (2,)}  # fmt: skip
PATTERN = r"/(?P<camera>\w+)/(?P<time>\d{8}_\d{6})\."


def index(folder, searcher) -> None:
    """Write PICTURES to ``folder/footage`` and index them to ``folder/people``."""
    for (camera, day), persons in PICTURES.items():
        save(folder / "footage" / camera / f"202611{day:02}_080000.png", persons)
    with GalleryWriter(folder / "people", manifest()) as writer:
        capture = Capture(CaptureRules(path_pattern=PATTERN))
        Indexer(writer, searcher, capture, Settings()).run([str(folder / "footage")])


def push_to(url: str, folder) -> None:
    """Copy the gallery of :func:`index` into a database."""
    from kd_search.gallery.postgres import PostgresWriter, push

    source = Gallery(folder / "people")
    with PostgresWriter(url, source.manifest) as target:
        push(source, target)


def png(*persons) -> bytes:
    """A picture with these persons as coloured squares."""
    buffer = io.BytesIO()
    Image.fromarray(picture(persons)).save(buffer, "PNG")
    return buffer.getvalue()


class Client:
    """Requests to the application, which knows no token."""

    def __init__(self, folder, searcher):
        self.folder, self.searcher = folder, searcher
        self.app = create_app(str(folder / "people"), searcher, Access())

    def move_to(self, url: str) -> None:
        """Copy the gallery into a database, and serve that."""
        push_to(url, self.folder)
        self.app = create_app(url, self.searcher, Access())

    def ask(self, *args, app=None, **options):
        return asyncio.run(ask(app or self.app, *args, **options))

    def get(self, target, **headers):
        return self.ask("GET", target, headers=headers)

    def send(self, *persons) -> dict:
        """Send a picture; returns the answer."""
        answer = self.ask("POST", "/api/pictures", png(*persons), {"content-type": "image/png"})
        assert answer.status == 200, answer.body
        return answer.json

    def wanted(self, person: int) -> dict:
        """A query for a person beside another one, in a picture that is not in the gallery."""
        return {"picture": self.send(9, person)["id"], "person": 1}

    def search(self, *query, **fields):
        answer = self.ask("POST", "/api/search", {"query": list(query), **fields})
        assert answer.status == 200, answer.body
        return answer.json
