"""Trainings of tiny networks on a few pictures, with prototypes; also imported by rank scripts."""

import torch
from tiny import tiny_cfg, tiny_detector_cfg
from tiny_distiller import save_teacher
from tiny_retinanet import tiny_retinanet_cfg
from tiny_training_set import OBJECTS, PEOPLE, register_people, register_set, write_pictures

from kd_search.distillation.methods.global_knowledge.generation import PrototypeGeneration
from kd_search.engine import PersonSearchTrainer

KEY = "DISTILLATION.GLOBAL_KNOWLEDGE."

TERMS = ["GlobalKnowledgeTerm", "WeightedFeatureTerm", "WeightedSoftLabelTerm"]

#: Student, teacher and kind of data by the name of the setting.
KINDS = {
    "rcnn": ("GeneralizedRCNN", lambda *o: tiny_detector_cfg("fpn", 4, *o)),
    "retinanet": (
        "RetinaNet",
        lambda *o: tiny_retinanet_cfg("MODEL.RETINANET.NUM_CLASSES", 4, *o),
    ),
    "people": ("PersonSearchRCNN", lambda *o: tiny_cfg("fpn", *o)),
}

CLUSTERS = (
    *(KEY + "GROUPS", "identity"),
    *(KEY + "CLUSTERS", 2),
)


def write_setting(folder, kind):
    """Pictures and a teacher, wider than the student, that :func:`setting_cfg` finds."""
    write_pictures(folder, max(len(OBJECTS), len(PEOPLE)))
    register(folder, kind)
    save_teacher(folder, _common(KINDS[kind][1]("MODEL.FPN.OUT_CHANNELS", 24), folder, kind))


def register(folder, kind):
    """Register the training set of a setting, in this process; its name."""
    name = f"prototypes_{kind}"
    return (register_people if kind == "people" else register_set)(name, folder)


def setting_cfg(folder, kind, *overrides, output=None, terms=TERMS):
    """Config of a student with the teacher of ``folder``."""
    meta_arch, base = KINDS[kind]
    cfg = _common(base(), folder, kind)
    if terms:
        cfg.MODEL.META_ARCHITECTURE = "Distiller"
        cfg.DISTILLATION.STUDENT_META_ARCH = meta_arch
        cfg.DISTILLATION.TERMS = list(terms)
    else:
        cfg.MODEL.META_ARCHITECTURE = meta_arch
    cfg.DISTILLATION.TEACHER.CONFIG_FILE = str(folder / "teacher.yaml")
    cfg.DISTILLATION.TEACHER.WEIGHTS = str(folder / "teacher.pth")
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PER_CLASS = 2
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PERCENTILE = 20.0
    cfg.OUTPUT_DIR = str(output or folder / "output")
    cfg.merge_from_list(list(overrides))
    return cfg


def _common(cfg, folder, kind):
    cfg.DATASETS.TRAIN = (f"prototypes_{kind}",)
    cfg.DATASETS.TEST = ()
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (96,), 160
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 80, 160
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.SOLVER.MAX_ITER = 6
    cfg.SOLVER.BASE_LR = 0.01
    cfg.SOLVER.STEPS = ()
    cfg.SOLVER.WARMUP_ITERS = 0
    cfg.SOLVER.CHECKPOINT_PERIOD = 1
    cfg.SEED = 3
    return cfg


def write_settings(root):
    """A folder for every kind, and ``truncated``, whose image 5 is cut off."""
    for kind in ("rcnn", "retinanet", "people"):
        write_setting(root / kind, kind)
    write_setting(root / "truncated", "rcnn")
    (root / "truncated" / "5.png").write_bytes((root / "truncated" / "5.png").read_bytes()[:500])
    return root


def distiller_of(cfg):
    torch.manual_seed(0)
    distiller = PersonSearchTrainer.build_model(cfg)
    for module in distiller.student.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_var.fill_(50.0)
    return distiller


def setting(folders, kind, *overrides, folder=None, **options):
    """Config and distiller of a setting."""
    folder = folders / (folder or kind)
    register(folder, kind)
    cfg = setting_cfg(folder, kind, *overrides, **options)
    return cfg, distiller_of(cfg)


def generate(cfg, distiller):
    picked = PrototypeGeneration(cfg, distiller, cfg.SEED).pick()
    for prototypes in picked:
        distiller.companions["PrototypeBank"].put(*prototypes)
    return distiller.companions["PrototypeBank"]


def bits(bank):
    return {name: value.clone() for name, value in bank.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


class Recording(PersonSearchTrainer):
    """Remembers the losses of its steps, as they are."""

    def after_step(self):
        latest = self.storage.latest().items()
        self.__dict__.setdefault("losses", {})[self.iter] = {
            name: value for name, (value, _) in latest if "loss" in name
        }
        super().after_step()


def stopped_after(last):
    """A trainer that is interrupted after this iteration, whose checkpoint is there."""

    class Stopped(Recording):
        def after_step(self):
            super().after_step()
            if self.iter == last:
                raise KeyboardInterrupt

    return Stopped


def trainer_of(folders, output, *overrides, kind="rcnn", resume=False, cls=Recording, terms=TERMS):
    """Trainer of a setting, about to begin or to go on."""
    register(folders / kind, kind)
    cfg = setting_cfg(folders / kind, kind, *overrides, output=output, terms=terms)
    trainer = cls(cfg)
    trainer.resume_or_load(resume=resume)
    return trainer
