"""Prototypes of a training: when they are made, from what, and that nothing else has a part."""

import copy
import os
import signal
from types import SimpleNamespace

import pytest
import torch
from detectron2.data import transforms as T  # noqa: N812
from detectron2.structures import Boxes, Instances
from detectron2.utils.events import EventStorage
from tiny_training_set import HEIGHT, OBJECTS, WIDTH, register_set

from kd_search.data.image import ImageError, read_image
from kd_search.data.loader import TooManySkippedImagesError
from kd_search.data.training_records import training_records
from kd_search.distillation import pool_regions
from kd_search.distillation.prototype_candidates import annotated_boxes
from kd_search.distillation.prototype_features import HalfRows
from kd_search.engine import PersonSearchTrainer
from kd_search.engine.prototype_hook import PrototypeGeneration, PrototypeHook
from kd_search.losses import density_filter, select_prototypes
from tests.engine.prototype_setting import CLUSTERS, register, setting_cfg, write_setting
from tests.engine.toy import start_script

KEY = "DISTILLATION.GLOBAL_KNOWLEDGE."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("prototypes")
    for kind in ("rcnn", "retinanet", "people"):
        write_setting(root / kind, kind)
    write_setting(root / "torn", "rcnn")
    (root / "torn" / "5.png").write_bytes((root / "torn" / "5.png").read_bytes()[:500])
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
        distiller.prototypes.put(*prototypes)
    return distiller.prototypes


def bits(bank):
    return {name: value.clone() for name, value in bank.state_dict().items()}


def same(one, other):
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different, different


# ------------------------------------------------------------------------------------ what is made


def features_by_hand(model, record, boxes, bank):
    """Per level features of boxes of an image that is read and resized here."""
    image = read_image(record["file_name"], "BGR")
    resized = T.ResizeShortestEdge([80, 80], 160).get_transform(image)
    x = torch.as_tensor(resized.apply_image(image).transpose(2, 0, 1).copy())
    boxes = torch.as_tensor(resized.apply_box(boxes.numpy()), dtype=torch.float32)
    model.eval()
    with torch.no_grad():
        maps = model.observe([{"image": x}], {"features"}).features
        maps = [maps[name] for name in bank.names]
        index = torch.zeros(len(boxes), dtype=torch.int64)
        return pool_regions(maps, bank.strides, boxes, index, bank.samples)


@pytest.mark.parametrize("kind", ["rcnn", "retinanet"])
def test_prototypes_are_the_picks_of_the_pure_functions_on_the_same_features(folders, kind):
    cfg, distiller = setting(folders, kind)
    bank = generate(cfg, distiller)
    # Training leaves out the picture without boxes: positions are those in what remains.
    records = training_records(cfg)
    rows = [
        (position, torch.tensor([entry["bbox"]]).double(), entry["category_id"])
        for position, record in enumerate(records)
        for entry in record["annotations"]
        if entry["category_id"] != 2  # a small one
    ]
    for level in range(bank.num_levels):
        for name in range(4):
            own = [(position, box) for position, box, c in rows if c == name]
            if not own:
                assert not bank.filled[level, name].any()
                continue
            student, teacher = (
                torch.cat([features_by_hand(m, records[p], b, bank)[level] for p, b in own])
                for m in (distiller.student, distiller.teacher.model)
            )
            teacher = HalfRows.pack(teacher).unpack()
            dense = density_filter(student, teacher, percentile=20.0)
            chosen = select_prototypes(student, teacher, dense, num_prototypes=2).indices
            count = len(chosen)
            assert count and bank.filled[level, name].tolist() == [i < count for i in range(2)]
            assert bank.images[level, name, :count].tolist() == [own[i][0] for i in chosen]
            boxes = torch.cat([own[i][1] for i in chosen])
            assert torch.equal(bank.boxes[level, name, :count], boxes.float())
            ours, theirs, groups = bank.prototypes(level)
            torch.testing.assert_close(ours[groups == name], student[chosen])
            torch.testing.assert_close(theirs[groups == name], teacher[chosen])
    assert bank.filled[:, 0].all() and not bank.filled[:, 2:].any()


