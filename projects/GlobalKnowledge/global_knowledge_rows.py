"""The rows of an ablation of Tang et al. (ECCV 2022) as config overrides.

Each row has the one before and something more. The paper has such tables, but their numbers could
not be recovered.
"""

from kd_search.experiments import TermsRow

NONE = "none"

_FEATURE = ("WeightedFeatureTerm",)
_GLOBAL = (*_FEATURE, "GlobalKnowledgeTerm")
_ALL = (*_GLOBAL, "WeightedSoftLabelTerm")
_WEIGHTED = "DISTILLATION.GLOBAL_KNOWLEDGE.WEIGHTED"


#: Feature distillation without weights, with those of agreement, and what comes on top.
ROWS = (
    TermsRow(NONE),
    TermsRow("feature", {_WEIGHTED: False}, terms=_FEATURE),
    TermsRow("+weights", {_WEIGHTED: True}, terms=_FEATURE),
    TermsRow("+global", {_WEIGHTED: True}, terms=_GLOBAL),
    TermsRow("+soft", {_WEIGHTED: True}, terms=_ALL),
)
#: What all students start from, where --start-iterations asks for it.
START = TermsRow("start")
