"""Files of earlier versions load; those of ``old_files`` precede checksums and schemas."""

import json
import shutil
from pathlib import Path

import detectron2
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.modeling import META_ARCH_REGISTRY
from tiny import tiny_cfg

from kd_search.checkpoint import PersonSearchCheckpointer
from kd_search.config import get_cfg
from kd_search.data.detection.register import load_detection_set
from kd_search.data.generated import register_objects
from kd_search.distillation import Distiller, FrozenTeacher, build_terms
from kd_search.distillation.methods.global_knowledge import PrototypeBank
from kd_search.distillation.methods.id_table import IDTableFile
from kd_search.evaluation import load_detections
from kd_search.evaluation.search.compare_runs import load_results
from kd_search.evaluation.search.protocol_table import read_table_rows
from kd_search.export import load_exported, weights_sha256
from kd_search.outputs import Part
from kd_search.visualization import load_search_results
from tests.engine.toy import ToyTrainer, toy_cfg

OLD = Path(__file__).resolve().parent / "old_files"


def test_results_and_table_without_a_checksum_load():
    document = json.loads((OLD / "person_search_results.json").read_text())
    assert "sha256" not in document
    assert load_results(OLD) == load_search_results(OLD) == document
    assert (
        read_table_rows(OLD) == json.loads((OLD / "person_search_table.json").read_text())["rows"]
    )


def test_results_of_the_first_version_load(tmp_path):
    """They have no intervals, and no gallery, mode and similarity in the protocol."""
    document = json.loads((OLD / "person_search_results.json").read_text())
    del document["intervals"]
    for key in ("gallery", "mode", "similarity"):
        del document["protocol"][key]
    path = tmp_path / "person_search_results.json"
    path.write_text(json.dumps(document))
    assert load_results(path) == document


def test_detections_load():
    detections, metadata = load_detections(OLD / "person_search_detections.npz")
    assert len(detections.image_ids) == 6 and len(detections.query_ids) == 4
    assert metadata["dataset"] == "kd_search_old_files"


def test_an_id_table_loads():
    table = IDTableFile.load(OLD / "id_table.pth")
    assert torch.equal(table.rows, torch.eye(3, 4)) and table.person_ids == ["a", "b", 7]
    assert table.counts.tolist() == [5, 5, 5] and table.dataset == "some_train"


def test_an_exported_network_without_a_seal_loads():
    exported = load_exported(OLD / "exported.ts")
    assert "sealed" not in exported.metadata
    assert weights_sha256(exported.module) == exported.metadata["weights_sha256"]
    assert exported.module(torch.ones(1, 3)).shape == (1, 2)


@pytest.mark.skipif(
    detectron2.__version__ != "0.5",
    reason="the checkpoint is of Detectron2 0.5: later ones group parameters in another way",
)
def test_a_training_is_resumed(tmp_path):
    for name in ("last_checkpoint", "model_0000003.pth"):
        shutil.copy(OLD / name, tmp_path)
    trainer = ToyTrainer(toy_cfg(tmp_path))
    trainer.resume_or_load(resume=True)
    assert trainer.start_iter == 4 and trainer.seed == 7
    saved = torch.load(OLD / "model_0000003.pth", weights_only=True)
    assert all(torch.equal(v, saved["model"][k]) for k, v in trainer.model.state_dict().items())
    momentum = trainer.optimizer.state_dict()["state"][0]["momentum_buffer"]
    assert torch.equal(momentum, saved["optimizer"]["state"][0]["momentum_buffer"])
    trainer.train()


def test_a_generated_set_of_things_loads():
    register_objects(str(OLD / "objects"), prefix="kd_objects_old")
    try:
        records = load_detection_set("kd_objects_old_train")
        assert [len(record["annotations"]) > 0 for record in records] == [True, True]
    finally:
        for split in ("train", "test"):
            DatasetCatalog.remove(f"kd_objects_old_{split}")
            MetadataCatalog.remove(f"kd_objects_old_{split}")


def test_a_config_with_every_key_loads():
    """Written before methods registered their own keys."""
    cfg = get_cfg()
    cfg.merge_from_file(str(OLD / "config.yaml"))
    assert cfg.DISTILLATION.DKD.PAIR_WEIGHT == 60.0
    assert cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS == 10


def test_terms_and_prototypes_of_a_distilled_student_load():
    """Written before prototypes were those of a companion."""
    saved = torch.load(OLD / "distilled.pth", weights_only=True)
    assert saved["terms"] and saved["prototypes"]["filled"].any()
    cfg = tiny_cfg("fpn", "DISTILLATION.GLOBAL_KNOWLEDGE.GROUPS", "identity")
    cfg.merge_from_list(["DISTILLATION.GLOBAL_KNOWLEDGE.CLUSTERS", 2])
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS = 2
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.ADAPTER_KERNEL = 1
    cfg.DISTILLATION.TERMS = ["GlobalKnowledgeTerm", "WeightedFeatureTerm", "WeightedSoftLabelTerm"]
    wide = tiny_cfg("fpn", "MODEL.FPN.OUT_CHANNELS", 24, "MODEL.OIM.ENABLED", False)
    student, teacher = (META_ARCH_REGISTRY.get("PersonSearchRCNN")(c) for c in (cfg, wide))
    parts = frozenset({Part.FEATURES, Part.FOREGROUND_LOGITS})
    distiller = Distiller(
        student=student,
        terms=build_terms(cfg),
        teacher=FrozenTeacher(teacher, parts),
        companions={"PrototypeBank": PrototypeBank(cfg, student.spec(), teacher.spec())},
    )
    PersonSearchCheckpointer(distiller).load(str(OLD / "distilled.pth"))
    for part, loaded in (
        ("terms", distiller.terms),
        ("prototypes", distiller.companions["PrototypeBank"]),
    ):
        state = loaded.state_dict()
        assert state.keys() == saved[part].keys()
        assert all(torch.equal(state[name], value) for name, value in saved[part].items())
