"""Classes and annotation files of the generated multi-class set."""

import os
from typing import Annotated, Any, Union

from pydantic import Field, model_validator

from kd_search.data.io.files import first_repeat
from kd_search.utils.files import read_json
from kd_search.utils.schema import Count, FourNumbers, Schema, Size, check_schema

#: In pairs that share their outline and differ in structure. Color, size and direction have one
#: distribution for all classes.
OBJECT_CLASSES = ("wheel", "button", "star", "flower", "fish", "leaf", "mug", "pot")


class _Image(Schema):
    id: Count
    # Without a folder: images are in the folder of the split.
    file_name: Annotated[str, Field(pattern=r"^[^/\\\x00]+$")]
    width: Size
    height: Size


class _Object(Schema):
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
    """COCO-JSON of the generator: boxes are inside of their images."""

    images: list[_Image]
    annotations: list[_Object]
    categories: list[_Category]

    @model_validator(mode="after")
    def _agrees(self) -> "_ObjectsFile":
        if [(c.id, c.name) for c in self.categories] != list(enumerate(OBJECT_CLASSES, 1)):
            raise ValueError(f"categories are not {', '.join(OBJECT_CLASSES)}, from 1 on")
        if first_repeat(image.id for image in self.images):
            raise ValueError("images have an id twice")
        if first_repeat(item.id for item in self.annotations):
            raise ValueError("annotations have an id twice")
        images = {image.id: image for image in self.images}
        for index, item in enumerate(self.annotations):
            where, (x, y, w, h) = f"annotations[{index}]", item.bbox
            image = images.get(item.image_id)
            if image is None:
                raise ValueError(f"{where}.image_id {item.image_id} is the id of no image")
            if not (w > 0 and h > 0 and x >= 0 and y >= 0):
                raise ValueError(f"{where}.bbox {item.bbox} is empty, or starts outside")
            if x + w > image.width or y + h > image.height:
                raise ValueError(
                    f"{where}.bbox {item.bbox} ends outside of its image of {image.width} x "
                    f"{image.height}"
                )
            if item.area != w * h:
                raise ValueError(f"{where}.area {item.area} is not that of its bbox")
        return self


def read_objects_json(json_file: Union[str, "os.PathLike[str]"]) -> dict[str, Any]:
    """Read ``train.json`` or ``test.json`` of a generated set.

    Returns:
        COCO-JSON's ``images``, ``annotations`` and ``categories``; annotations also have
        ``visible``, the fraction of the object that is visible.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a field is wrong; one line that names file and field.
    """
    content = read_json(json_file, "annotation file")
    check_schema(content, _ObjectsFile, json_file)
    return content
