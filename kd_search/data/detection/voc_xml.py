"""Annotation files of PASCAL VOC and ImageNet; XML with a document type is refused."""

from dataclasses import dataclass
from xml.etree import ElementTree
from xml.parsers import expat


@dataclass(frozen=True)
class VOCObject:
    """``box`` is (xmin, ymin, xmax, ymax) of the file; ``line`` is the first line of the object."""

    name: str
    box: tuple[float, float, float, float]
    line: int


@dataclass(frozen=True)
class VOCAnnotation:
    """Size of the image in pixels, and its objects."""

    width: int
    height: int
    objects: tuple[VOCObject, ...]


def read_voc_xml(path: str) -> VOCAnnotation:
    """Read an annotation file.

    A document type declaration is refused: annotation files have none, and its entities may expand
    a small file without bounds, or refer to other files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no such XML; the message has file and line.
    """
    try:
        with open(path, "rb") as stream:
            content = stream.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such annotation file") from None
    root, lines = _parse(content, path)
    if root.tag != "annotation":
        raise ValueError(f"{path}: expected an <annotation>, got <{root.tag}>")
    size = _child(root, "size", path, lines)
    width, height = (int(_number(size, key, path, lines)) for key in ("width", "height"))
    objects = []
    for element in root.findall("object"):
        box = _child(element, "bndbox", path, lines)
        x0, y0, x1, y1 = (_number(box, k, path, lines) for k in ("xmin", "ymin", "xmax", "ymax"))
        name = (_child(element, "name", path, lines).text or "").strip()
        objects.append(VOCObject(name, (x0, y0, x1, y1), lines[element]))
    return VOCAnnotation(width, height, tuple(objects))


def _parse(content: bytes, path: str) -> tuple[ElementTree.Element, dict]:
    builder = ElementTree.TreeBuilder()
    lines: dict[ElementTree.Element, int] = {}
    parser = expat.ParserCreate()

    def refuse(*declaration: object) -> None:
        raise ValueError(
            f"{path}, line {parser.CurrentLineNumber}: has a document type declaration, which is "
            "refused"
        )

    def start(tag: str, attributes: dict) -> None:
        lines[builder.start(tag, attributes)] = parser.CurrentLineNumber

    parser.StartDoctypeDeclHandler = refuse
    parser.StartElementHandler = start
    parser.EndElementHandler = builder.end
    parser.CharacterDataHandler = builder.data
    try:
        parser.Parse(content, True)
    except expat.ExpatError as error:
        raise ValueError(f"{path}, line {error.lineno}: not an XML file ({error})") from None
    return builder.close(), lines


def _child(element: ElementTree.Element, tag: str, path: str, lines: dict) -> ElementTree.Element:
    child = element.find(tag)
    if child is None:
        raise ValueError(f"{path}, line {lines[element]}: <{element.tag}> has no <{tag}>")
    return child


def _number(parent: ElementTree.Element, tag: str, path: str, lines: dict) -> float:
    element = _child(parent, tag, path, lines)
    try:
        value = float(element.text or "")
    except ValueError:
        value = float("nan")
    if not abs(value) < float("inf"):
        where = f"{path}, line {lines[element]}"
        raise ValueError(f"{where}: <{element.tag}> {element.text!r} is not a finite number")
    return value
