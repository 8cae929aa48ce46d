"""Plain detectors on plain detection sets: train, evaluate, resume; and configs that do not fit."""

from pathlib import Path

import pytest
from detection_tree import make_tree, register_tiny_objects
from detectron2.engine import default_argument_parser, hooks
from detectron2.modeling.meta_arch import retinanet

from kd_search.data.detection.kitti import register_kitti
from kd_search.engine import PersonSearchCheckpointer, PersonSearchTrainer, build_config, setup
from kd_search.engine.task import best_metric, has_id_branch
from tests.engine.toy import assert_same, everything, read_metrics, trained

REPO = Path(__file__).resolve().parents[2]
RCNN = str(REPO / "configs/objects/student_r18w25_fpn.yaml")
RETINANET = str(REPO / "configs/objects/retinanet_student_r18w50_fpn.yaml")


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    return make_tree(tmp_path_factory.mktemp("tree"))


@pytest.fixture(scope="module")
def names(tree):
    register_kitti("kitti_for_training", "train", str(tree / "kitti"))
    return register_tiny_objects(tree, "objects_for_training")


def tiny(names, output, *overrides):
    small = {
        "DATASETS.TRAIN": f"('{names[0]}',)",
        "DATASETS.TEST": f"('{names[1]}',)",
        "INPUT.MIN_SIZE_TRAIN": "(48,)",
        "INPUT.MIN_SIZE_TEST": "48",
        "SOLVER.IMS_PER_BATCH": "2",
        "SOLVER.MAX_ITER": "4",
        "SOLVER.WARMUP_ITERS": "0",
        "SOLVER.CHECKPOINT_PERIOD": "2",
        "MODEL.FPN.OUT_CHANNELS": "16",
        "MODEL.RESNETS.WIDTH_MULTIPLIER": "0.25",
        "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "0.0",
        "MODEL.RETINANET.SCORE_THRESH_TEST": "0.0",
        "OUTPUT_DIR": str(output),
    }
    return [part for pair in small.items() for part in pair] + list(overrides)


def train(config, opts, resume=False):
    trainer = trained(PersonSearchTrainer, build_config(config, opts), resume)
    return trainer, trainer._last_eval_results


@pytest.fixture
def no_scripted_loss(monkeypatch):
    """Fail if Detectron2's scripted focal loss is called: its rounding changes between calls."""

    def called(*args, **kwargs):
        raise AssertionError("the scripted focal loss was called")

    monkeypatch.setattr(retinanet, "sigmoid_focal_loss_jit", called)


@pytest.mark.parametrize("config", [RCNN, RETINANET], ids=["rcnn", "retinanet"])
def test_a_plain_detector_trains_evaluates_and_resumes(config, names, tmp_path, no_scripted_loss):
    whole, results = train(config, tiny(names, tmp_path / "whole"))
    assert set(results) == {"bbox"} and {"AP", "AP50", "AP-wheel"} <= set(results["bbox"])
    assert (tmp_path / "whole/model_final.pth").is_file()
    assert "bbox/AP" in read_metrics(tmp_path / "whole")[-1]

    class Stopped(PersonSearchTrainer):
        def after_step(self):
            super().after_step()
            if self.iter == 2:
                raise KeyboardInterrupt  # one step after the last checkpoint

    opts = tiny(names, tmp_path / "stopped")
    with pytest.raises(KeyboardInterrupt):
        trained(Stopped, build_config(config, opts), resume=False)
    resumed, again = train(config, opts, resume=True)
    assert resumed.start_iter == 2
    assert_same(everything(resumed), everything(whole))
    assert str(again) == str(results)  # NaN where a size of objects is absent


def test_a_saved_detector_can_be_evaluated_alone(names, tmp_path):
    _, results = train(RCNN, tiny(names, tmp_path / "a", "SOLVER.MAX_ITER", "2"))
    weights = str(tmp_path / "a/model_final.pth")
    opts = tiny(names, tmp_path / "b", "MODEL.WEIGHTS", weights, "DATASETS.TRAIN", "('not_here',)")
    cfg = build_config(RCNN, opts, eval_only=True)
    model = PersonSearchTrainer.build_model(cfg)
    PersonSearchCheckpointer(model, cfg.OUTPUT_DIR).resume_or_load(cfg.MODEL.WEIGHTS, resume=False)
    assert str(PersonSearchTrainer.test(cfg, model)) == str(results)


def test_sets_that_must_be_converted_train_and_evaluate_too(names, tmp_path):
    opts = tiny(("kitti_for_training",) * 2, tmp_path, "SOLVER.MAX_ITER", "2")
    trainer, results = train(RCNN, [*opts, "MODEL.ROI_HEADS.NUM_CLASSES", "3"])
    assert {"AP-Car", "AP-Pedestrian", "AP-Cyclist"} <= set(results["bbox"])
    assert trainer.cfg.MODEL.OIM.NUM_IDS == 0