def test_student_features_are_anew_in_every_generation_and_the_teachers_are_not(folders):
    cfg, distiller = setting(folders, "rcnn")
    generation = PrototypeGeneration(cfg, distiller, 3)
    calls = {"student": 0, "teacher": 0}

    def counted(model, side):
        observe = model.observe

        def count(*args):
            calls[side] += 1
            return observe(*args)

        model.observe = count

    counted(distiller.student, "student")
    counted(distiller.teacher.model, "teacher")
    first = generation.pick()
    assert calls == {"student": 5, "teacher": 5}
    again = generation.pick()
    assert calls == {"student": 10, "teacher": 5}
    for one, other in zip(first, again):
        assert all(torch.equal(x, y) for x, y in zip(one[2:], other[2:]))
    torch.manual_seed(9)
    with torch.no_grad():
        for weight in distiller.student.backbone.parameters():
            weight.add_(0.05 * torch.randn_like(weight))
    changed = generation.pick()
    assert calls == {"student": 15, "teacher": 5}
    common = [(x, y) for x, y in zip(first, changed) if torch.equal(x.boxes, y.boxes) and len(x[2])]
    assert common and all(torch.equal(x.teacher, y.teacher) for x, y in common)
    assert all(not torch.equal(x.student, y.student) for x, y in common)


def test_modes_weights_and_statistics_are_left_as_they_were(folders):
    cfg, distiller = setting(folders, "rcnn")
    distiller.train()
    distiller.student.backbone.bottom_up.stem.eval()
    modes = [module.training for module in distiller.modules()]
    before = {name: value.clone() for name, value in distiller.student.state_dict().items()}
    PrototypeGeneration(cfg, distiller, 3).pick()
    assert [module.training for module in distiller.modules()] == modes
    assert not any(module.training for module in distiller.teacher.model.modules())
    same(before, distiller.student.state_dict())
    assert distiller.prototypes.is_empty


def test_workers_have_no_part_in_prototypes(folders):
    prototypes = [
        bits(generate(*setting(folders, "people", "DATALOADER.NUM_WORKERS", number)))
        for number in (0, 2)
    ]
    same(*prototypes)


def test_only_so_many_images_of_a_class_are_looked_at(folders):
    cfg, distiller = setting(folders, "rcnn", KEY + "IMAGES_PER_CLASS", 1)
    bank = generate(cfg, distiller)
    for name in (0, 1):
        assert len(bank.images[:, name][bank.filled[:, name]].unique()) == 1
    # Class 1 is in the last picture alone, which lends no box of class 0 unless chosen for it.
    assert bank.images[0, 1, 0] == 4


def test_classes_without_prototypes_are_named_once(folders, caplog):
    caplog.set_level("INFO", "kd_search")
    cfg, distiller = setting(folders, "rcnn")
    generation = PrototypeGeneration(cfg, distiller, 3)
    generation.pick()
    generation.pick()
    message = "2 classes have no prototype, so that their regions weigh 1: 2, 3"
    assert caplog.text.count(message) == 1 and caplog.text.count("from 5 images") == 2


def test_a_set_without_a_usable_box_has_no_prototypes(folders, caplog):
    bank = generate(*setting(folders, "rcnn", KEY + "MIN_SIZE", 500.0))
    assert bank.is_empty and "4 classes have no prototype" in caplog.text


# ----------------------------------------------------------------------------------- kinds of data


def test_people_are_one_class_or_clusters_of_those_that_look_alike(folders):
    cfg, distiller = setting(folders, "people")
    bank = generate(cfg, distiller)
    assert bank.num_groups == 1 and bank.filled.all()
    cfg, distiller = setting(folders, "people", *CLUSTERS)
    bank = generate(cfg, distiller)
    groups = bank.identity_groups
    # Five of six rows of the table are people of this set.
    assert groups[5:].tolist() == [-1] and set(groups[:5].tolist()) == {0, 1}
    people = [
        (position, box, entry["person_id"])
        for position, record in enumerate(training_records(cfg))
        for entry, box in zip(record["annotations"], annotated_boxes(record).boxes.tolist())
    ]
    for level in range(bank.num_levels):
        for group in range(2):
            for slot in bank.filled[level, group].nonzero().flatten():
                position = int(bank.images[level, group, slot])
                box = bank.boxes[level, group, slot].tolist()
                (person,) = [p for q, b, p in people if q == position and b == box]
                assert person >= 0 and groups[person] == group
    # Made once: another student and another seed leave them alone.
    before = groups.clone()
    PrototypeGeneration(cfg, distiller, 77).pick()
    assert torch.equal(bank.identity_groups, before)


