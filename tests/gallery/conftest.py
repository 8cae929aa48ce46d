"""The PostgreSQL server of these tests."""

from tests.gallery.postgres_server import server  # noqa: F401
