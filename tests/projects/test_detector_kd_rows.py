"""Rows of Table 4 as configs."""

from ablation_rows import ROWS
from detectron2.config import get_cfg

from kd_search import add_kd_search_config
from kd_search.experiments import choose_rows


def test_rows_are_those_of_the_paper():
    table_4 = {row.name: row.paper for row in ROWS if row.paper}
    assert table_4 == {
        "base": (54.7, 49.3),
        "L2": (54.6, 48.5),
        "L2-B": (55.9, 50.1),
        "CLS": (57.4, 50.8),
        "CLS-W": (57.7, 51.3),
        "Hints": (56.9, 50.3),
        "Hints-A": (58.0, 52.1),
        "L2-B+CLS-W": (58.4, 51.7),
        "all": (59.4, 53.7),
    }


def config_of(name, arch="GeneralizedRCNN"):
    cfg = get_cfg()
    add_kd_search_config(cfg)
    (row,) = choose_rows(ROWS, [name])
    # As text, the way they reach a run.
    cfg.merge_from_list([str(x) for x in row.student_opts(arch, "teacher.yaml", "teacher.pth")])
    return cfg


def test_rows_set_what_they_are_named_after():
    base = config_of("base")
    assert base.MODEL.META_ARCHITECTURE == "GeneralizedRCNN" and not base.DISTILLATION.TERMS
    l2, bounded = config_of("L2").DISTILLATION, config_of("L2-B").DISTILLATION
    assert l2.BOUNDED_REGRESSION.KIND == "l2" and bounded.BOUNDED_REGRESSION.KIND == "bounded"
    assert l2.TERMS == bounded.TERMS == ["RegionRegressionTerm", "AnchorRegressionTerm"]
    cls, weighted = config_of("CLS").DISTILLATION, config_of("CLS-W").DISTILLATION
    assert cls.SOFT_LABELS.BACKGROUND_WEIGHT == 1.0
    assert weighted.SOFT_LABELS.BACKGROUND_WEIGHT == 1.5
    assert not config_of("Hints").DISTILLATION.HINT.ADAPTATION
    everything = config_of("all")
    assert everything.MODEL.META_ARCHITECTURE == "Distiller"
    assert len(everything.DISTILLATION.TERMS) == 5
    assert everything.DISTILLATION.HINT.ADAPTATION
    assert everything.DISTILLATION.TEACHER.WEIGHTS == "teacher.pth"


def test_one_stage_students_have_no_region_terms():
    terms = config_of("all", "RetinaNet").DISTILLATION.TERMS
    assert terms == ["AnchorRegressionTerm", "AnchorClassTerm", "HintTerm"]
