"""A process that indexes, or forgets and compacts, until it is killed.

    python killed_worker.py index FOLDER GALLERY LOG
    python killed_worker.py forget FOLDER GALLERY LOG

LOG gets a line for each file once its state is acknowledged.
"""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from kd_search.gallery import GalleryWriter, indexing
from kd_search.gallery.capture import Capture, CaptureRules
from tests.gallery.fake_searcher import FakeSearcher
from tests.gallery.gallery_inputs import manifest


def main(what: str, folder: str, gallery: str, log: str) -> None:
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


if __name__ == "__main__":
    main(*sys.argv[1:])
