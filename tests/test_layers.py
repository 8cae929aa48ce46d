"""Packages import from the layers below them alone, and the core names no distillation method."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import kd_search.distillation.methods  # noqa: F401  registers the methods
from kd_search.config import get_cfg, registry
from kd_search.distillation import COMPANION_REGISTRY, DISTILLATION_TERM_REGISTRY

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "kd_search").rglob("*.py"))
METHODS = "kd_search.distillation.methods"

#: From the lowest layer up. A package may import those of lower layers, and none of its own.
LAYERS = (
    ("utils", "outputs", "losses"),
    ("runtime",),
    ("gallery",),
    ("config", "checkpoint"),
    ("modeling", "data", "evaluation", "model_zoo"),
    ("distillation",),
    ("a method",),
    ("distillation.methods",),
    ("export", "visualization"),
    ("engine", "server"),
    ("synthetic", "experiments"),
    ("pipeline",),
    ("cli",),
    ("__main__",),
)
LEVELS = {package: level for level, packages in enumerate(LAYERS) for package in packages}
#: What a package may import within its layer.
WITHIN_A_LAYER = {("evaluation", "data")}
#: The only packages that these may import.
ALONE = {
    "synthetic": {"data", "utils"},
    "runtime": {"utils"},
    "gallery": {"runtime", "utils"},
    "server": {"gallery", "runtime", "utils", "visualization"},
}
#: What users run from end to end names the methods that it offers.
ABOVE_THE_METHODS = {"pipeline", "cli"}


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path) for path in FILES}


def package_of(module: str) -> str:
    """Name in ``LAYERS`` of what a module belongs to."""
    if module.startswith(f"{METHODS}."):
        return "a method"
    return "distillation.methods" if module == METHODS else module.split(".")[1]


def imports_of(source: str, module: str, *, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and module of every import of kd_search, wherever it is in the source."""
    package = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = [] if node.level == 0 else package[: len(package) - node.level + 1]
            base = ".".join([*base, *([node.module] if node.module else [])])
            # A name is a module itself, or of the module that it is imported from.
            dotted = [f"{base}.{alias.name}" for alias in node.names]
            names = [name if name in MODULES or base == "kd_search" else base for name in dotted]
        else:
            continue
        for name in names:
            if name.startswith("kd_search.") and name != "kd_search.__version__":
                yield node.lineno, name


def refusal(importer: str, imported: str) -> str:
    """Why a module may not import another one; empty if it may."""
    ours, theirs = package_of(importer), package_of(imported)
    if ours == theirs and method_of(importer) == method_of(imported):
        return ""
    unknown = {ours, theirs} - LEVELS.keys()
    if unknown:
        return f"{unknown.pop()} is in no layer: add it to LAYERS"
    if ours in ALONE and theirs not in ALONE[ours]:
        return f"{ours} may import {sorted(ALONE[ours])} alone"
    if LEVELS[theirs] < LEVELS[ours] or (ours, theirs) in WITHIN_A_LAYER:
        return ""
    return f"{theirs} is not below {ours}"


def test_imports_go_downwards():
    wrong = []
    for path in FILES:
        module = module_of(path)
        if module == "kd_search":
            continue
        source, is_package = path.read_text(), path.name == "__init__.py"
        for line, imported in imports_of(source, module, is_package=is_package):
            why = refusal(module, imported)
            if why:
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {imported}: {why}")
    assert wrong == []


@pytest.mark.parametrize(
    ("source", "imported"),
    [
        ("import kd_search.engine.hooks", "kd_search.engine.hooks"),
        ("from kd_search import engine", "kd_search.engine"),
        ("from kd_search.engine import hooks", "kd_search.engine.hooks"),
        ("from kd_search.engine.hooks import build_hooks", "kd_search.engine.hooks"),
        ("from ..engine import launch", "kd_search.engine.launch"),
        ("from .. import engine", "kd_search.engine"),
        ("if TYPE_CHECKING:\n    from kd_search import engine", "kd_search.engine"),
        ("def f():\n    import kd_search.engine", "kd_search.engine"),
        ("try:\n    import kd_search.engine\nexcept ImportError: pass", "kd_search.engine"),
    ],
)
def test_an_import_upwards_is_found_wherever_it_is(source, imported):
    ((_, found),) = imports_of(source, "kd_search.data.metadata")
    assert found == imported
    assert refusal("kd_search.data.metadata", found)


