"""The rows of Table 4 of Chen et al. (NIPS 2017) as config overrides, and the paper's numbers."""

from dataclasses import dataclass

from kd_search.experiments import TermsRow

REGRESSION = ("RegionRegressionTerm", "AnchorRegressionTerm")
CLASSES = ("RegionClassTerm", "AnchorClassTerm")
HINT = ("HintTerm",)

#: Data sets of the paper's numbers.
PAPER = ("PASCAL", "KITTI")

#: Meta-architectures without region heads: the region terms are left out for them.
ONE_STAGE = ("RetinaNet", "DistillableRetinaNet")


@dataclass(frozen=True)
class DetectorRow(TermsRow):
    """A row; ``paper`` is mAP, VGG-16 teaching the Tucker network."""

    def terms_for(self, student_arch: str) -> list[str]:
        one_stage = student_arch in ONE_STAGE
        return [term for term in self.terms if not (one_stage and "Region" in term)]


_L2 = {"DISTILLATION.BOUNDED_REGRESSION.KIND": "l2"}
_L2_B = {"DISTILLATION.BOUNDED_REGRESSION.KIND": "bounded"}
_CLS = {"DISTILLATION.SOFT_LABELS.BACKGROUND_WEIGHT": 1.0}
_CLS_W = {"DISTILLATION.SOFT_LABELS.BACKGROUND_WEIGHT": 1.5}
_HINTS = {"DISTILLATION.HINT.ADAPTATION": False}
_HINTS_A = {"DISTILLATION.HINT.ADAPTATION": True}

#: The paper's rows, and the two pairs that it leaves out.
ROWS = (
    DetectorRow("base", paper=(54.7, 49.3)),
    DetectorRow("L2", _L2, (54.6, 48.5), REGRESSION),
    DetectorRow("L2-B", _L2_B, (55.9, 50.1), REGRESSION),
    DetectorRow("CLS", _CLS, (57.4, 50.8), CLASSES),
    DetectorRow("CLS-W", _CLS_W, (57.7, 51.3), CLASSES),
    DetectorRow("Hints", _HINTS, (56.9, 50.3), HINT),
    DetectorRow("Hints-A", _HINTS_A, (58.0, 52.1), HINT),
    DetectorRow("L2-B+CLS-W", {**_L2_B, **_CLS_W}, (58.4, 51.7), (*REGRESSION, *CLASSES)),
    DetectorRow("CLS-W+Hints-A", {**_CLS_W, **_HINTS_A}, (), (*CLASSES, *HINT)),
    DetectorRow("L2-B+Hints-A", {**_L2_B, **_HINTS_A}, (), (*REGRESSION, *HINT)),
    DetectorRow(
        "all",
        {**_L2_B, **_CLS_W, **_HINTS_A},
        (59.4, 53.7),
        (*REGRESSION, *CLASSES, *HINT),
    ),
)
