"""A process that writes to a gallery until it is killed.

    python killed_worker.py index FOLDER GALLERY LOG
    python killed_worker.py forget FOLDER GALLERY LOG
    python killed_worker.py push FOLDER_OF_A_GALLERY URL LOG

LOG gets a line "ready" before the gallery is opened, and a line for each file once its state is
acknowledged; of push, the number of files.
"""

import os
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))

from kd_search.gallery import Gallery, GalleryError, indexing
from kd_search.gallery.capture import Capture, CaptureRules
from kd_search.gallery.opening import open_writer
from tests.gallery.fake_searcher import FakeSearcher
from tests.gallery.gallery_inputs import manifest


def main(what: str, source: str, gallery: str, log: str) -> None:
    with open(log, "a", buffering=1) as lines:
        if what == "push":  # imports take time
            from kd_search.gallery.postgres import copying

            copying._FILES = 10
        lines.write("ready\n")
        with patiently_open(gallery) as writer:
            if what == "push":
                copying.push(Gallery(source), writer, lambda done, *_: lines.write(f"{done}\n"))
            elif what == "forget":
                forget(writer, lines)
            else:
                index(writer, source, lines)


def index(writer, folder: str, lines) -> None:
    indexing._FILES = 3
    add = writer.add

    def logged(batch):
        add(batch)
        lines.writelines(f"{file.path}\n" for file in batch)

    writer.add = logged
    capture, settings = Capture(CaptureRules()), indexing.Settings()
    indexing.Indexer(writer, FakeSearcher(), capture, settings).run([folder])


def forget(writer, lines) -> None:
    for row in list(writer.files()):
        writer.forget([row.sha256])
        lines.write(f"{row.path}\n")
        writer.compact()


def patiently_open(gallery: str):
    """A writer, once the server has noticed that the last one was killed."""
    end = time.monotonic() + 20
    while True:
        try:
            return open_writer(gallery, manifest())
        except GalleryError as error:
            if "another process" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
