from kd_search.distillation.alignment import ClassMap, TeacherOutputAligner
from kd_search.distillation.companions import COMPANION_REGISTRY, Companion
from kd_search.distillation.distiller import Distiller
from kd_search.distillation.initialisation import init_from_teacher
from kd_search.distillation.teacher import FrozenTeacher, build_teacher
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, DistillationTerm, build_terms

__all__ = [
    "COMPANION_REGISTRY",
    "DISTILLATION_TERM_REGISTRY",
    "ClassMap",
    "Companion",
    "DistillationTerm",
    "Distiller",
    "FrozenTeacher",
    "TeacherOutputAligner",
    "build_teacher",
    "build_terms",
    "init_from_teacher",
]