def test_fewer_identities_than_clusters(folders):
    cfg, distiller = setting(folders, "people", *CLUSTERS[:3], 9)
    bank = generate(cfg, distiller)
    assert bank.identity_groups.tolist() == [0, 1, 2, 3, 4, -1]
    assert bank.filled.any(dim=2).any(dim=0).tolist() == [True] * 5 + [False] * 4


def test_sets_are_joined_and_images_counted_over_all(folders):
    register(folders / "rcnn", "rcnn")
    register_set(
        "prototypes_second", folders / "rcnn", [[(3, (5, 5, 60, 60))], [(0, (0, 0, 9, 9))]]
    )
    names = ("prototypes_rcnn", "prototypes_second")
    cfg, distiller = setting(folders, "rcnn", "DATASETS.TRAIN", names)
    generation = PrototypeGeneration(cfg, distiller, 3)
    # Picture 2 has no box, and training leaves it out.
    assert generation.num_images == len(OBJECTS) - 1 + 2
    bank = generate(cfg, distiller)
    assert bank.images[0, 3, 0] == len(OBJECTS) - 1
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    assert generate(cfg, distiller).images[0, 3, 0] == len(OBJECTS)


def test_data_that_has_no_boxes_is_refused_in_one_line(folders):
    cfg, distiller = setting(folders, "rcnn", "DATASETS.TRAIN", ())
    with pytest.raises(ValueError, match="DATASETS.TRAIN names no data set"):
        PrototypeGeneration(cfg, distiller, 3)


# ------------------------------------------------------------------------------- unreadable images


def test_an_unreadable_image_stops_or_is_left_out_as_in_training(folders, caplog):
    cfg, distiller = setting(folders, "rcnn", folder="torn")
    with pytest.raises(ImageError, match="5.png"):
        generate(cfg, distiller)
    assert distiller.prototypes.is_empty and distiller.student.training
    cfg.INPUT.ON_IMAGE_ERROR, cfg.INPUT.MAX_SKIPPED_FRACTION = "skip", 0.5
    bank = generate(cfg, distiller)
    assert not bank.filled[:, 1].any() and bank.filled[:, 0].all()
    assert "Skipped unreadable image" in caplog.text
    cfg.INPUT.MAX_SKIPPED_FRACTION = 0.01
    with pytest.raises(TooManySkippedImagesError):
        generate(cfg, distiller)


# --------------------------------------------------------------------------------- confident boxes


def test_boxes_that_the_teacher_is_sure_of_are_asked_for_and_mapped(folders, monkeypatch):
    cfg, distiller = setting(folders, "rcnn", KEY + "MIN_SCORE", 0.8)
    found = Instances((HEIGHT, WIDTH))
    # Class 1 of the student in picture 5, where nobody annotated it; one below the score; one of
    # class 3, for which no picture was chosen.
    found.pred_boxes = Boxes(torch.tensor([[2.0, 2, 60, 40], [60, 2, 120, 40], [2, 2, 60, 40]]))
    found.scores = torch.tensor([0.9, 0.7, 0.95])
    found.pred_classes = torch.tensor([2, 2, 0])
    calls = []

    def detect(batch):
        calls.append(batch[0]["image"].shape)
        return [{"instances": copy.deepcopy(found)}]

    teacher = distiller.teacher
    monkeypatch.setattr(teacher.model, "forward", detect)
    groups = [[3], [2], [1], [0]]
    teacher.translation.classes = type(teacher.translation.classes)(
        [(theirs, ours) for ours, (theirs,) in enumerate(groups)], 4, 4
    )
    off = generate(cfg, distiller)
    assert not calls and off.filled[0, 1].sum() == 2
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.CONFIDENT_BOXES = True
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE.PERCENTILE = 0.0
    generation = PrototypeGeneration(cfg, distiller, 3)
    picked = generation.pick()
    assert calls == [(3, 80, 107)] * 5
    generation.pick()
    assert len(calls) == 5
    candidates = generation._features.visit(generation._loader)
    last = candidates.images == 4
    assert candidates.found.classes[last].tolist() == [1, 0, 1, 1]
    assert candidates.found.boxes[last][-1].tolist() == [2, 2, 60, 40]
    assert candidates.found.numbers[last].tolist() == [0, 1, 2, 4]
    # In the pictures that were chosen for class 0 alone it counts for nothing.
    assert not (candidates.found.classes[~last] == 1).any()
    assert {p.group for p in picked if len(p.images)} == {0, 1}


