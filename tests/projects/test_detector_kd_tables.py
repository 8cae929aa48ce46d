"""Tables 2 and 3 of projects/DetectorKD: half the input, compressed layers, what the rows train."""

import json
import sys

import pytest
import small_networks  # noqa: F401  registers keys and backbones
import torch
from detectron2.layers import Conv2d, ShapeSpec, get_norm
from detectron2.modeling import build_backbone
from small_networks import TuckerConv2d, compress, tucker_ranks
from tiny import REPO
from torch.nn import functional as F  # noqa: N812

from kd_search.engine import PersonSearchTrainer
from kd_search.synthetic import PRESETS, generate_dataset
from tests.projects.project_files import load_script, run_script
from tests.projects.registrations import only_here

tables = load_script("DetectorKD", "tables")
registered = only_here("small_networks")
NARROW = ["MODEL.RESNETS.WIDTH_MULTIPLIER", "0.25"]


@pytest.fixture(autouse=True)
def _in_the_checkout(monkeypatch):
    monkeypatch.chdir(REPO)


def study_of(tmp_path, *more):
    return tables.make_study(tables.parse_args(["--output", str(tmp_path), "--seeds", "1", *more]))


def backbone_of(cfg):
    return build_backbone(cfg, ShapeSpec(channels=3)).eval()


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The student of Table 2 that sees half of its input."""
    study = study_of(tmp_path_factory.mktemp("half"), "--set", "table2")
    torch.manual_seed(0)
    return backbone_of(study.runs["half input", 1].config)


def test_half_input_has_the_levels_and_sizes_of_the_whole_one(half, tmp_path):
    whole = backbone_of(study_of(tmp_path, "--set", "table2").runs["whole input", 1].config)
    assert half.size_divisibility == whole.size_divisibility == 32
    # 7 cells of p5 across: not to be halved without padding.
    images = torch.rand(1, 3, 96, 224)
    with torch.no_grad():
        ours, theirs = half(images), whole(images)
    shared = ours.keys() & theirs.keys()
    assert shared == {"p3", "p4", "p5", "p6"}
    for name in shared:
        assert ours[name].shape == theirs[name].shape
        assert half.output_shape()[name].stride == whole.output_shape()[name].stride


def test_half_input_is_the_network_of_the_smaller_picture(half):
    images = torch.rand(2, 3, 64, 128)
    small = torch.zeros(2, 3, 32, 64, dtype=torch.float64)
    for i in range(32):
        for j in range(64):
            small[:, :, i, j] = images[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean((2, 3))
    with torch.no_grad():
        found, expected = half(images), half.inner(small.float())
    assert torch.allclose(found["p3"], expected["p2"], atol=1e-5)
    assert torch.allclose(found["p5"], expected["p4"], atol=1e-5)


def whole_conv(inputs, outputs, stride):
    conv = Conv2d(inputs, outputs, 3, stride, padding=1, bias=False, norm=get_norm("BN", outputs))
    return conv.double().eval()


def test_decomposition_of_low_rank_weights_is_exact():
    torch.manual_seed(0)
    whole = whole_conv(12, 20, 2)
    tucker = TuckerConv2d(whole, 0.3).double().eval()
    first, last = tucker.core.in_channels, tucker.core.out_channels
    assert first < 12 and last < 20
    core = torch.randn(last, first, 3, 3, dtype=torch.float64)
    outer, inner = torch.randn(20, last).double(), torch.randn(12, first).double()
    weight = torch.zeros(20, 12, 3, 3, dtype=torch.float64)
    for o in range(20):
        for i in range(12):
            for r in range(last):
                for s in range(first):
                    weight[o, i] += outer[o, r] * inner[i, s] * core[r, s]
    tucker.decompose(weight)
    image = torch.randn(2, 12, 9, 11, dtype=torch.float64)
    expected = whole.norm(F.conv2d(image, weight, stride=2, padding=1))
    assert torch.allclose(tucker(image), expected, atol=1e-9)


@pytest.mark.parametrize("share", [0.2, 0.45])
@pytest.mark.parametrize("stride", [1, 2])
def test_ranks_cost_the_share(share, stride):
    first, last = tucker_ranks(128, 256, (3, 3), (stride, stride), share)
    cost = stride**2 * 128 * first + 9 * first * last + last * 256
    assert cost / (9 * 128 * 256) == pytest.approx(share, rel=0.02)


def test_ranks_refuse_a_share_that_is_none():
    with pytest.raises(ValueError, match=r"MODEL\.TUCKER\.SHARE 1\.5"):
        tucker_ranks(8, 8, (3, 3), (1, 1), 1.5)


def test_a_compressed_network_is_near_the_whole_one(tmp_path):
    """Nearer with more of its operations; stem, pyramid and heads are those of the whole one."""
    torch.manual_seed(0)
    study = study_of(tmp_path, "--set", "table3", "--opts", *NARROW)
    cfg = study.runs["fine-tuned", 1].config.clone()
    cfg.defrost()
    name, cfg.MODEL.BACKBONE.NAME = cfg.MODEL.BACKBONE.NAME, "build_width_resnet_fpn_backbone"
    whole = PersonSearchTrainer.build_model(cfg).eval()
    image, errors = torch.rand(1, 3, 64, 64), []
    cfg.MODEL.BACKBONE.NAME = name
    for share in (0.2, 0.8):
        cfg.MODEL.TUCKER.SHARE = share
        small = PersonSearchTrainer.build_model(cfg).eval()
        small.load_state_dict(compress(small, whole.state_dict()))
        with torch.no_grad():
            ours, theirs = (m.backbone(image)["p3"] for m in (small, whole))
        errors.append(float((ours - theirs).norm() / theirs.norm()))
        stem = "backbone.bottom_up.stem.conv1.weight"
        assert torch.equal(small.state_dict()[stem], whole.state_dict()[stem])
    assert errors[1] < 0.9 * errors[0]


def test_rows_train_what_they_are_named_after(tmp_path):
    runs = study_of(tmp_path, "--set", "table2").runs
    names = {row: run.config.MODEL.BACKBONE.NAME for (row, _), run in runs.items()}
    assert names["whole input"] == "build_width_resnet_fpn_backbone"
    assert names["half input"] == names["half input, distilled"] != names["whole input"]
    study = study_of(tmp_path, "--set", "table3", "--share", "0.2")
    starts = {run.config.MODEL.WEIGHTS for run in study.runs.values()}
    assert starts == {str(tmp_path / "starts" / "0.2.pth")}
    assert [run.config.MODEL.TUCKER.SHARE for run in study.runs.values()] == [0.2, 0.2]
    assert [row.paper for row in study.rows] == [(30.3,), (35.5,)]


def test_a_share_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        tables.parse_args(["--set", "table3", "--share", "1"])
    assert "--share 1.0" in capsys.readouterr().err


@pytest.mark.e2e
@pytest.mark.parametrize(
    "options, rows",
    [
        (["--set", "table2", "--rows", "half input, distilled"], ["half input, distilled"]),
        (["--set", "table3"], ["fine-tuned", "distilled"]),
    ],
)
def test_a_tiny_study(options, rows, tmp_path):
    generate_dataset(tmp_path / "data", PRESETS["tiny"], seed=0, progress=False)
    opts = ["SOLVER.IMS_PER_BATCH", "2", *NARROW]
    options += ["--seeds", "1", "--iterations", "1", "--teacher-iterations", "1", "--opts", *opts]
    options += ["--teacher-opts", *opts, "--output", str(tmp_path / "out")]
    run_script("DetectorKD", "tables", *options, KD_SEARCH_GENERATED=str(tmp_path / "data"))
    (path,) = (tmp_path / "out").glob("table*.json")
    content = json.loads(path.read_text())
    assert [entry["row"] for entry in content["table"]] == ["teacher", *rows]
    sizes = [run["params"] for run in [content["teachers"]["teacher"], *content["runs"]]]
    assert len(set(sizes[1:])) == 1
    assert sizes[1] < sizes[0]
    assert "small_networks" in sys.modules
