"""Data sets, mapper and loaders of person search."""

from kd_search.data.builtin import register_builtin
from kd_search.data.io.image import ImageError, read_image
from kd_search.data.person_search.id_map import IDMap
from kd_search.data.person_search.loader import (
    build_person_search_table_loader,
    build_person_search_test_loader,
    build_person_search_train_loader,
    build_person_search_views_loader,
)
from kd_search.data.person_search.mapper import PersonSearchDatasetMapper
from kd_search.data.person_search.mot import register_motchallenge
from kd_search.data.person_search.register import (
    get_id_map,
    get_person_search_dicts,
    register_person_search_coco,
)
from kd_search.data.reid import register_market1501, register_reid_set, reid_crops_of

__all__ = [
    "IDMap",
    "ImageError",
    "PersonSearchDatasetMapper",
    "build_person_search_table_loader",
    "build_person_search_test_loader",
    "build_person_search_train_loader",
    "build_person_search_views_loader",
    "get_id_map",
    "get_person_search_dicts",
    "read_image",
    "register_market1501",
    "register_motchallenge",
    "register_person_search_coco",
    "register_reid_set",
    "reid_crops_of",
]

register_builtin()
