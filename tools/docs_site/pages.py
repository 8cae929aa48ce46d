"""A hook of mkdocs: the pages of the site that are not files of docs/, and links between all pages.

Readme files of the repository, the reference of the Python interface, the help of the commands and
the notebooks become pages. Links are those of the repository, which work in a checkout: they are
rewritten to the page of the file that they name. A module is linked to its reference, and a file
that has no page keeps its text alone.
"""

import ast
import importlib
import json
import os
import posixpath
import re
import sys
from pathlib import Path

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

REPO = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(REPO))

#: Files of the repository that are pages.
READMES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "benchmarks/README.md": "benchmarks.md",
    **{
        path.relative_to(REPO).as_posix(): f"projects/{path.parent.name}.md"
        for path in sorted(REPO.glob("projects/*/README.md"))
    },
}
_LINK = re.compile(r"(!?)\[((?:[^\[\]]|\[[^\]]*\])*)\]\(([^()\s]+)\)")
_FENCE = re.compile(r"^ *```.*?^ *``` *$", re.MULTILINE | re.DOTALL)
#: Packages that are run, not imported, and what is not for users.
_NO_REFERENCE = {"cli", "__main__"}


#: What a browser requests when it shows a page or a style sheet.
_REQUEST = re.compile(
    r"""<(?:script|img|iframe|source)\b[^>]*\bsrc=["']?(?:https?:)?//[^"' >]+"""
    r"""|<link\b(?=[^>]*rel=["']?(?:stylesheet|preconnect|preload|icon))"""
    r"""[^>]*href=["']?(?:https?:)?//[^"' >]+"""
    r"""|url\(["']?(?:https?:)?//[^)]+|@import ["'](?:https?:)?//[^"']+"""
)


def on_config(config):
    """Add the reference of the Python interface to the navigation."""
    reference = next(item["Reference"] for item in config.nav if "Reference" in item)
    names = sorted(uri[len("api/") : -len(".md")] for uri in reference_pages())
    pages = [{name.partition(".")[2] or name: f"api/{name}.md"} for name in names]
    reference.append({"Python": pages})
    return config


def on_post_build(config):
    """Refuse a site whose pages request anything of another host.

    Raises:
        PluginError: a page does.
    """
    for path in sorted(Path(config.site_dir).rglob("*")):
        found = _REQUEST.search(path.read_text()) if path.suffix in (".html", ".css") else None
        if found:
            raise PluginError(f"{path}: a request to another host: {found[0]}")


def on_files(files, config):
    """Add the pages that are not files of docs/."""
    for path, uri in READMES.items():
        if (REPO / path).is_file():
            files.append(File.generated(config, uri, content=(REPO / path).read_text()))
    for uri, content in reference_pages().items():
        files.append(File.generated(config, uri, content=content))
    files.append(File.generated(config, "commands.md", content=commands_page()))
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        uri = file.src_uri.replace(".ipynb", ".md")
        page = notebook_page(Path(config.docs_dir, file.src_uri))
        files.append(File.generated(config, uri, content=page))
    return files


def on_page_markdown(markdown, page, config, files):
    """Rewrite the links of a page."""
    uri = page.file.src_uri
    at = next((path for path, own in READMES.items() if own == uri), f"docs/{uri}")
    parts, end = [], 0
    for fence in _FENCE.finditer(markdown):
        parts += [_rewrite(markdown[end : fence.start()], at, uri), fence[0]]
        end = fence.end()
    return "".join([*parts, _rewrite(markdown[end:], at, uri)])


def _rewrite(text, at, uri):
    return _LINK.sub(lambda link: _link(link, at, uri), text)


def _link(link, at, uri):
    image, text, target = link.groups()
    target, _, anchor = target.partition("#")
    if "://" in target or not target:
        return link[0]
    path = posixpath.normpath(posixpath.join(posixpath.dirname(at), target))
    if path.startswith("docs/") or path in READMES:
        own = READMES.get(path, path[len("docs/") :]).replace(".ipynb", ".md")
        relative = posixpath.relpath(own, posixpath.dirname(uri) or ".")
        return f"{image}[{text}]({relative}{'#' + anchor if anchor else ''})"
    if path.startswith("kd_search/"):
        module = re.sub(r"(/__init__)?\.py$", "", path).replace("/", ".")
        return f"[{text}][{module}]"
    # A link to nothing stays, so that a strict build reports it.
    return text if (REPO / path).exists() else link[0]


def reference_pages():
    """{page: content}: one for each package of kd_search, and for each method of distillation."""
    package = REPO / "kd_search"
    pages = {}
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package).with_suffix("").parts
        private = any(part.startswith("_") and part != "__init__" for part in parts)
        if parts[0] in _NO_REFERENCE or private:
            continue
        names = [part for part in parts if part != "__init__"]
        depth = 3 if names[:2] == ["distillation", "methods"] else 1
        page = ".".join(["kd_search", *names[:depth]])
        sections = pages.setdefault(page, [])
        module = ".".join(["kd_search", *names])
        level = 2 if sections else 1
        if path.name == "__init__.py":
            places = _exports(path, module)
            # What it exports is described in the module that defines it, unless that is private.
            private = [name for name, place in places.items() if "._" in place]
            options = f"{{heading_level: {level}, members: {private or 'false'}}}"
            sections.append(f"::: {module}\n    options: {options}")
            links = [
                f'<autoref optional identifier="{place}.{name}"><code>{name}</code></autoref>'
                for name, place in places.items()
                if name not in private
            ]
            sections += [f"Exports {', '.join(links)}."] if links else []
        else:
            sections.append(f"::: {module}\n    options: {{heading_level: {level}}}")
    return {f"api/{page}.md": "\n\n".join(sections) for page, sections in pages.items()}


def _exports(path, module):
    """{name: module that it comes from} of the names of a literal ``__all__``."""
    places, names = {}, []
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, [module if node.level else "", node.module]))
            places.update({alias.name: source for alias in node.names})
        elif isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            names = ast.literal_eval(node.value) if isinstance(node.value, ast.List) else []
    return {name: places[name] for name in names if name in places}


def commands_page():
    """The help of every command of kd-search."""
    os.environ["COLUMNS"] = "100"
    from kd_search.cli import COMMANDS

    lines = ["# Commands", "`python -m kd_search COMMAND` is the same as `kd-search COMMAND`."]
    for name, (module, what) in COMMANDS.items():
        parser = importlib.import_module(f"kd_search.cli.{module}").get_parser()
        lines += [f"## kd-search {name}", f"{what[0].upper()}{what[1:]}."]
        lines += [f"```text\n{parser.format_help().rstrip()}\n```"]
    return "\n\n".join(lines) + "\n"


def notebook_page(path):
    """The text and the code of a notebook, without outputs."""
    cells = json.loads(path.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    fences = [f"```python\n{text}\n```" for text in texts]
    return "\n\n".join(
        fence if cell["cell_type"] == "code" else text
        for cell, text, fence in zip(cells, texts, fences)
    )
