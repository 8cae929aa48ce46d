from kd_search.distillation.distiller import Distiller
from kd_search.distillation.table_file import IDTableFile, TableMismatchError, file_sha256
from kd_search.distillation.teacher import Teacher, build_teacher
from kd_search.distillation.terms import DISTILLATION_TERM_REGISTRY, IDTableTerm, build_terms

__all__ = [
    "DISTILLATION_TERM_REGISTRY",
    "Distiller",
    "IDTableFile",
    "IDTableTerm",
    "TableMismatchError",
    "Teacher",
    "build_teacher",
    "build_terms",
    "file_sha256",
]
