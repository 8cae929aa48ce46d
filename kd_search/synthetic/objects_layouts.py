"""The generated multi-class set in the layouts of KITTI and ILSVRC DET."""

import os
import shutil
from pathlib import Path
from typing import Any, Callable, Union
from xml.sax.saxutils import escape

from PIL import Image

from kd_search.data.detection.objects import OBJECT_CLASSES, read_objects_json
from kd_search.data.io.files import whole_folder
from kd_search.data.records import xyxy
from kd_search.synthetic.generated_set import DESCRIPTION_FILE, SPLITS

#: KITTI's type of each class: all of its types but DontCare.
KITTI_TYPES = dict(
    zip(
        OBJECT_CLASSES,
        ("Car", "Van", "Pedestrian", "Person_sitting", "Cyclist", "Tram", "Truck", "Misc"),
    )
)
#: Objects with a smaller visible fraction become DontCare regions.
KITTI_MIN_VISIBLE = 0.6
#: WNIDs of no synset, one for each class.
WNIDS = {name: f"n{90000001 + index}" for index, name in enumerate(OBJECT_CLASSES)}


def write_kitti_layout(source: Union[str, Path], root: Union[str, Path]) -> None:
    """Write ``training/image_2``, ``training/label_2`` and ``ImageSets`` as KITTI's object set.

    Train and test images have consecutive numbers, as ``train`` and ``val``. Classes become
    :data:`KITTI_TYPES`.

    Args:
        source: folder that :func:`~kd_search.synthetic.objects_writer.generate_objects` wrote.
        root: new folder (``$DETECTRON2_DATASETS/kitti``), which is complete or absent.

    Raises:
        FileNotFoundError: ``source`` holds no such set.
        ValueError: ``root`` exists, or the set is broken.
    """
    _write_whole(source, root, _write_kitti)


def write_ilsvrc_layout(source: Union[str, Path], root: Union[str, Path]) -> None:
    """Write ``Data``, ``Annotations``, ``ImageSets`` and ``devkit`` as ILSVRC DET has them.

    The first training image has neither objects nor an XML file: a negative image.

    Args:
        source, root: as :func:`write_kitti_layout` (``$DETECTRON2_DATASETS/ILSVRC``).

    Raises:
        FileNotFoundError, ValueError: as :func:`write_kitti_layout`.
    """
    _write_whole(source, root, _write_ilsvrc)


def _write_whole(
    source: Union[str, Path], root: Union[str, Path], write: Callable[[dict, Path, Path], None]
) -> None:
    source, root = Path(source).expanduser(), Path(root).expanduser().absolute()
    if not (source / DESCRIPTION_FILE).is_file():
        raise FileNotFoundError(f"{source} holds no generated data set (no {DESCRIPTION_FILE})")
    if root.exists():
        raise ValueError(f"{root} exists: remove it, or choose another folder")
    content = {split: read_objects_json(source / f"{split}.json") for split in SPLITS}
    with whole_folder(root) as partial:
        write(content, source, partial)


def _by_image(content: dict[str, Any]) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """Images with their annotations, in the order of the file."""
    found: dict[int, list] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        found[annotation["image_id"]].append(annotation)
    return [(image, found[image["id"]]) for image in content["images"]]


# KITTI ------------------------------------------------------------------------------------------


def _write_kitti(content: dict[str, Any], source: Path, folder: Path) -> None:
    for name in ("training/image_2", "training/label_2", "ImageSets"):
        (folder / name).mkdir(parents=True)
    number = 0
    for split, listed in zip(SPLITS, ("train", "val")):
        stems = []
        for image, annotations in _by_image(content[split]):
            stems.append(f"{number:06d}")
            number += 1
            with Image.open(source / split / "images" / image["file_name"]) as picture:
                picture.convert("RGB").save(folder / f"training/image_2/{stems[-1]}.png")
            lines = "".join(_kitti_line(annotation) for annotation in annotations)
            (folder / f"training/label_2/{stems[-1]}.txt").write_text(lines)
        (folder / f"ImageSets/{listed}.txt").write_text("".join(f"{stem}\n" for stem in stems))


