"""Analyses of networks of projects/VKD: choice of networks, cameras in embeddings, saliency."""

import json

import numpy as np
import pytest
import torch
from linear_probe import fit_linear_probe
from PIL import Image
from tiny import REPO
from vkd_networks import choose_networks, network_parser, parse_networks
from vkd_study import make_study

from kd_search.data.reid import get_reid_samples
from kd_search.engine import PersonSearchTrainer
from kd_search.experiments import build_run_config
from kd_search.experiments.results_file import read_study
from kd_search.synthetic import TRACKLETS_PRESETS, generate_tracklets
from tests.projects.project_files import finish, load_script

camera_bias, saliency = load_script("VKD", "camera_bias"), load_script("VKD", "saliency")

CONFIGS = [f"projects/VKD/configs/generated/{kind}_r18w50.yaml" for kind in ("teacher", "student")]
SMALL = ["MODEL.RESNETS.WIDTH_MULTIPLIER", "0.125", "REID_DATA.SIZE", "[64,32]"]


@pytest.fixture(scope="module")
def tracklets(tmp_path_factory):
    root = tmp_path_factory.mktemp("tracklets")
    generate_tracklets(root, TRACKLETS_PRESETS["tiny"], seed=0, progress=False)
    return root


@pytest.fixture(autouse=True)
def _from_the_checkout(tracklets, monkeypatch):
    monkeypatch.chdir(REPO)
    monkeypatch.setenv("KD_SEARCH_TRACKLETS", str(tracklets))


def save_weights(config, path, seed):
    """Weights as an untrained network has them."""
    torch.manual_seed(seed)
    cfg = build_run_config(config, SMALL, path.parent, eval_only=True)
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": PersonSearchTrainer.build_model(cfg).state_dict()}, path)
    return path