def test_a_real_teacher_detects_on_the_original_picture(folders):
    options = (KEY + "CONFIDENT_BOXES", True, KEY + "MIN_SCORE", 0.0, KEY + "MIN_SIZE", 1.0)
    cfg, distiller = setting(folders, "retinanet", *options)
    distiller.teacher.model.test_score_thresh = 0.0
    generation = PrototypeGeneration(cfg, distiller, 3)
    found = generation._features.visit(generation._loader).found
    plain = PrototypeGeneration(*setting(folders, "retinanet", *options[:1], False), 3)
    annotated = plain._features.visit(plain._loader).found
    assert len(found.boxes) > len(annotated.boxes)
    assert (found.boxes[:, 2] > WIDTH * 0.9).any() and (found.boxes <= WIDTH).all()
    # Identities are known of annotated people alone: nobody is asked for more.
    cfg, distiller = setting(folders, "people", *options, *CLUSTERS)
    distiller.teacher.model.inference = None
    generate(cfg, distiller)


# ---------------------------------------------------------------------------------- several ranks


@pytest.fixture(scope="module")
def ranks(folders):
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    process = start_script("prototype_ranks.py", {}, str(folders), launcher=launcher)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return [torch.load(folders / f"rank{r}.pth", weights_only=True) for r in (0, 1)]


@pytest.mark.parametrize(("kind", "overrides"), [("rcnn", ()), ("people", CLUSTERS)])
def test_the_number_of_ranks_has_no_part_in_prototypes(folders, ranks, kind, overrides):
    register(folders / kind, kind)
    cfg = setting_cfg(folders / kind, kind, *overrides)
    torch.manual_seed(0)
    alone = generate(cfg, PersonSearchTrainer.build_model(cfg)).state_dict()
    for result in ranks:
        same(result[kind], alone)
    if kind == "rcnn":
        # Class 1 is in the last picture alone, so on rank 1.
        assert alone["filled"][:, 1].all()


def test_ranks_train_with_the_same_prototypes(ranks):
    same(ranks[0]["trained"], ranks[1]["trained"])
    assert ranks[0]["trained"]["filled"].any()


def test_an_unreadable_image_on_one_rank_stops_all(ranks):
    assert "rank 1 stopped" in ranks[0]["error"] and "5.png" in ranks[0]["error"]
    assert "5.png" in ranks[1]["error"] and "stopped" not in ranks[1]["error"]


# -------------------------------------------------------------------------------------- when it is


class Generation:
    """Stands in for :class:`PrototypeGeneration`; remembers when it was asked."""

    num_images = 7

    def __init__(self, cfg, distiller, seed):
        self.distiller, self.seed = distiller, seed
        self.asked = []

    def pick(self):
        self.asked.append((self.trainer.iter, self.trainer.seed))
        return self.picks


