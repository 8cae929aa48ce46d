from kd_search.runtime.manifest import ModelFileError, manifest_path, read_manifest, update_manifest
from kd_search.runtime.query_guided import ComparedPeople, QueryGuidedSearcher
from kd_search.runtime.searcher import Answer, People, PersonSearcher, ReIDEmbedder
from kd_search.utils.pictures import ImageError

__all__ = [
    "Answer",
    "ComparedPeople",
    "ImageError",
    "ModelFileError",
    "People",
    "PersonSearcher",
    "QueryGuidedSearcher",
    "ReIDEmbedder",
    "manifest_path",
    "read_manifest",
    "update_manifest",
]
