"""What the commands of galleries share."""

from typing import Any, Optional


def load_searcher(model: str, threads: Optional[int] = None, gallery: Optional[str] = None) -> Any:
    """Load an exported network.

    Args:
        model: ONNX file.
        threads: of the network; ``None`` for all cores.
        gallery: if given, the network must be the one it was indexed with.

    Raises:
        GalleryError: it is another one.
        FileNotFoundError, ValueError: the file is missing or damaged.
        ImportError: onnxruntime is not installed.
    """
    try:
        from kd_search.runtime import PersonSearcher
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ImportError("onnxruntime is not installed: pip install onnxruntime") from None
    searcher = PersonSearcher.load(model, threads)
    if gallery is not None:
        from kd_search.gallery.manifest import read_manifest

        manifest = read_manifest(gallery)
        manifest.check_model(gallery, searcher.manifest["file_sha256"], model)
    return searcher


def printable(text: str) -> str:
    """Text with file names that any terminal can show."""
    return text.encode("utf-8", "backslashreplace").decode()