def hook_of(monkeypatch, folders, *overrides, picks=True, start=0, terms=None):
    options = {} if terms is None else {"terms": terms}
    cfg, distiller = setting(folders, "rcnn", *overrides, **options)
    made = []

    def make(*args):
        made.append(Generation(*args))
        made[-1].trainer = hook.trainer
        dims = [
            getattr(distiller.prototypes, f"{side}_0").shape[-1] for side in ("student", "teacher")
        ]
        rows = [torch.ones(1, dim) for dim in dims]
        one = (0, 0, *rows, torch.zeros(1, dtype=torch.int64), torch.ones(1, 4))
        made[-1].picks = [one] if picks else []
        return made[-1]

    monkeypatch.setattr("kd_search.engine.prototype_hook.PrototypeGeneration", make)
    hook = PrototypeHook(cfg, distiller)
    hook.trainer = SimpleNamespace(
        seed=11,
        start_iter=start,
        iter=start,
        max_iter=10,
        storage=EventStorage(),
        between_steps=EventStorage,
    )
    return hook, made, distiller.prototypes


def run(hook, start=0, end=10):
    hook.before_train()
    hook.trainer.start_iter = start
    for iteration in range(start, end):
        hook.trainer.iter = iteration
        hook.before_step()
        yield iteration


def test_prototypes_are_made_before_the_first_step_and_every_period(folders, monkeypatch):
    hook, made, bank = hook_of(monkeypatch, folders, KEY + "PERIOD", 4)
    next(run(hook))
    assert made[0].asked == [(0, 11)] and made[0].seed == 11 and bank.filled.sum() == 1
    list(run(hook))
    assert [iteration for iteration, _ in made[1].asked] == [0, 4, 8]
    # An epoch is seven images, two at a time.
    hook, made, bank = hook_of(monkeypatch, folders)
    list(run(hook))
    assert [iteration for iteration, _ in made[0].asked] == [0, 4, 8]
    value = hook.trainer.storage.latest()["prototypes/filled"][0]
    assert value == pytest.approx(1 / bank.filled.numel())


def test_a_resumed_training_keeps_those_of_its_checkpoint_until_the_next_are_due(
    folders, monkeypatch
):
    hook, made, bank = hook_of(monkeypatch, folders, KEY + "PERIOD", 4)
    bank.filled[0, 0, 0] = True
    list(run(hook, 3))
    assert [iteration for iteration, _ in made[0].asked] == [4, 8]
    list(run(hook, 8))
    assert [iteration for iteration, _ in made[1].asked] == [8]
    # A checkpoint without prototypes: they are made at once.
    bank.filled.fill_(False)
    list(run(hook, 3))
    assert [iteration for iteration, _ in made[2].asked] == [3, 4, 8]


def test_a_set_without_candidates_is_not_looked_through_in_every_step(folders, monkeypatch):
    hook, made, bank = hook_of(monkeypatch, folders, KEY + "PERIOD", 4, picks=False)
    list(run(hook))
    assert bank.is_empty and [iteration for iteration, _ in made[0].asked] == [0, 4, 8]


@pytest.mark.parametrize("fades", [True, False])
def test_terms_fade_by_iterations(folders, monkeypatch, fades):
    hook, _, bank = hook_of(monkeypatch, folders, KEY + "ATTENUATION", fades)
    found = [bank.attenuation for _ in run(hook)]
    assert found == pytest.approx([1 - i / 10 for i in range(10)] if fades else [1.0] * 10)


def test_terms_that_need_no_prototypes_fade_but_look_at_no_image(folders, monkeypatch):
    hook, made, bank = hook_of(
        *(monkeypatch, folders, KEY + "WEIGHTED", False), terms=["WeightedFeatureTerm"]
    )
    assert [bank.attenuation for _ in run(hook, 0, 2)] == [1.0, 0.9] and not made


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("PERIOD", -1), ("IMAGES_PER_CLASS", 0), ("ALPHA", -0.5), ("PERCENTILE", 101.0)),
        ("BANDWIDTH", 0.0),
    ],
)
def test_keys_out_of_range_are_refused_before_training(folders, key, value):
    cfg, distiller = setting(folders, "rcnn")
    cfg.DISTILLATION.GLOBAL_KNOWLEDGE[key] = value
    with pytest.raises(ValueError, match=f"DISTILLATION.GLOBAL_KNOWLEDGE.{key} {value} must be"):
        PrototypeHook(cfg, distiller)


