"""Networks and rows of a table: what is trained, and the numbers that a paper has for it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar


@dataclass(frozen=True)
class Networks:
    """Config files of a student and of its (re-ID) teacher, relative to the checkout."""

    student: str
    teacher: str


@dataclass(frozen=True)
class Row:
    """One row of a table. A project whose rows say more has a subclass."""

    name: str
    #: Config keys and their values.
    overrides: dict[str, Any] = field(default_factory=dict)
    #: The paper's numbers, one for each of :attr:`TableLayout.paper`; empty where it has none.
    paper: tuple[float, ...] = ()

    def opts(self) -> list:
        """The overrides as KEY VALUE ...

        Returns:
            keys and values in turn.
        """
        return [x for pair in self.overrides.items() for x in pair]

    def changes(self, cfg) -> bool:
        """Whether a config has another value for any key of the overrides."""
        return any(config_value(cfg, key) != value for key, value in self.overrides.items())


@dataclass(frozen=True)
class TermsRow(Row):
    """A student and the terms that teach it."""

    #: Names from ``DISTILLATION.TERMS``; none for the student alone.
    terms: tuple[str, ...] = ()

    def terms_for(self, student_arch: str) -> list[str]:
        """The terms that a student of this meta-architecture can have."""
        return list(self.terms)

    def student_opts(
        self,
        student_arch: str,
        teacher_config: str,
        teacher_weights: str,
        teacher_opts: Sequence[str] = (),
        *,
        teacher: str = "TEACHER",
    ) -> list:
        """KEY VALUE overrides that turn a student's config into this row.

        Args:
            student_arch: meta-architecture of the student.
            teacher_config: config file of the teacher.
            teacher_weights: its weights.
            teacher_opts: what it was trained with beyond its file; it must be built so.
            teacher: node of the teacher below ``DISTILLATION``.
        """
        if not self.terms:
            return ["MODEL.META_ARCHITECTURE", student_arch]
        node = {
            "MODEL.META_ARCHITECTURE": "Distiller",
            "DISTILLATION.STUDENT_META_ARCH": student_arch,
            "DISTILLATION.TERMS": self.terms_for(student_arch),
            f"DISTILLATION.{teacher}.CONFIG_FILE": teacher_config,
            f"DISTILLATION.{teacher}.WEIGHTS": teacher_weights,
            f"DISTILLATION.{teacher}.OPTS": list(teacher_opts),
        }
        return [x for pair in node.items() for x in pair] + self.opts()


def config_value(cfg, key: str) -> Any:
    """Value or node of a config; ``None`` where there is no such key.

    Args:
        cfg: the config.
        key: names joined by dots.
    """
    for part in key.split("."):
        if not isinstance(cfg, dict) or part not in cfg:
            return None
        cfg = cfg[part]
    return cfg


AnyRow = TypeVar("AnyRow", bound=Row)


def choose_rows(rows: Sequence[AnyRow], names: Sequence[str]) -> list[AnyRow]:
    """Rows by name, in the order of the table; all of them where no name is given.

    Raises:
        ValueError: a name that no row has.
    """
    known = [row.name for row in rows]
    for name in names:
        if name not in known:
            raise ValueError(f"--rows: {name!r} is none of {', '.join(known)}")
    return [row for row in rows if not names or row.name in names]
