"""Galleries: the people in one's own pictures and videos, indexed once and searched often.

Nothing here imports torch or Detectron2; a network runs by :mod:`kd_search.runtime`.
"""

from .manifest import GalleryError, Manifest, is_gallery
from .new_file import NewFile
from .results import Filter, Hit
from .search import Gallery
from .store import GalleryWriter

__all__ = [
    "Filter",
    "Gallery",
    "GalleryError",
    "GalleryWriter",
    "Hit",
    "Manifest",
    "NewFile",
    "is_gallery",
]