def _kitti_line(annotation: dict[str, Any]) -> str:
    """type truncated occluded alpha, left top right bottom, h w l, x y z, rotation."""
    box = " ".join(f"{value:.2f}" for value in xyxy(annotation["bbox"]))
    visible = annotation["visible"]
    if visible < KITTI_MIN_VISIBLE:
        return f"DontCare -1 -1 -10 {box} -1 -1 -1 -1000 -1000 -1000 -10\n"
    name = KITTI_TYPES[OBJECT_CLASSES[annotation["category_id"] - 1]]
    occluded = 0 if visible >= 0.95 else 1 if visible >= 0.75 else 2
    return f"{name} 0.00 {occluded} 0.00 {box} 1.50 1.60 3.90 0.00 1.60 20.00 0.00\n"


# ILSVRC DET -------------------------------------------------------------------------------------


def _write_ilsvrc(content: dict[str, Any], source: Path, folder: Path) -> None:
    (folder / "devkit/data").mkdir(parents=True)
    (folder / "ImageSets/DET").mkdir(parents=True)
    lines = [f"{WNIDS[name]} {index} {name}\n" for index, name in enumerate(OBJECT_CLASSES, 1)]
    (folder / "devkit/data/map_det.txt").write_text("".join(lines))
    for split, listed, pattern in zip(
        SPLITS,
        ("train", "val"),
        ("ILSVRC2014_train_0000/ILSVRC2014_train_{:08d}", "ILSVRC2012_val_{:08d}"),
    ):
        names = []
        for number, (image, annotations) in enumerate(_by_image(content[split]), 1):
            names.append(pattern.format(number))
            for kind, end in (("Data", "JPEG"), ("Annotations", "xml")):
                path = folder / kind / "DET" / listed / f"{names[-1]}.{end}"
                path.parent.mkdir(parents=True, exist_ok=True)
                if kind == "Data":
                    shutil.copyfile(source / split / "images" / image["file_name"], path)
                else:
                    path.write_text(_voc_xml(image, annotations, names[-1]))
        if listed == "train":
            names.insert(0, _write_negative(folder, content[split]["images"][0]))
        text = "".join(f"{name} {number}\n" for number, name in enumerate(names, 1))
        (folder / f"ImageSets/DET/{listed}.txt").write_text(text)


def _write_negative(folder: Path, image: dict[str, Any]) -> str:
    name = "ILSVRC2013_train_extra0/ILSVRC2013_train_00000001"
    path = folder / "Data/DET/train" / f"{name}.JPEG"
    path.parent.mkdir(parents=True)
    Image.new("RGB", (image["width"], image["height"]), (120, 130, 110)).save(path)
    return name


def _voc_xml(image: dict[str, Any], annotations: list[dict[str, Any]], name: str) -> str:
    """VOC's XML: pixels count from 1, and boxes include their last pixel."""
    objects = ""
    for annotation in annotations:
        x0, y0, x1, y1 = map(int, xyxy(annotation["bbox"]))
        wnid = WNIDS[OBJECT_CLASSES[annotation["category_id"] - 1]]
        objects += (
            f"\t<object>\n\t\t<name>{wnid}</name>\n\t\t<bndbox>\n"
            f"\t\t\t<xmin>{x0 + 1}</xmin>\n\t\t\t<xmax>{x1}</xmax>\n"
            f"\t\t\t<ymin>{y0 + 1}</ymin>\n\t\t\t<ymax>{y1}</ymax>\n\t\t</bndbox>\n\t</object>\n"
        )
    return (
        f"<annotation>\n\t<folder>{escape(os.path.dirname(name) or 'val')}</folder>\n"
        f"\t<filename>{escape(os.path.basename(name))}</filename>\n"
        f"\t<source>\n\t\t<database>generated</database>\n\t</source>\n"
        f"\t<size>\n\t\t<width>{image['width']}</width>\n\t\t<height>{image['height']}</height>\n"
        f"\t</size>\n{objects}</annotation>\n"
    )
