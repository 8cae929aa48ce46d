"""Registers the multi-class set that ``tools/generate_dataset.py --kind objects`` makes."""

import os
from typing import Annotated, Any, Optional, Union

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data.datasets import load_coco_json
from pydantic import Field, model_validator

from kd_search.data.detection.register import register_detection_set
from kd_search.utils.files import read_json
from kd_search.utils.schema import Count, FourNumbers, Schema, Size, check_schema

#: In pairs that share their outline and differ in structure: what tells them apart is not colour,
#: size or direction, all of which are drawn alike for every class.
OBJECT_CLASSES = ("wheel", "button", "star", "flower", "fish", "leaf", "mug", "pot")


class _Image(Schema):
    id: Count
    # A plain name: it is looked up in the folder of the split.
    file_name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]
    width: Size
    height: Size


class _Thing(Schema):
    id: Count
    image_id: Count
    bbox: FourNumbers
    area: float
    category_id: Annotated[int, Field(ge=1, le=len(OBJECT_CLASSES))]
    iscrowd: Annotated[int, Field(ge=0, le=0)]
    visible: Annotated[float, Field(ge=0, le=1)]


class _Category(Schema):
    id: Count
    name: str


class _ObjectsFile(Schema):
    """COCO-JSON as the generator writes it: boxes lie inside of their images."""

    images: list[_Image]
    annotations: list[_Thing]
    categories: list[_Category]

    @model_validator(mode="after")
    def _agrees(self) -> "_ObjectsFile":
        if [(c.id, c.name) for c in self.categories] != list(enumerate(OBJECT_CLASSES, 1)):
            raise ValueError(f"categories are not {', '.join(OBJECT_CLASSES)}, from 1 on")
        images = {image.id: image for image in self.images}
        for name, entries, ids in (
            ("images", self.images, images),
            ("annotations", self.annotations, {thing.id for thing in self.annotations}),
        ):
            if len(ids) < len(entries):
                raise ValueError(f"{name} have an id twice")
        for index, thing in enumerate(self.annotations):
            where, (x, y, w, h) = f"annotations[{index}]", thing.bbox
            image = images.get(thing.image_id)
            if image is None:
                raise ValueError(f"{where}.image_id {thing.image_id} is the id of no image")
            if not (w > 0 and h > 0 and x >= 0 and y >= 0):
                raise ValueError(f"{where}.bbox {thing.bbox} is empty, or begins outside")
            if x + w > image.width or y + h > image.height:
                raise ValueError(
                    f"{where}.bbox {thing.bbox} ends outside of its image of {image.width} x "
                    f"{image.height}"
                )
            if thing.area != w * h:
                raise ValueError(f"{where}.area {thing.area} is not that of its bbox")
        return self


_ROOT_VARIABLE = "KD_SEARCH_OBJECTS"
_DEFAULT_ROOT = os.path.join("output", "objects")


def register_objects(root: Optional[str] = None, prefix: str = "kd_objects") -> None:
    """Register ``<prefix>_train`` and ``<prefix>_test``; again, with another root, replaces them.

    Args:
        root: folder that :func:`~kd_search.synthetic.objects_writer.generate_objects` has
            written. ``None`` looks up ``$KD_SEARCH_OBJECTS``, or else takes ``output/objects``, at
            first use.
        prefix: begin of the two names.
    """
    for split in ("train", "test"):
        name = f"{prefix}_{split}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_detection_set(name, _loader(name, split, root), OBJECT_CLASSES)


def read_objects_json(json_file: Union[str, "os.PathLike[str]"]) -> dict[str, Any]:
    """Read ``train.json`` or ``test.json`` of a generated set.

    Returns:
        COCO-JSON's ``images``, ``annotations`` and ``categories``; annotations have ``visible``,
        the fraction of the thing that can be seen, besides.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is wrong; one line that names file and field.
    """
    content = read_json(json_file, "annotation file")
    check_schema(content, _ObjectsFile, json_file)
    return content


def _loader(name: str, split: str, root: Optional[str]):
    def load(strict: bool) -> list[dict[str, Any]]:
        folder = root or os.path.expanduser(os.getenv(_ROOT_VARIABLE, _DEFAULT_ROOT))
        json_file = os.path.join(folder, f"{split}.json")
        # dataset.json is checked too: without it the folder is something else.
        if not all(map(os.path.isfile, (os.path.join(folder, "dataset.json"), json_file))):
            raise FileNotFoundError(
                f"{name}: {folder} holds no generated set of things; make it with 'python "
                f"tools/generate_dataset.py --kind objects --output {folder}' or set "
                f"{_ROOT_VARIABLE}"
            )
        metadata = MetadataCatalog.get(name)
        # Metadata refuses to change a value, but the set may have been made anew elsewhere.
        for key in ("json_file", "image_root", "thing_dataset_id_to_contiguous_id"):
            if key in metadata.__dict__:
                delattr(metadata, key)
        metadata.set(json_file=json_file, image_root=os.path.join(folder, split, "images"))
        read_objects_json(json_file)
        return load_coco_json(
            json_file, metadata.image_root, name, extra_annotation_keys=["visible"]
        )

    return load