@pytest.fixture(scope="module")
def weights(tracklets, tmp_path_factory):
    """Of a teacher and of a student."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPO)
        patch.setenv("KD_SEARCH_TRACKLETS", str(tracklets))
        return [save_weights(c, folder / f"{i}.pth", i) for i, c in enumerate(CONFIGS)]


def pairs(weights, *more):
    files = ["--config", *CONFIGS, "--weights", *map(str, weights)]
    return [*files, "--names", "teacher", "student", *map(str, more), "--opts", *SMALL]


def chosen(*options):
    return choose_networks(parse_networks(network_parser(""), [*map(str, options)]))


def test_pairs_of_one_name_are_seeds_of_one_row(weights, tmp_path):
    files = ["--config", CONFIGS[0], *CONFIGS, "--weights", weights[0], *weights]
    found = chosen(*files, "--to", tmp_path)
    rows = [(network.row, network.seed) for network in found.networks]
    assert rows == [("teacher_r18w50", 1), ("teacher_r18w50", 2), ("student_r18w50", 1)]
    assert found.base == "teacher_r18w50" and found.folder == tmp_path and found.suffix == ""
    named = chosen(*pairs(weights))
    assert [network.row for network in named.networks] == ["teacher", "student"]
    model, cfg = named.networks[1].load()
    # The student alone, without its teacher.
    assert not model.training and cfg.MODEL.META_ARCHITECTURE == "ReIDNetwork"
    theirs = torch.load(weights[1], weights_only=True)["model"]
    assert all(torch.equal(value, theirs[key]) for key, value in model.state_dict().items())


def test_finished_runs_of_a_study(tmp_path):
    options = ["--set", "generated", "--output", tmp_path, "--seeds", 1, 2, "--opts", *SMALL]
    options += ["--teacher-opts", *SMALL, "--rows", "teacher", "all"]
    with pytest.raises(ValueError, match="has no finished run"):
        chosen(*options)
    study = make_study(camera_bias.parse_args([*map(str, options)]))
    for key in (("teacher", 1), ("teacher", 2), ("all", 2)):
        run = study.runs[key]
        save_weights(run.config_file, run.weights, 0)
        finish(run, {"i2v_mAP": 1.0})
    found = chosen(*options)
    assert [(n.row, n.seed) for n in found.networks] == [("teacher", 1), ("teacher", 2), ("all", 2)]
    assert found.folder == tmp_path and found.suffix == "_terms" and found.base == "teacher"
    assert found.networks[2].load()[0].num_ids == TRACKLETS_PRESETS["tiny"].num_train_ids
    pictures = saliency.pictures_of(found)
    assert {stem: columns for stem, (_, columns) in pictures.items()} == {
        "saliency_terms_seed1": ["teacher"],
        "saliency_terms_seed2": ["teacher", "all"],
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--config", CONFIGS[0]], "--weights"),
        (["--config", CONFIGS[0], "--weights", "a", "--names", "a", "b"], "--names must"),
    ],
)
def test_wrong_options_are_usage_errors(options, message, capsys):
    with pytest.raises(SystemExit):
        chosen(*options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("script", [camera_bias, saliency])
def test_missing_weights_are_one_line(script, weights, tmp_path, capsys):
    (tmp_path / "none").mkdir()
    options = pairs([weights[0], tmp_path / "none" / "w.pth"], "--to", tmp_path)
    assert script.main(options) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --weights: ")


def sample(person_id, camera_id, names, role="both"):
    keys = {"person_id": person_id, "camera_id": camera_id, "file_names": list(names)}
    return {**keys, "role": role, "boxes": None}


def test_frames_are_those_of_people_in_known_cameras():
    samples = [sample(0, 2, "abcde"), sample(-1, 2, "f"), sample(1, -1, "g"), sample(1, 0, "hi")]
    found = camera_bias.frames_of(samples, 2)
    assert [(f.file_name, f.camera_id) for f in found] == [("a", 2), ("d", 2), ("h", 0), ("i", 0)]
    assert [f.file_name for f in camera_bias.frames_of(samples, 9)] == list("abcdehi")
    boxed = {**sample(0, 1, "ab"), "boxes": [[0, 0, 5, 9], [1, 1, 6, 9]]}
    assert [f.box for f in camera_bias.frames_of([boxed], 2)] == [(0, 0, 5, 9), (1, 1, 6, 9)]


def by_hand(row, weights):
    """Accuracies of one of the two networks, picture by picture."""
    number = ["teacher", "student"].index(row)
    model, cfg = chosen(*pairs(weights)).networks[number].load()
    sets = []
    for name in ("kd_tracklets_train", "kd_tracklets_test"):
        embeddings, cameras = [], []
        for one in get_reid_samples(name)[0]:
            for place in {0, -(-len(one["file_names"]) // 2)} if one["person_id"] >= 0 else ():
                picture = Image.open(one["file_names"][place]).convert("RGB")
                picture = picture.resize((32, 64), Image.Resampling.BICUBIC)
                pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
                assert cfg.INPUT.FORMAT == "RGB"
                with torch.no_grad():
                    (output,) = model([{"frames": pixels[None]}])
                embedding = output["embedding"].double()
                embeddings.append((embedding / embedding.norm()).numpy())
                cameras.append(one["camera_id"])
        sets.append((np.stack(embeddings), np.array(cameras)))
    probe = fit_linear_probe(*sets[0], regulariser=1e-3)
    return {
        "accuracy": 100 * probe.accuracy(*sets[1]),
        camera_bias.FITTED: 100 * probe.accuracy(*sets[0]),
    }


def test_cameras_of_two_networks(weights, tmp_path, monkeypatch):
    file = tmp_path / "results.json"
    options = pairs(weights, "--to", tmp_path, "--frames", 2, "--results", file)
    assert camera_bias.main(options) == 0
    entries = json.loads((tmp_path / "camera_bias.json").read_text())["networks"]
    test = get_reid_samples("kd_tracklets_test")[0]
    cameras = [f.camera_id for f in camera_bias.frames_of(test, 2)]
    for entry, path in zip(entries, weights):
        assert entry["weights"] == str(path) and entry["test_frames"] == len(cameras)
        share = 100 * np.bincount(cameras).max() / len(cameras)
        assert entry["metrics"]["chance"] == pytest.approx(share)
        for key, value in by_hand(entry["row"], weights).items():
            assert entry["metrics"][key] == pytest.approx(value), key
    lines = (tmp_path / "camera_bias.md").read_text().splitlines()
    assert lines[2].startswith("| row | accuracy | chance | accuracy on the fitted frames |")
    assert [line.split(" | ")[0] for line in lines[4:6]] == ["| teacher", "| student"]
    assert Image.open(tmp_path / "camera_bias.png").size[0] > 500

    study = read_study(file)
    assert study.dataset == "kd_tracklets_test" and not study.protocol.tuned
    assert [(e["row"], e["metrics"]["accuracy"]["mean"]) for e in study.table()] == [
        (e["row"], e["metrics"]["accuracy"]) for e in entries
    ]
    assert study.environments[0].data.keys() == {"kd_tracklets_train", "kd_tracklets_test"}

    done = []
    real = camera_bias.measure
    monkeypatch.setattr(camera_bias, "measure", lambda n, *a: done.append(n.row) or real(n, *a))
    assert camera_bias.main(options) == 0 and done == []
    # A retrained network is measured again; the same weights give the same numbers.
    torch.save(torch.load(weights[1], weights_only=True), weights[1])
    assert camera_bias.main(options) == 0 and done == ["student"]
    again = json.loads((tmp_path / "camera_bias.json").read_text())["networks"]
    assert [e["metrics"] for e in again] == [e["metrics"] for e in entries]
    assert len(again) == 2


@pytest.mark.parametrize("content", ["{", "[1]", '{"networks": [{"row": "teacher"}]}'])
def test_foreign_results_files_are_refused(content, weights, tmp_path, capsys):
    (tmp_path / "camera_bias.json").write_text(content)
    assert camera_bias.main(pairs(weights, "--to", tmp_path)) == 2
    assert "camera_bias.json" in capsys.readouterr().err
    assert (tmp_path / "camera_bias.json").read_text() == content


def test_table_of_seeds_by_hand(tmp_path):
    about = {"cameras": [1, 2], "train_frames": 9, "test_frames": 8, "regulariser": 0.001}
    about.update(train_set="a_train", test_set="a_test")

    def entry(row, seed, accuracy):
        metrics = {"accuracy": accuracy, "chance": 50.0, camera_bias.FITTED: 90.0}
        return {"row": row, "seed": seed, "metrics": metrics, **about}

    entries = [entry("teacher", 1, 80.0), entry("teacher", 2, 82.0)]
    entries += [entry("all", 1, 70.0), entry("all", 2, 73.0)]
    networks = camera_bias.Networks([], "teacher", tmp_path, "_terms")
    args = camera_bias.parse_args([])
    lines = camera_bias.write(entries, networks, args).splitlines()
    assert lines[0].endswith(
        "fitted to 9 frames of a_train, scored on 8 of a_test; regulariser 0.001"
    )
    assert lines[4] == "| teacher | 81.0 ± 1.4 | 50.0 ± 0.0 | 90.0 ± 0.0 | - | - | 80.0, 82.0 |"
    gain = "-9.5 ± 0.7 | -15.9 to -3.1"
    assert lines[5] == f"| all | 71.5 ± 2.1 | 50.0 ± 0.0 | 90.0 ± 0.0 | {gain} | 70.0, 73.0 |"
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "camera_bias_terms.md",
        "camera_bias_terms.png",
    ]


def test_people_of_a_picture_are_chosen_by_a_rule():
    samples = [sample(-1, 1, "x", "gallery")]
    for person_id in range(5):
        samples.append(sample(person_id, 1, "a"))
        samples.append(sample(person_id, 1, "b", "gallery"))
        if person_id != 2:  # who has nothing to be compared with
            samples.append(sample(person_id, 3, "c"))
    samples += [sample(5, -1, "d"), sample(5, -1, "e", "gallery")]
    people = saliency.choose_people(samples, 3)
    assert [p.picture["person_id"] for p in people] == [0, 3, 5]
    assert [s["file_names"] for s in people[0].own] == [["c"]]
    assert [s["file_names"] for s in people[2].own] == [["e"]]
    assert all(s["person_id"] not in (0, -1) for s in people[0].others)
    assert len(people[0].others) == 16 - 3
    assert len(saliency.choose_people(samples, 99)) == 5
    with pytest.raises(ValueError, match="no person of the test set"):
        saliency.choose_people(samples[1:3], 3)


@pytest.mark.parametrize("of", ["margin", "logit"])
def test_saliency_of_two_networks(of, weights, tmp_path):
    options = pairs(weights, "--to", tmp_path, "--people", 2, "--of", of)
    assert saliency.main(options) == 0
    first = (tmp_path / "saliency.png").read_bytes()
    assert Image.open(tmp_path / "saliency.png").size[1] > 2 * 224
    assert saliency.main(options) == 0
    assert (tmp_path / "saliency.png").read_bytes() == first
    assert [path.name for path in tmp_path.iterdir()] == ["saliency.png"]
