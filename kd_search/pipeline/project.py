"""The folder of a project: what was chosen, three configs, and the results of ``distill``."""

import contextlib
import os
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

import yaml
from detectron2.config import CfgNode

from kd_search.config.shipped import SCHEME
from kd_search.engine import build_config
from kd_search.pipeline.choices import Choice
from kd_search.utils.files import atomic_write

PROJECT_FILE = "project.yaml"
TEACHER, STUDENT, DISTILLED = "teacher", "student", "student_distilled"
#: Config that the three share.
COMMON = "data"

_HEADS = {
    COMMON: "Data and settings that the three networks share. Written by kd-search init: edit it "
    "freely.",
    TEACHER: "The teacher.",
    STUDENT: "The student without a teacher.",
    DISTILLED: "The same student, taught by the teacher's table of identities, which takes the "
    "place of its own (Munjal et al., BMVC 2019).",
}


@dataclass(frozen=True)
class Project:
    """A folder that :func:`write_project` wrote."""

    folder: Path
    #: What ``init`` chose, and why.
    choices: Sequence[str]
    #: What ``init`` was told.
    options: Mapping[str, Any]
    title: str
    intro: str

    @classmethod
    def open(cls, folder: Path) -> "Project":
        """Read the folder of a project.

        Raises:
            FileNotFoundError: it is none.
            ValueError: its files are broken.
        """
        path = folder / PROJECT_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"{folder} is no project: make one with kd-search init {folder}"
            )
        content = _read_yaml(path)
        if not isinstance(content.get("options"), dict):
            raise ValueError(f"{path}: options is missing: run kd-search init in a new folder")
        project = cls(
            folder.absolute(),
            [str(choice) for choice in content.get("choices", ())],
            content["options"],
            str(content.get("title", folder.name)),
            str(content.get("intro", "")),
        )
        for model in (TEACHER, STUDENT, DISTILLED):
            if not project.config_file(model).is_file():
                raise FileNotFoundError(f"{project.config_file(model)} is missing")
        return project

    def config_file(self, model: str) -> Path:
        """Config of "teacher", "student" or "student_distilled"."""
        return self.folder / "configs" / f"{model}.yaml"

    def config(
        self, model: str, output: Path, opts: Sequence[Any] = (), *, eval_only: bool = False
    ) -> CfgNode:
        """The frozen config of a model in the folder ``output``."""
        overrides = [*opts, "OUTPUT_DIR", str(output)]
        return build_config(str(self.config_file(model)), overrides, eval_only=eval_only)


def known_options(folder: Path) -> Optional[dict[str, Any]]:
    """Options of the project in a folder; ``None`` where there is none.

    Raises:
        ValueError: the folder has other files of the names that ``init`` and ``distill`` write.
    """
    path = folder / PROJECT_FILE
    if path.is_file():
        options = _read_yaml(path).get("options")
        return options if isinstance(options, dict) else {}
    for name in ("configs", "steps", "settings.json", TEACHER, STUDENT, DISTILLED):
        if (folder / name).exists():
            raise ValueError(f"{folder} holds {name} and no project: name another folder")
    return None


def write_project(
    folder: Path,
    options: Mapping[str, Any],
    *,
    title: str,
    intro: str,
    common: Sequence[Choice],
    networks: Mapping[str, tuple[str, Sequence[Choice]]],
    distillation: Mapping[str, Any],
) -> Project:
    """Write the files of a project; the last one is that which makes it one.

    Args:
        folder: of the project.
        options: what ``init`` was told.
        title, intro: of the report.
        common: settings of ``configs/data.yaml``.
        networks: of the teacher and the student, name of the shipped config and settings.
        distillation: keys and values of the distilled student.

    Raises:
        ValueError: the configs do not merge; no file is left.
    """
    folder = folder.absolute()
    files = {COMMON: config_text(COMMON, [], common)}
    for model, (base, choices) in networks.items():
        output = Choice("", "", "", {"OUTPUT_DIR": str(folder / model)})
        bases = [f"{SCHEME}{base}", f"{COMMON}.yaml"]
        files[model] = config_text(model, bases, [*choices, output])
    keys = {**distillation, "OUTPUT_DIR": str(folder / DISTILLED)}
    files[DISTILLED] = config_text(DISTILLED, [f"{STUDENT}.yaml"], [Choice("", "", "", keys)])
    configs = folder / "configs"
    for name, text in files.items():
        _write(configs / f"{name}.yaml", text)
    chosen = [str(choice) for choice in common if choice.what]
    for model, (_, own) in networks.items():
        chosen += [str(c) if c.what == model else f"{model}, {c}" for c in own if c.what]
    content = {
        "title": title,
        "intro": intro,
        "options": dict(options),
        "choices": chosen,
    }
    head = (
        "# What kd-search init was told and what it chose. Settings are in configs/, which you may "
        "edit.\n"
    )
    _write(folder / PROJECT_FILE, head + yaml.safe_dump(content, sort_keys=False, width=96))
    return Project.open(folder)


def remove_project(folder: Path) -> None:
    """Remove the files of ``init``, and the folders that are empty then."""
    names = [*(f"configs/{name}.yaml" for name in _HEADS), PROJECT_FILE]
    for name in (*names, "split/train.json", "split/val.json", "split/queries.txt"):
        (folder / name).unlink(missing_ok=True)
    for name in ("configs", "split", "."):
        with contextlib.suppress(OSError):
            os.rmdir(folder / name)


def config_text(name: str, bases: Sequence[str], choices: Sequence[Choice]) -> str:
    """A config file: a comment for each choice, bases, and the keys of all."""
    lines = [_HEADS[name], *(str(choice) for choice in choices if choice.what)]
    head = "".join(f"# {part}\n" for line in lines for part in _wrapped(line))
    content: dict[str, Any] = {}
    if bases:
        content["_BASE_"] = bases[0] if len(bases) == 1 else list(bases)
    for choice in choices:
        for key, value in choice.keys.items():
            *parents, last = key.split(".")
            node = content
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = value
    return head + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=96)


def _wrapped(line: str) -> list[str]:
    # Words, such as paths, may be longer than a line.
    return textwrap.wrap(
        line, 94, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False
    )


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not plain YAML: {' '.join(str(error).split())}") from None
    return content if isinstance(content, dict) else {}


def _write(path: Path, text: str) -> None:
    with atomic_write(path) as file:
        file.write(text.encode())
