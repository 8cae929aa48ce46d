import hashlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from PIL import Image

from kd_search.cli import generate as tool
from kd_search.data.reid import get_reid_samples
from kd_search.synthetic import TRACKLETS_PRESETS, TrackletsConfig, generate_tracklets

TINY = TRACKLETS_PRESETS["tiny"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    root = tmp_path_factory.mktemp("generated") / "tracklets"
    assert generate_tracklets(root, TINY, seed=4, progress=False)
    return root


def _digests(root):
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


def test_the_sets_are_registered(tiny, monkeypatch):
    monkeypatch.setenv("KD_SEARCH_TRACKLETS", str(tiny))
    train, ids = get_reid_samples("kd_tracklets_train")
    assert ids.to_list() == [1, 2, 3, 4] and len(train) == 4 * 2 * 2
    assert all(2 <= len(s["file_names"]) <= 4 for s in train)
    test, ids = get_reid_samples("kd_tracklets_test")
    assert ids.to_list() == [5, 6, 7]
    roles = Counter((s["role"], s["person_id"] < 0) for s in test)
    # One query of each identity and camera, one in the gallery; strangers apart.
    assert roles == {("query", False): 6, ("gallery", False): 6, ("gallery", True): 3}
    cameras = defaultdict(set)
    for sample in test:
        cameras[sample["role"], sample["person_id"]].add(sample["camera_id"])
    assert all(cameras["gallery", row] == {1, 2} for row in range(3))


def test_crops_have_the_size_asked_for(tiny):
    for path in (tiny / "bounding_box_train").iterdir():
        with Image.open(path) as image:
            assert image.size == (TINY.width, TINY.height) and image.mode == "RGB"


def test_equal_settings_give_equal_bytes_and_others_do_not(tiny, tmp_path):
    generate_tracklets(tmp_path / "again", TINY, seed=4, progress=False)
    assert _digests(tmp_path / "again") == _digests(tiny)
    generate_tracklets(tmp_path / "other", TINY, seed=5, progress=False)
    same = set(_digests(tmp_path / "other").items()) & set(_digests(tiny).items())
    assert not same


def test_frames_of_a_tracklet_look_more_alike_than_other_people(tiny):
    """In one camera, or else the light would tell people apart."""
    means = defaultdict(list)
    for path in sorted((tiny / "bounding_box_train").iterdir()):
        if "_c1s" in path.name:
            image = np.asarray(Image.open(path), dtype=np.float64)
            # Where the trunk is.
            means[path.name[:4]].append(image[18:34, 11:21].mean(axis=(0, 1)))
    within = np.mean([np.std(values, axis=0).mean() for values in means.values()])
    between = np.std([np.mean(values, axis=0) for values in means.values()], axis=0).mean()
    assert between > within


def test_a_set_that_is_there_is_kept_and_another_one_never_lost(tiny, tmp_path):
    before = _digests(tiny)
    assert not generate_tracklets(tiny, TINY, seed=4, progress=False)
    with pytest.raises(ValueError, match="seed.*--overwrite"):
        generate_tracklets(tiny, TINY, seed=5, progress=False)
    assert _digests(tiny) == before
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="no generated set of tracklets"):
        generate_tracklets(tmp_path, TINY, overwrite=True, progress=False)
    assert (tmp_path / "mine.txt").read_text() == "mine"


def test_a_torn_set_is_noticed(tmp_path):
    root = tmp_path / "set"
    generate_tracklets(root, TINY, progress=False)
    next((root / "query").iterdir()).unlink()
    with pytest.raises(ValueError, match="lacks images"):
        generate_tracklets(root, TINY, progress=False)
    assert generate_tracklets(root, TINY, overwrite=True, progress=False)
    assert not list(tmp_path.glob(".*"))


def test_a_missing_set_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("KD_SEARCH_TRACKLETS", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="kd_tracklets_train: .*--kind tracklets"):
        get_reid_samples("kd_tracklets_train")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_cameras": 1}, "num_cameras must be 2 to 9"),
        ({"tracklets_per_camera": 1}, "tracklets_per_camera must be at least 2"),
        ({"min_frames": 5, "max_frames": 4}, "min_frames and max_frames must rise"),
        ({"box_noise": 0.5}, "box_noise must lie"),
        ({"height": 20}, "width and height must be 24x48 or more"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TrackletsConfig(**settings)


def test_the_tool_makes_them(tiny, tmp_path, capsys):
    options = ["--kind", "tracklets", "--preset", "tiny", "--seed", "4"]
    assert tool.main([*options, "--output", str(tiny)]) == 0
    assert capsys.readouterr().out.strip() == f"kept {tiny}: 7 identities, seed 4"
    assert tool.main([*options, "--output", str(tmp_path / "x"), "--num-cameras", "1"]) == 2
    assert capsys.readouterr().err.strip().endswith("num_cameras must be 2 to 9")
    with pytest.raises(SystemExit):
        tool.main([*options, "--num-train-images", "3"])
    assert "--num-train-images belongs to --kind people or objects" in capsys.readouterr().err
    config = tool.build_config(tool.parse_args([*options, "--num-test-ids", "5"]))
    assert config.num_test_ids == 5 and config.width == TINY.width
