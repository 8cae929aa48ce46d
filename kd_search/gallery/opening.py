"""Galleries by their names: a folder, or the URL of a database."""

from typing import Any, Optional

from .manifest import Manifest, is_gallery, read_manifest
from .search import Gallery
from .store import GalleryWriter

_DATABASE = "postgresql://"


def is_database(name: str) -> bool:
    """Whether a name is the URL of a database."""
    return name.startswith(_DATABASE)


def gallery_name(name: str) -> str:
    """A name as it may be printed: of a URL without its password."""
    if is_database(name):
        from .postgres.connection import shown_name

        return shown_name(name)
    return name


def open_gallery(name: str, **options: Any) -> Any:
    """Open a gallery for searching.

    Args:
        name: folder, or ``postgresql://USER@HOST/DATABASE``.
        options: of :class:`Gallery`, or of
            :class:`kd_search.gallery.postgres.PostgresGallery`, which has the same methods.

    Raises:
        GalleryError: there is none, or it is damaged.
        ImportError: the driver of the database is not installed.
    """
    if is_database(name):
        from .postgres import PostgresGallery

        return PostgresGallery(name, **options)
    return Gallery(name, **options)


def open_writer(name: str, create: Optional[Manifest] = None) -> Any:
    """Open a gallery for writing: :class:`GalleryWriter`, or the same for a database.

    Args:
        name: as of :func:`open_gallery`.
        create: the manifest of a new gallery, if there is none.
    """
    if is_database(name):
        from .postgres import PostgresWriter

        return PostgresWriter(name, create)
    return GalleryWriter(name, create)


def find_manifest(name: str) -> Optional[Manifest]:
    """The manifest of a gallery; ``None`` if there is none yet."""
    if is_database(name):
        from .postgres.connection import Connection
        from .postgres.schema import read_manifest as of_database

        connection = Connection(name)
        try:
            return of_database(connection)
        finally:
            connection.close()
    return read_manifest(name) if is_gallery(name) else None
