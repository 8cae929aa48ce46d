"""Galleries in a PostgreSQL database with pgvector, with the interface of those in a folder."""

from .copying import PushReport, push
from .reader import PostgresGallery
from .writer import PostgresWriter

__all__ = ["PostgresGallery", "PostgresWriter", "PushReport", "push"]
