"""Little data sets in the on-disk forms of CUHK-SYSU, PRW and MOTChallenge, written by hand."""

from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

#: Width and height of the images.
SIZE = (64, 48)


def put_image(path, size=SIZE):
    """A noise image."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(path.name)).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(pixels).save(path)


def put_mat(path, **variables):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, variables, do_compression=True)


def struct(rows, *fields):
    """A MATLAB struct array (1, n) of the rows, each a tuple in the order of the fields."""
    array = np.empty((1, len(rows)), dtype=[(field, object) for field in fields])
    for i, row in enumerate(rows):
        for field, value in zip(fields, row):
            array[field][0, i] = value
    return array


def cells(values):
    """A MATLAB cell array (n, 1)."""
    array = np.empty((len(values), 1), dtype=object)
    for i, value in enumerate(values):
        array[i, 0] = value
    return array


def located(box):
    """``idlocate``: (1, 4), or empty."""
    return np.zeros((0, 0)) if box is None else np.array([box])


def people(rows):
    """Struct of Train.mat and Person.mat from (name, [(image, box), ...]) pairs."""
    return struct(
        [
            (
                name,
                len(scenes),
                struct([(i, located(b), 0) for i, b in scenes], "imname", "idlocate", "ishard"),
            )
            for name, scenes in rows
        ],
        "idname",
        "nAppear",
        "scene",
    )


def protocol(rows, **more):
    """Struct of TestG<size>.mat from (name, image, box, [(image, box or None), ...]) tuples."""
    entries = []
    for name, image, box, gallery in rows:
        query = struct([(image, located(box), 0, name)], "imname", "idlocate", "ishard", "idname")
        images = struct([(i, located(b), 0) for i, b in gallery], "imname", "idlocate", "ishard")
        entries.append((query, images, *more.values()))
    return struct(entries, "Query", "Gallery", *more)


class LittleCUHK:
    """Six images, of which three are the test pool; change the attributes, then ``write``."""

    def __init__(self, root):
        self.root = Path(root)
        self.boxes = {
            "s1.jpg": [[1, 2, 10, 20], [20, 2, 9, 30]],
            "s2.jpg": [[5, 5, 10, 20], [30, 5, 0, 20]],
            "s3.jpg": [[6, 6, 10, 20]],
            "s4.jpg": [[1, 1, 8, 16], [20, 1, 8, 16], [40, 1, 8, 16]],
            "s5.jpg": [[2, 2, 8, 16], [22, 2, 8, 16]],
            "s6.jpg": [[3, 3, 8, 16]],
        }
        self.pool = ["s5.jpg", "s4.jpg", "s6.jpg"]
        self.train = [
            ("p20", [("s1.jpg", [1, 2, 10, 20]), ("s2.jpg", [5, 5, 10, 20])]),
            ("p3", [("s3.jpg", [6, 6, 10, 20])]),
        ]
        #: By size.
        self.galleries = {
            50: [
                ("p7", "s4.jpg", [1, 1, 8, 16], [("s5.jpg", [2, 2, 8, 16]), ("s6.jpg", None)]),
                ("p5", "s5.jpg", [22, 2, 8, 16], [("s4.jpg", [20, 1, 8, 16]), ("s6.jpg", None)]),
            ]
        }
        self.subsets = {}

    def write(self):
        annotation = self.root / "annotation"
        images = [
            (
                name,
                len(boxes),
                struct([(np.array([b]), 0) for b in boxes], "idlocate", "ishard"),
            )
            for name, boxes in self.boxes.items()
        ]
        put_mat(annotation / "Images.mat", Img=struct(images, "imname", "nAppear", "box"))
        put_mat(annotation / "pool.mat", pool=cells(self.pool))
        put_mat(
            annotation / "test/train_test/Train.mat",
            Train=cells([people([person]) for person in self.train]),
        )
        for size, rows in self.galleries.items():
            self.put_gallery(f"TestG{size}", protocol(rows))
        for (file, key), rows in self.subsets.items():
            put_mat(annotation / f"test/subset/{file}.mat", **{key: protocol(rows, occlusion=1)})
        for name in self.boxes:
            put_image(self.root / "Image/SSM" / name)
        return self

    def put_gallery(self, name, value):
        put_mat(self.root / f"annotation/test/train_test/{name}.mat", **{name: value})


class LittlePRW:
    """Three training and three test frames; change the attributes, then ``write``."""

    def __init__(self, root):
        self.root = Path(root)
        self.frames = {
            "train": ["c1s1_000001", "c2s1_000026", "c1s3_000051"],
            "test": ["c3s1_000001", "c6s2_000026", "c3s1_000051"],
        }
        #: Variable and rows id, x, y, w, h of each frame.
        self.boxes = {
            "c1s1_000001": ("box_new", [[478, 1, 2, 10, 20], [-2, 20, 2, 9, 30]]),
            "c2s1_000026": ("anno_file", [[478, 4, 2, 10, 20], [483, 30, 1, 10, 20]]),
            "c1s3_000051": ("anno_previous", [[932, -3.5, 2, 10, 20.25]]),
            "c3s1_000001": ("box_new", [[479, 1, 1, 10, 20]]),
            "c6s2_000026": ("box_new", [[479, 2, 2, 10, 20], [933, 20, 2, 10, 20]]),
            "c3s1_000051": ("box_new", [[933, 3, 3, 10, 20]]),
        }
        self.queries = ["479 1 1 10 20 c3s1_000001", "933 20 2 10 20 c6s2_000026"]
        self.mini_queries = ["933 3 3 10 20 c3s1_000051"]

    def write(self):
        for part, frames in self.frames.items():
            put_mat(self.root / f"frame_{part}.mat", **{f"img_index_{part}": cells(frames)})
        for frame, (key, rows) in self.boxes.items():
            path = self.root / f"annotations/{frame}.jpg.mat"
            put_mat(path, **{key: np.array(rows, dtype=float).reshape(-1, 5)})
            put_image(self.root / f"frames/{frame}.jpg")
        # The release ends its lines in this way.
        for name, lines in (("query", self.queries), ("prwmini_query", self.mini_queries)):
            text = "".join(f"{line}\r\n" for line in lines)
            (self.root / f"{name}_info.txt").write_bytes(text.encode())
        return self


def put_sequence(folder, rows, frames, length=None, size=SIZE, info=()):
    """A MOTChallenge sequence from rows of gt.txt and the numbers of the frames on disk."""
    folder = Path(folder)
    for frame in frames:
        put_image(folder / f"img1/{frame:06d}.jpg", size)
    (folder / "gt").mkdir(parents=True, exist_ok=True)
    text = "".join(",".join(map(str, row)) + "\n" for row in rows)
    (folder / "gt/gt.txt").write_text(text)
    lines = ["[Sequence]", f"name={folder.name}", "imDir=img1", "frameRate=30"]
    lines += [f"seqLength={length or len(frames)}", f"imWidth={SIZE[0]}", f"imHeight={SIZE[1]}"]
    (folder / "seqinfo.ini").write_text("\n".join([*lines, "imExt=.jpg", *info]) + "\n")
