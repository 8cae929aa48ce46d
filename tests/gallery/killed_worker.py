"""A process that indexes, or forgets and compacts, until it is killed.

    python killed_worker.py index FOLDER GALLERY LOG
    python killed_worker.py forget FOLDER GALLERY LOG
    python killed_worker.py push URL GALLERY LOG

LOG gets a line for each file once its state is acknowledged; of push, the number of files.
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from kd_search.gallery import Gallery, GalleryError, GalleryWriter, indexing
from kd_search.gallery.capture import Capture, CaptureRules
from tests.gallery.fake_searcher import FakeSearcher
from tests.gallery.gallery_inputs import manifest


def main(what: str, folder: str, gallery: str, log: str) -> None:
    if what == "push":
        push_to(folder, gallery, log)
        return
    indexing._FILES = 3
    with open(log, "a", buffering=1) as lines, GalleryWriter(gallery, manifest()) as writer:
        if what == "forget":
            for row in list(writer.files()):
                writer.forget([row.sha256])
                lines.write(f"{row.path}\n")
                writer.compact()
                lines.write(f"compacted {row.path}\n")
            return
        add = writer.add

        def logged(batch):
            add(batch)
            lines.writelines(f"{file.path}\n" for file in batch)

        writer.add = logged
        capture, settings = Capture(CaptureRules()), indexing.Settings()
        indexing.Indexer(writer, FakeSearcher(), capture, settings).run([folder])


def push_to(url: str, gallery: str, log: str) -> None:
    from kd_search.gallery.postgres import PostgresWriter, copying

    copying._FILES = 10
    with open(log, "a", buffering=1) as lines, _patiently(PostgresWriter, url) as writer:
        copying.push(Gallery(gallery), writer, lambda done, *_: lines.write(f"{done}\n"))


def _patiently(writer, url: str):
    """Wait until the server has noticed that the last writer was killed."""
    while True:
        try:
            return writer(url, manifest())
        except GalleryError as error:
            if "another process" not in str(error):
                raise
            time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
