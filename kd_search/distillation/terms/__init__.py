from kd_search.distillation.terms.id_table_term import IDTableTerm
from kd_search.distillation.terms.registry import DISTILLATION_TERM_REGISTRY, build_terms

__all__ = ["DISTILLATION_TERM_REGISTRY", "IDTableTerm", "build_terms"]
