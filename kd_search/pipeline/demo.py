"""``kd-search demo``: a project on generated street scenes."""

from pathlib import Path
from typing import Any

from kd_search.pipeline.choices import Choice
from kd_search.pipeline.init import distillation_keys, known_project
from kd_search.pipeline.project import STUDENT, TEACHER, Project, write_project

NETWORKS = {
    TEACHER: "generated/teacher_r18_fpn.yaml",
    STUDENT: "generated/student_r18w50_fpn.yaml",
}
#: Settings that make every network and schedule small enough for a test.
_TINY: dict[str, Any] = {
    "SOLVER.MAX_ITER": 6,
    "SOLVER.STEPS": [4],
    "SOLVER.CHECKPOINT_PERIOD": 2,
    "MODEL.RESNETS.WIDTH_MULTIPLIER": 0.25,
    "MODEL.FPN.OUT_CHANNELS": 16,
    "MODEL.REID_HEAD.CONV_DIM": 16,
    "MODEL.ROI_BOX_HEAD.FC_DIM": 16,
}


def demo_project(folder: Path, *, preset: str, seed: int) -> Project:
    """The project of the demo in a folder, made unless it is there.

    Args:
        folder: of the project.
        preset: "demo", or "tiny" for tests.
        seed: of data and networks.

    Raises:
        ValueError: the folder holds something else.
    """
    options = {"preset": preset, "seed": seed}
    project = known_project(folder, options)
    if project is not None:
        return project
    data = folder.absolute() / "data"
    train = ["demo_train", str(data / "train.json"), str(data / "train" / "images")]
    test = ["demo_test", str(data / "test.json"), str(data / "test" / "images")]
    keys = {
        "DATASETS.PERSON_SEARCH_COCO": [train, [*test, str(data / "query_info.txt")]],
        "DATASETS.TRAIN": ["demo_train"],
        "DATASETS.TEST": ["demo_test"],
        "SEED": seed,
    }
    common = [Choice("data", "generated street scenes", f"preset {preset}, seed {seed}", keys)]
    if preset == "tiny":
        common.append(Choice("size", "tiny networks and schedules", "for tests", _TINY))
    return write_project(
        folder,
        options,
        title="Person search: distillation by ID table",
        intro="A teacher, a small student, and the same student taught by the teacher's table "
        "of identities (Munjal et al., BMVC 2019), on generated street scenes.",
        common=common,
        networks={model: (config, []) for model, config in NETWORKS.items()},
        # Without a queue the student does better here (projects/PersonSearchKD/README.md).
        distillation=distillation_keys(queue="off"),
    )