def test_which_imports_are_allowed():
    for importer, imported, allowed in (
        ("kd_search.evaluation.search.metric", "kd_search.data.metadata", True),
        ("kd_search.data.metadata", "kd_search.evaluation.search.metric", False),
        (f"{METHODS}.vkd.terms", f"{METHODS}.vkd.config", True),
        (f"{METHODS}.vkd.terms", f"{METHODS}.dkd.config", False),
        (f"{METHODS}.vkd.terms", "kd_search.distillation.terms", True),
        ("kd_search.distillation.terms", METHODS, False),
        ("kd_search.distillation.terms", f"{METHODS}.vkd", False),
        (METHODS, f"{METHODS}.vkd", True),
        ("kd_search.engine.hooks", "kd_search.outputs", True),
        ("kd_search.losses.oim", "kd_search.outputs", False),
        ("kd_search.synthetic.writer", "kd_search.data.writers", True),
        ("kd_search.synthetic.writer", "kd_search.engine.hooks", False),
        ("kd_search.gallery.store", "kd_search.utils.files", True),
        ("kd_search.gallery.search", "kd_search.runtime.verdict", True),
        ("kd_search.gallery.search", "kd_search.data.records", False),
        ("kd_search.server.api", "kd_search.gallery.search", True),
        ("kd_search.server.api", "kd_search.checkpoint.plain", False),
        ("kd_search.new_package", "kd_search.utils.files", False),
    ):
        assert bool(refusal(importer, imported)) != allowed, (importer, imported)


def names_of_methods() -> dict[str, dict[str, str]]:
    """Config nodes and registered classes by method, each with a pattern of its occurrences."""
    names: dict[str, dict[str, str]] = {}
    core = set(nodes_outside_of_distillation(get_cfg()))
    for add_keys in registry._registered.values():
        method = method_of(add_keys.__module__)
        if method:
            cfg = get_cfg()
            cfg.DISTILLATION.clear()
            add_keys(cfg)
            for node in cfg.DISTILLATION:
                # A node of the core may have the same name: that of a method has its parent's.
                parent = "DISTILLATION" if node in core else ""
                names.setdefault(method, {})[f"DISTILLATION.{node}"] = rf"{parent}\.{node}\b"
    for classes in (DISTILLATION_TERM_REGISTRY, COMPANION_REGISTRY):
        for name, cls in classes:
            method = method_of(cls.__module__)
            if method:
                names.setdefault(method, {})[name] = rf"\b{name}\b"
    return names


def nodes_outside_of_distillation(cfg, prefix="") -> Iterator[str]:
    for name, node in cfg.items():
        if isinstance(node, dict) and (prefix or name != "DISTILLATION"):
            yield name
            yield from nodes_outside_of_distillation(node, f"{prefix}{name}.")


def method_of(module: str) -> str:
    """The package of ``METHODS`` that a module belongs to; empty for another module."""
    return module.split(".")[3] if module.startswith(f"{METHODS}.") else ""


def test_names_of_methods_are_those_that_are_registered():
    names = names_of_methods()
    folders = (ROOT / METHODS.replace(".", "/")).iterdir()
    assert names.keys() == {path.name for path in folders if (path / "__init__.py").exists()}
    vkd = {"DISTILLATION.VKD", "ViewLogitsTerm", "DistancePreservationTerm"}
    assert names["vkd"].keys() == vkd
    assert {"DISTILLATION.HINT", "DISTILLATION.SOFT_LABELS"} < names["detector"].keys()
    assert {"DISTILLATION.SIA", "ReIDTeacher"} < names["dkd"].keys()


def test_nothing_outside_of_a_method_knows_its_names():
    found: dict[str, set[str]] = {}
    names = names_of_methods()
    for path in FILES:
        source, module = path.read_text(), module_of(path)
        if module != "kd_search" and package_of(module) in ABOVE_THE_METHODS:
            continue
        for method, words in names.items():
            if module == METHODS or method_of(module) == method:
                continue
            imported = {name for _, name in imports_of(source, module) if method_of(name) == method}
            known = {word for word, pattern in words.items() if re.search(pattern, source)}
            if known | imported:
                file = str(path.relative_to(ROOT / "kd_search"))
                found.setdefault(file, set()).update(known | imported)
    assert found == {}
