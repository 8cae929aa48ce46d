"""The rows of an ablation of Tang et al. (ECCV 2022) as config overrides.

Each row has the one before and something more. The paper has such tables, but their numbers could
not be recovered.
"""

from dataclasses import dataclass

from kd_search.experiments import Row

NONE = "none"
#: What all students start from, where --start-iterations asks for it.
START = "start"

_FEATURE = ("WeightedFeatureTerm",)
_GLOBAL = (*_FEATURE, "GlobalKnowledgeTerm")
_ALL = (*_GLOBAL, "WeightedSoftLabelTerm")
_WEIGHTED = "DISTILLATION.GLOBAL_KNOWLEDGE.WEIGHTED"


@dataclass(frozen=True)
class GlobalKnowledgeRow(Row):
    """Which terms teach the student; ``overrides`` are full config keys."""

    #: Names from ``DISTILLATION.TERMS``; none for the student alone.
    terms: tuple[str, ...] = ()

    def student_opts(self, student_arch: str, teacher_config: str, teacher_weights: str) -> list:
        """KEY VALUE overrides that turn a student's config into this row.

        Args:
            student_arch: meta-architecture of the student.
            teacher_config: config file of the teacher.
            teacher_weights: its weights.
        """
        if not self.terms:
            return ["MODEL.META_ARCHITECTURE", student_arch]
        node = {
            "MODEL.META_ARCHITECTURE": "Distiller",
            "DISTILLATION.STUDENT_META_ARCH": student_arch,
            "DISTILLATION.TERMS": list(self.terms),
            "DISTILLATION.TEACHER.CONFIG_FILE": teacher_config,
            "DISTILLATION.TEACHER.WEIGHTS": teacher_weights,
        }
        return [x for pair in node.items() for x in pair] + self.opts()


#: Feature distillation without weights, with those of agreement, and what comes on top.
ROWS = (
    GlobalKnowledgeRow(NONE),
    GlobalKnowledgeRow("feature", {_WEIGHTED: False}, terms=_FEATURE),
    GlobalKnowledgeRow("+weights", {_WEIGHTED: True}, terms=_FEATURE),
    GlobalKnowledgeRow("+global", {_WEIGHTED: True}, terms=_GLOBAL),
    GlobalKnowledgeRow("+soft", {_WEIGHTED: True}, terms=_ALL),
)
