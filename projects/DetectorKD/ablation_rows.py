"""The rows of Table 4 of Chen et al. (NIPS 2017) as config overrides, and the paper's numbers."""

from dataclasses import dataclass

from kd_search.experiments import Row

REGRESSION = ("RegionRegressionTerm", "AnchorRegressionTerm")
CLASSES = ("RegionClassTerm", "AnchorClassTerm")
HINT = ("HintTerm",)

#: Data sets of the paper's numbers.
PAPER = ("PASCAL", "KITTI")

#: Meta-architectures without region heads: the region terms are left out for them.
ONE_STAGE = ("RetinaNet", "DistillableRetinaNet")


@dataclass(frozen=True)
class TermsRow(Row):
    """Which terms teach the student. ``overrides`` are keys below ``DISTILLATION``; ``paper`` is
    mAP, VGG-16 teaching the Tucker network."""

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
        terms = [t for t in self.terms if not (student_arch in ONE_STAGE and "Region" in t)]
        node = {
            "STUDENT_META_ARCH": student_arch,
            "TERMS": terms,
            "TEACHER.CONFIG_FILE": teacher_config,
            "TEACHER.WEIGHTS": teacher_weights,
            **self.overrides,
        }
        opts = ["MODEL.META_ARCHITECTURE", "Distiller"]
        for key, value in node.items():
            opts += [f"DISTILLATION.{key}", value]
        return opts


_L2 = {"BOUNDED_REGRESSION.KIND": "l2"}
_L2_B = {"BOUNDED_REGRESSION.KIND": "bounded"}
_CLS = {"SOFT_LABELS.BACKGROUND_WEIGHT": 1.0}
_CLS_W = {"SOFT_LABELS.BACKGROUND_WEIGHT": 1.5}
_HINTS = {"HINT.ADAPTATION": False}
_HINTS_A = {"HINT.ADAPTATION": True}

#: The paper's rows, and the two pairs that it leaves out.
ROWS = (
    TermsRow("base", paper=(54.7, 49.3)),
    TermsRow("L2", _L2, (54.6, 48.5), REGRESSION),
    TermsRow("L2-B", _L2_B, (55.9, 50.1), REGRESSION),
    TermsRow("CLS", _CLS, (57.4, 50.8), CLASSES),
    TermsRow("CLS-W", _CLS_W, (57.7, 51.3), CLASSES),
    TermsRow("Hints", _HINTS, (56.9, 50.3), HINT),
    TermsRow("Hints-A", _HINTS_A, (58.0, 52.1), HINT),
    TermsRow("L2-B+CLS-W", {**_L2_B, **_CLS_W}, (58.4, 51.7), (*REGRESSION, *CLASSES)),
    TermsRow("CLS-W+Hints-A", {**_CLS_W, **_HINTS_A}, (), (*CLASSES, *HINT)),
    TermsRow("L2-B+Hints-A", {**_L2_B, **_HINTS_A}, (), (*REGRESSION, *HINT)),
    TermsRow(
        "all",
        {**_L2_B, **_CLS_W, **_HINTS_A},
        (59.4, 53.7),
        (*REGRESSION, *CLASSES, *HINT),
    ),
)