def test_the_best_checkpoint_is_chosen_by_the_metric_of_the_network(names):
    cfg = build_config(RCNN, tiny(names, "unused"))
    assert best_metric(cfg) == "bbox/AP"
    cfg.defrost()
    cfg.DATASETS.TEST = ("prw_test",)
    # Faster R-CNN has no re-ID branch.
    assert best_metric(cfg) == "bbox/AP"
    cfg.MODEL.META_ARCHITECTURE = "PersonSearchRCNN"
    assert best_metric(cfg) == "person_search/mAP"


def test_a_run_with_periodic_evaluation_keeps_a_best_checkpoint(names, tmp_path):
    train(RCNN, tiny(names, tmp_path, "TEST.EVAL_PERIOD", "2"))
    evaluated = [line["iteration"] for line in read_metrics(tmp_path) if "bbox/AP" in line]
    assert evaluated[0] == 1 and len(evaluated) == 2
    assert (tmp_path / "model_best.pth").is_file() == hasattr(hooks, "BestCheckpointer")


@pytest.mark.parametrize(
    ("opts", "branch"),
    [
        ([], False),
        (["MODEL.META_ARCHITECTURE", "RetinaNet"], False),
        (["MODEL.META_ARCHITECTURE", "PersonSearchRCNN"], True),
        (["MODEL.META_ARCHITECTURE", "Distiller"], True),
        (
            [
                *("MODEL.META_ARCHITECTURE", "Distiller"),
                *("DISTILLATION.STUDENT_META_ARCH", "GeneralizedRCNN"),
            ],
            False,
        ),
    ],
)
def test_identities_are_counted_only_where_the_network_tells_people_apart(
    opts, branch, monkeypatch
):
    monkeypatch.setattr("kd_search.engine.defaults.get_id_map", lambda names: range(17))
    cfg = build_config("", opts)
    assert has_id_branch(cfg) == branch
    assert cfg.MODEL.OIM.NUM_IDS == (17 if branch else 0)


def test_an_unknown_network_has_no_id_branch_and_is_refused_later(tmp_path):
    cfg = build_config("", ["MODEL.META_ARCHITECTURE", "Nothing"])
    assert not has_id_branch(cfg)
    with pytest.raises(ValueError, match="MODEL.META_ARCHITECTURE .*Nothing"):
        PersonSearchTrainer.build_model(cfg)


@pytest.mark.parametrize(
    ("config", "key"),
    [(RCNN, "MODEL.ROI_HEADS.NUM_CLASSES"), (RETINANET, "MODEL.RETINANET.NUM_CLASSES")],
)
def test_another_number_of_classes_than_the_sets_is_refused_at_once(config, key, names, tmp_path):
    opts = tiny(names, tmp_path)
    message = f"{key} is 80.*{names[0]} has 8 classes .wheel, button.*{key} 8"
    with pytest.raises(ValueError, match=message) as error:
        build_config(config, [*opts, key, "80"])
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=f"{names[1]} has 8"):
        build_config(config, [*opts, key, "80", "DATASETS.TRAIN", "()"], eval_only=True)
    with pytest.raises(ValueError, match="kitti_val has 3"):
        build_config(config, [*opts, "DATASETS.TEST", "('kitti_val',)"])
    distilled = [
        *("MODEL.META_ARCHITECTURE", "Distiller", key, "80"),
        *("DISTILLATION.STUDENT_META_ARCH", build_config(config, opts).MODEL.META_ARCHITECTURE),
    ]
    with pytest.raises(ValueError, match=message):
        build_config(config, [*opts, *distilled])


def test_sets_of_two_kinds_are_refused_at_once(names, tmp_path):
    opts = [*tiny(names, tmp_path), "DATASETS.TRAIN", f"('{names[0]}', 'prw_train')"]
    with pytest.raises(ValueError, match=f"DATASETS.TRAIN.*({names[0]}|prw_train)"):
        build_config(RCNN, opts)


def test_a_missing_class_list_stops_training_at_once_but_not_evaluation(
    monkeypatch, tmp_path, names
):
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    det = ["DATASETS.TRAIN", "('ilsvrc_det_train',)", "DATASETS.TEST", "('ilsvrc_det_val',)"]
    with pytest.raises(FileNotFoundError, match="ilsvrc_det_train: .*DETECTRON2_DATASETS"):
        build_config(RCNN, det)
    build_config(RCNN, det, eval_only=True)


def test_setup_writes_the_config_of_a_plain_detector(names, tmp_path):
    args = default_argument_parser().parse_args(["--config-file", RCNN, *tiny(names, tmp_path)])
    cfg = setup(args)
    assert cfg.MODEL.META_ARCHITECTURE == "GeneralizedRCNN"
    assert (tmp_path / "config.yaml").is_file()


@pytest.mark.parametrize(
    "path", sorted((REPO / "configs/objects").glob("*.yaml")), ids=lambda p: p.stem
)
def test_every_config_of_the_generated_set_fits_its_classes(path):
    cfg = build_config(str(path))
    assert cfg.DATASETS.TRAIN == ("kd_objects_train",) and cfg.MODEL.DEVICE == "cpu"
