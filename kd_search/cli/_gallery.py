"""What the commands of galleries share."""

from __future__ import annotations

import sys
import time
from typing import Any


def load_searcher(model: str, threads: int | None = None, gallery: str | None = None) -> Any:
    """Load an exported network.

    Args:
        model: ONNX file.
        threads: of the network; ``None`` for all cores.
        gallery: if given and there is one, the network must be the one it was indexed with.

    Raises:
        GalleryError: it is another one.
        FileNotFoundError, ValueError: the file is missing or damaged.
        ImportError: onnxruntime is not installed.
    """
    searcher = _runtime().PersonSearcher.load(model, threads)
    if gallery is not None:
        from kd_search.gallery.opening import find_manifest, gallery_name

        manifest = find_manifest(gallery)
        if manifest is not None:
            sha256 = searcher.manifest["file_sha256"]
            manifest.check_model(gallery_name(gallery), sha256, model)
    return searcher


def load_guided_searcher(model: str) -> Any:
    """Load a network of ``kd-search export --query-guided``; errors as above."""
    return _runtime().QueryGuidedSearcher.load(model)


def _runtime() -> Any:
    try:
        import kd_search.runtime as runtime
    except ModuleNotFoundError as error:
        if error.name != "onnxruntime":
            raise
        raise ImportError("onnxruntime is not installed: pip install onnxruntime") from None
    return runtime


def build_index(gallery: str) -> None:
    """Build the approximate index of a gallery, and print its recall."""
    from kd_search.gallery.approximate import build_approximate_index
    from kd_search.gallery.opening import gallery_name

    found = build_approximate_index(gallery)
    print(
        f"{gallery_name(gallery)}: built the approximate index, which finds {100 * found:.1f} % of "
        "the 10 most similar people"
    )


def restore_index(gallery: str, had_index: bool, rows: int) -> None:
    """Build the approximate index again that a compaction has removed with the files it was of."""
    from kd_search.gallery.approximate import has_index

    if had_index and rows and not has_index(gallery):
        build_index(gallery)


class Progress:
    """A line with the number of files, people and the time left."""

    def __init__(self) -> None:
        self._start = self._last = time.monotonic()
        self._tty = sys.stderr.isatty()
        self._shown = False

    def __call__(self, done: int, total: int, report: Any) -> None:
        now = time.monotonic()
        if now - self._last < (0.3 if self._tty else 10):
            return
        self._last, self._shown = now, True
        worked = max(done - report.unchanged, 1)  # unchanged files take no time
        rate = worked / (now - self._start)
        left = int(max(total - done, 0) / rate)
        line = (
            f"{done:,} of {total:,} files, {report.people:,} people, {rate:.1f} files/s, "
            f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left"
        )
        print(f"\r{line:78}" if self._tty else line, end="" if self._tty else "\n", file=sys.stderr)
        sys.stderr.flush()

    def end(self) -> None:
        if self._tty and self._shown:
            print(file=sys.stderr)
