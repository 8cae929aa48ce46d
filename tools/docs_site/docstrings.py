"""An extension of griffe: docstrings of this package as Markdown.

They are written for readers of the source, with roles (``:func:`name```) and literal blocks (a
line that ends with two colons) of reStructuredText. Comments with ``#:`` are the docstrings of
constants.
"""

import logging
import re
from collections.abc import Iterator
from typing import Optional

import griffe

# mkdocs counts the warnings of its own loggers: a strict build fails.
logger = logging.getLogger("mkdocs.plugins.docstrings")
_ROLE = re.compile(r":(?:attr|class|data|func|meth|mod):`(~?)([\w.]+)`")


class Docstrings(griffe.Extension):
    def on_attribute_instance(self, *, node, attr, agent, **kwargs) -> None:
        comment = _comment_above(attr)
        if comment and not attr.docstring:
            attr.docstring = griffe.Docstring(comment, parent=attr)

    def on_package(self, *, pkg, loader, **kwargs) -> None:
        if pkg.name != "kd_search":
            return
        for obj in _objects(pkg):
            if obj.docstring:
                obj.docstring.value = _as_markdown(obj)


def _objects(obj) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _comment_above(attr) -> str:
    lines = attr.lines_collection[attr.filepath] if attr.lineno else []
    end = attr.lineno - 1 if lines else 0
    start = end
    while start and lines[start - 1].strip().startswith("#:"):
        start -= 1
    return "\n".join(line.strip()[2:].strip() for line in lines[start:end])


def _as_markdown(obj) -> str:
    def link(role: re.Match) -> str:
        name = role[2]
        shown = name.rpartition(".")[2] if role[1] else name
        target = _find(obj, name)
        if target is None:
            if name.startswith("kd_search."):
                logger.warning("%s: the docstring names %s, which is not there", obj.path, name)
            return f"`{shown}`"
        private = any(part.startswith("_") for part in target.path.split("."))
        return f"`{shown}`" if private or not target.docstring else f"[`{shown}`][{target.path}]"

    text = re.sub(r"::$", ":", obj.docstring.value, flags=re.MULTILINE)
    return _ROLE.sub(link, text)


def _find(obj, name: str) -> Optional[griffe.Object]:
    """What a name means in the scope of an object; None if that is of another package."""
    package = obj.package
    try:
        path = name if name.startswith("kd_search.") else obj.resolve(name)
        found = package.modules_collection[path]
        return found.final_target if found.is_alias else found
    except (griffe.GriffeError, KeyError):
        return None
