"""Fixtures of the tests of the server."""

import pytest

from tests.gallery.postgres_server import server  # noqa: F401


@pytest.fixture
def client(tmp_path):
    """The application on a gallery of two cameras, with a calibrated network."""
    from tests.gallery.fake_searcher import FakeSearcher
    from tests.server.inputs import CALIBRATION, Client, index

    searcher = FakeSearcher()
    searcher.manifest["calibration"] = CALIBRATION
    index(tmp_path, searcher)
    return Client(tmp_path, searcher)
