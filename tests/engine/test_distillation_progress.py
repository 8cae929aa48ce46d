"""Weights that change during training depend on the iteration alone, also in a resumed run."""

from types import SimpleNamespace

import pytest

from kd_search.engine.hooks import DistillationProgressHook
from tests.distillation.methods.global_knowledge.prototype_setting import (
    KEY,
    Recording,
    same,
    setting,
    stopped_after,
    trainer_of,
    write_setting,
)

CHEN = ["RegionClassTerm", "AnchorClassTerm", "RegionRegressionTerm", "AnchorRegressionTerm"]
SOFT, BOUNDED = "DISTILLATION.SOFT_LABELS.", "DISTILLATION.BOUNDED_REGRESSION."
MOVING = (
    *(SOFT + "HARD_WEIGHT", 0.25, SOFT + "HARD_WEIGHT_END", 1.0),
    *(BOUNDED + "REGION_LOSS_WEIGHT_END", 0.0, BOUNDED + "ANCHOR_LOSS_WEIGHT_END", 2.0),
)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("progress")
    write_setting(root / "rcnn", "rcnn")
    return root


def steps(distiller, iterations=10):
    hook = DistillationProgressHook(distiller)
    hook.trainer = SimpleNamespace(max_iter=10)
    for iteration in range(iterations):
        hook.trainer.iter = iteration
        hook.before_step()
        yield iteration


@pytest.mark.parametrize("fades", [True, False])
@pytest.mark.parametrize("weighted", [True, False])
def test_terms_of_global_knowledge_fade(folders, fades, weighted):
    overrides = (KEY + "ATTENUATION", fades, KEY + "WEIGHTED", weighted)
    _, distiller = setting(folders, "rcnn", *overrides, terms=["WeightedFeatureTerm"])
    found = [distiller.companions["PrototypeBank"].attenuation for _ in steps(distiller)]
    assert found == ([1 - i / 10 for i in range(10)] if fades else [1.0] * 10)


def test_mu_and_nu_change_linearly(folders):
    _, distiller = setting(folders, "rcnn", *MOVING, terms=CHEN)
    region, anchor, region_box, anchor_box = (distiller.terms[name] for name in CHEN)
    for i in steps(distiller):
        mu = 0.25 + 0.75 * i / 10
        assert region.hard_loss_factors == {"loss_cls": pytest.approx(mu)}
        assert anchor.hard_loss_factors == {"loss_rpn_cls": pytest.approx(mu)}
        assert region.soft_weight == anchor.soft_weight == pytest.approx(1 - mu)
        assert region_box.nu == pytest.approx(0.5 * (1 - i / 10))
        assert anchor_box.nu == pytest.approx(0.5 + 1.5 * i / 10)


def test_mu_and_nu_are_constant_by_default(folders):
    _, distiller = setting(folders, "rcnn", terms=CHEN)
    region, anchor, region_box, anchor_box = (distiller.terms[name] for name in CHEN)
    for _ in steps(distiller):
        assert region.mu == anchor.mu == region_box.nu == anchor_box.nu == 0.5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((SOFT + "HARD_WEIGHT_END", 1.5), (SOFT + "HARD_WEIGHT_END", -0.5)),
        (BOUNDED + "REGION_LOSS_WEIGHT_END", -0.5),
        (BOUNDED + "ANCHOR_LOSS_WEIGHT_END", float("nan")),
    ],
)
def test_ends_out_of_range_are_refused(folders, key, value):
    node, _, last = key.rpartition(".")
    with pytest.raises(ValueError, match=f"{node}.*{value}") as error:
        setting(folders, "rcnn", key, value, terms=CHEN)
    assert last.partition("_LOSS_WEIGHT_")[2] in str(error.value)


@pytest.mark.e2e
def test_a_resumed_training_has_the_weights_of_its_iteration(folders, tmp_path):
    """Losses and weights bit for bit; they differ from those of constant weights."""
    whole, constant = (
        trainer_of(folders, tmp_path / name, *overrides, terms=CHEN)
        for name, overrides in (("whole", MOVING), ("constant", MOVING[:2]))
    )
    whole.train()
    constant.train()
    stopped = trainer_of(folders, tmp_path / "cut", *MOVING, cls=stopped_after(2), terms=CHEN)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = trainer_of(folders, tmp_path / "cut", *MOVING, resume=True, terms=CHEN)
    assert resumed.start_iter == 3
    resumed.train()
    assert whole.losses == {**stopped.losses, **resumed.losses} and len(whole.losses) == 6
    same(resumed.model.student.state_dict(), whole.model.student.state_dict())
    assert whole.losses[0] == constant.losses[0]
    # The first step is the same: after it the losses differ by their weights alone, mu 0.375
    # instead of 0.25 and nu 0.5 x 5/6 and 0.75 instead of 0.5.
    ratios = {name: whole.losses[1][name] / constant.losses[1][name] for name in whole.losses[1]}
    for name, expected in {
        "loss_cls": 1.5,
        "loss_rpn_cls": 1.5,
        "loss_box_reg": 1.0,
        "loss_region_soft": 0.625 / 0.75,
        "loss_anchor_soft": 0.625 / 0.75,
        "loss_region_bounded": 5 / 6,
        "loss_anchor_bounded": 1.5,
    }.items():
        assert ratios[name] == pytest.approx(expected, rel=1e-5), name


def test_a_student_without_a_distiller_has_no_progress_hook(folders, tmp_path):
    plain = trainer_of(folders, tmp_path, cls=Recording, terms=())
    assert not any(isinstance(hook, DistillationProgressHook) for hook in plain._hooks)