# ------------------------------------------------------------------------------------- in training


class Recording(PersonSearchTrainer):
    """Remembers the losses of its steps, as they are."""

    def after_step(self):
        latest = self.storage.latest().items()
        self.__dict__.setdefault("losses", {})[self.iter] = {
            name: value for name, (value, _) in latest if "loss" in name
        }
        super().after_step()


class Stopped(Recording):
    """Interrupted after an iteration whose checkpoint is there."""

    last = 2

    def after_step(self):
        super().after_step()
        if self.iter == self.last:
            raise KeyboardInterrupt


def trainer_of(folders, output, *overrides, kind="rcnn", resume=False, cls=Recording):
    register(folders / kind, kind)
    trainer = cls(setting_cfg(folders / kind, kind, *overrides, output=output))
    trainer.resume_or_load(resume=resume)
    return trainer


@pytest.mark.e2e
@pytest.mark.parametrize(("kind", "last"), [("rcnn", 2), ("rcnn", 3), ("people", 2)])
def test_an_interrupted_training_ends_bit_for_bit_as_one_that_ran_through(
    folders, tmp_path, kind, last
):
    """With PERIOD 2 the last iteration 3 is followed by a generation, 2 is not."""
    overrides = (KEY + "PERIOD", 2, *(CLUSTERS if kind == "people" else ()))
    whole = trainer_of(folders, tmp_path / "whole", *overrides, kind=kind)
    whole.train()
    cls = type("StoppedHere", (Stopped,), {"last": last})
    stopped = trainer_of(folders, tmp_path / "cut", *overrides, kind=kind, cls=cls)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    saved = torch.load(tmp_path / "cut" / f"model_000000{last}.pth", weights_only=True)
    assert saved["prototypes"]["filled"].any()
    resumed = trainer_of(folders, tmp_path / "cut", *overrides, kind=kind, resume=True)
    assert resumed.start_iter == last + 1
    same(bits(resumed.model.prototypes), saved["prototypes"])
    resumed.train()
    same(bits(resumed.model.prototypes), bits(whole.model.prototypes))
    same(resumed.model.student.state_dict(), whole.model.student.state_dict())
    same(resumed.model.terms.state_dict(), whole.model.terms.state_dict())
    assert whole.losses == {**stopped.losses, **resumed.losses} and len(whole.losses) == 6
    assert len(stopped.losses) == last + 1 and len(resumed.losses) == 5 - last
    assert all(losses["loss_global_knowledge"] > 0 for losses in whole.losses.values())
    # The generations differ, as the student does.
    assert not torch.equal(saved["prototypes"]["student_0"], whole.model.prototypes.student_0)


def test_a_signal_ends_a_generation_at_once_and_loses_no_step(folders, tmp_path, monkeypatch):
    trainer = trainer_of(folders, tmp_path, KEY + "PERIOD", 2, "SOLVER.CHECKPOINT_PERIOD", 100)
    pick = PrototypeGeneration.pick
    asked = []

    def pick_or_die(self):
        asked.append(trainer.iter)
        if trainer.iter == 2:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("the signal did not end it")
        return pick(self)

    monkeypatch.setattr(PrototypeGeneration, "pick", pick_or_die)
    with pytest.raises(SystemExit, match="143"):
        trainer.train()
    assert asked == [0, 2]
    assert (tmp_path / "last_checkpoint").read_text() == "model_0000001.pth"
    saved = torch.load(tmp_path / "model_0000001.pth", weights_only=True)
    assert saved["iteration"] == 1
    same(saved["prototypes"], bits(trainer.model.prototypes))
    assert trainer.model.student.training


def test_a_training_without_terms_has_no_hook(folders, tmp_path):
    register(folders / "rcnn", "rcnn")
    trainer = PersonSearchTrainer(setting_cfg(folders / "rcnn", "rcnn", output=tmp_path, terms=()))
    assert not any(isinstance(hook, PrototypeHook) for hook in trainer._hooks)
