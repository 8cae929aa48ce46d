from kd_search.runtime.manifest import ModelFileError, manifest_path, read_manifest, update_manifest
from kd_search.runtime.searcher import Answer, People, PersonSearcher, ReIDEmbedder
from kd_search.utils.pictures import ImageError

__all__ = [
    "Answer",
    "ImageError",
    "ModelFileError",
    "People",
    "PersonSearcher",
    "ReIDEmbedder",
    "manifest_path",
    "read_manifest",
    "update_manifest",
]
