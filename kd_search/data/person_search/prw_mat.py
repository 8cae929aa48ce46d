"""PRW in the format of its release."""

import os
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from tqdm import tqdm

from kd_search.data.io.image import read_image_sizes
from kd_search.data.io.mat import read_first_variable, read_mat, refuse_repeats, texts_of
from kd_search.data.person_search.coco_json import camera_and_frame
from kd_search.data.person_search.register import load_content
from kd_search.data.person_search.split import LoadedSplit

#: Variables for the boxes of an annotation file, the corrected ones first.
BOX_KEYS = ("box_new", "anno_file", "anno_previous")


@dataclass(frozen=True)
class PRWFiles:
    """A split of PRW; a :class:`~kd_search.data.person_search.split.SplitSource`.

    Boxes that stick out of their frame are clipped to it. Original ids are those of the release in
    train and test: 932 in all, 483 in training with a gap at 479; rows of the ID table differ from
    them.
    """

    #: Folder with frame_train.mat, frame_test.mat, annotations/ and frames/.
    root: str
    #: "train" or "test".
    split: str
    #: Query file of the test set.
    query_info: Optional[str] = None
    id_space: Optional[str] = "prw"

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Read the split; see :class:`~kd_search.data.person_search.split.SplitSource`."""
        path = os.path.join(self.root, f"frame_{self.split}.mat")
        frames = read_frames(path, f"img_index_{self.split}")
        boxes = [
            read_boxes(os.path.join(self.root, "annotations", f"{frame}.jpg.mat"))
            for frame in tqdm(frames, desc="reading annotations", unit="frame", disable=None)
        ]
        image_root = os.path.join(self.root, "frames")
        files = [f"{frame}.jpg" for frame in frames]
        sizes = read_image_sizes([os.path.join(image_root, file) for file in files], path)
        content: dict[str, Any] = {"images": [], "annotations": []}
        for frame, file, (width, height), rows in zip(frames, files, sizes, boxes):
            camera_id, frame_id = camera_and_frame(file)
            content["images"].append(
                {
                    "id": frame,
                    "file_name": file,
                    "width": width,
                    "height": height,
                    "camera_id": camera_id,
                    "frame_id": frame_id,
                }
            )
            for person_id, *bbox in rows.tolist():
                entry = {"image_id": frame, "bbox": bbox, "person_id": int(person_id)}
                content["annotations"].append(entry)
        metadata = {"prw_root": self.root}
        return load_content(content, path, image_root, self.query_info, metadata, clip=clip)


def read_frames(path: str, key: str) -> list[str]:
    """Names of the frames of a split, without ``.jpg``.

    Raises:
        FileNotFoundError, ValueError: see :func:`~kd_search.data.io.mat.read_mat`; or a name is
            repeated, or there is none.
    """
    frames = [name.removesuffix(".jpg") for name in texts_of(read_mat(path, key), f"{path}: {key}")]
    if not frames:
        raise ValueError(f"{path}: {key} names no frame")
    refuse_repeats(frames, f"{path}: {key}")
    return frames


def read_boxes(path: str) -> np.ndarray:
    """Rows id, x, y, w, h of the annotation file of a frame, (n, 5) float64.

    Raises:
        FileNotFoundError, ValueError: see :func:`~kd_search.data.io.mat.read_mat`; or a row has
            another form.
    """
    key, rows = read_first_variable(path, BOX_KEYS)
    if rows.size == 0:
        return np.zeros((0, 5))
    if rows.dtype.kind not in "iuf" or rows.ndim != 2 or rows.shape[1] != 5:
        raise ValueError(f"{path}: {key} has shape {rows.shape}, expected rows id, x, y, w, h")
    rows = rows.astype(np.float64)
    sound = np.isfinite(rows).all(axis=1) & (rows[:, 0] == np.floor(rows[:, 0]))
    if not sound.all():
        number = int(np.flatnonzero(~sound)[0]) + 1
        raise ValueError(
            f"{path}: {key}({number},:) is {rows[number - 1].tolist()}, expected five finite "
            "numbers with a whole number as id"
        )
    return rows
