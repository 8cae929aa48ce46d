"""PRW from the files of its release."""

import os
from dataclasses import dataclass
from typing import Any, Optional

import numpy as np
from tqdm import tqdm

from kd_search.data.io.image_size import read_image_sizes
from kd_search.data.io.mat import read_mat, read_mat_variables, texts_of
from kd_search.data.person_search.coco_json import camera_and_frame
from kd_search.data.person_search.register import load_content
from kd_search.data.person_search.split import LoadedSplit

#: Variable that an annotation file may keep its boxes in, the corrected ones first.
BOX_KEYS = ("box_new", "anno_file", "anno_previous")


@dataclass(frozen=True)
class PRWFiles:
    """A split of PRW; a :class:`~kd_search.data.person_search.split.SplitSource`.

    Boxes that stick out of their frame are clipped to it. Original ids are those of the release,
    in train and test alike: 932 of them in all, 483 in training with a gap at 479, so that rows of
    the ID table come from the id map and never from the number itself.
    """

    #: Folder with frame_train.mat, frame_test.mat, annotations/ and frames/.
    root: str
    #: "train" or "test".
    split: str
    #: Queries of the test set; lines end with either line end.
    query_info: Optional[str] = None
    id_space: Optional[str] = "prw"

    @property
    def image_root(self) -> str:
        return os.path.join(self.root, "frames")

    def load(self, *, clip: bool = True) -> LoadedSplit:
        """Read the split; see :class:`~kd_search.data.person_search.split.SplitSource`."""
        path = os.path.join(self.root, f"frame_{self.split}.mat")
        frames = read_frames(path, f"img_index_{self.split}")
        boxes = [
            read_boxes(os.path.join(self.root, "annotations", f"{frame}.jpg.mat"))
            for frame in tqdm(frames, desc="reading annotations", unit="frame", disable=None)
        ]
        files = [f"{frame}.jpg" for frame in frames]
        sizes = read_image_sizes([os.path.join(self.image_root, file) for file in files], path)
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
        metadata = {"prw_root": self.root, "image_root": self.image_root}
        metadata["query_info"] = self.query_info
        return load_content(content, path, self.image_root, self.query_info, metadata, clip=clip)


def read_frames(path: str, key: str) -> list[str]:
    """Names of the frames of a split, without ``.jpg``.

    Raises:
        FileNotFoundError, ValueError: see :func:`~kd_search.data.io.mat.read_mat`; or a
            name is there twice, or there is none.
    """
    frames = [name.removesuffix(".jpg") for name in texts_of(read_mat(path, key), f"{path}: {key}")]
    if not frames:
        raise ValueError(f"{path}: {key} names no frame")
    seen: dict[str, int] = {}
    for number, frame in enumerate(frames, 1):
        if seen.setdefault(frame, number) != number:
            raise ValueError(f"{path}: {key}({number}): {frame} is already entry {seen[frame]}")
    return frames


def read_boxes(path: str) -> np.ndarray:
    """Rows id, x, y, w, h of the annotation file of a frame, (n, 5) float64.

    Raises:
        FileNotFoundError, ValueError: see :func:`~kd_search.data.io.mat.read_mat`; or
            none of the three variables is there, or a row has another form.
    """
    content = read_mat_variables(path)
    key = next((key for key in BOX_KEYS if key in content), None)
    if key is None:
        names = ", ".join(name for name in content if not name.startswith("__")) or "none"
        raise ValueError(f"{path}: expected {', '.join(BOX_KEYS)}, the file holds: {names}")
    rows = np.asarray(content[key])
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
