"""Config keys: all have comments, Detectron2's keep their defaults, other packages add theirs."""

import re
import sys
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.config import get_cfg as get_detectron2_cfg
from detectron2.modeling import META_ARCH_REGISTRY

import kd_search.distillation  # noqa: F401  registers what configs name
from kd_search.config import get_cfg, import_modules, register_config, registry

REPO = Path(__file__).resolve().parent.parent
#: Without those that have keys of another package; its tests merge them.
CONFIGS = sorted(
    path
    for folder in (REPO / "configs", *REPO.glob("projects/*/configs"))
    for path in folder.rglob("*.yaml")
    if folder.parent.name != "QEEPS"
)


def test_detectron2_keys_keep_their_defaults():
    plain, ours = get_detectron2_cfg(), get_cfg()

    def check(a, b, prefix=""):
        for key, value in a.items():
            if isinstance(value, dict):
                check(value, b[key], f"{prefix}{key}.")
            else:
                assert b[key] == value, prefix + key

    check(plain, ours)


def test_every_key_has_a_comment():
    import make_config_reference as reference

    lines = reference.read_source().splitlines()
    bare = [
        line
        for before, line in zip(lines, lines[1:])
        if re.match(r"\s+cfg\.[A-Z0-9_.]+ = (?!CN\(\))", line)
        and not before.strip().startswith("#")
    ]
    assert bare == []


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: str(p.relative_to(REPO)))
def test_shipped_config_merges(path):
    cfg = get_cfg()
    cfg.merge_from_file(str(path))
    assert cfg.MODEL.META_ARCHITECTURE in META_ARCH_REGISTRY
    assert cfg.DISTILLATION.STUDENT_META_ARCH in META_ARCH_REGISTRY


def test_configuration_reference_is_current():
    import make_config_reference as reference

    keys = reference.read_keys(reference.read_source())
    assert reference.TARGET.read_text() == reference.render(keys)


def test_configuration_reference_names_every_key():
    import make_config_reference as reference

    plain, ours = get_detectron2_cfg(), get_cfg()

    def leaves(node, prefix=""):
        for key, value in node.items():
            yield from (
                leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]
            )

    added = set(leaves(ours)) - set(leaves(plain))
    described = {key: text for key, _, text in reference.read_keys(reference.read_source())}
    assert set(described) == added
    assert all(described.values())


@pytest.fixture
def register(monkeypatch):
    """``register_config`` for functions of one test."""
    monkeypatch.setattr(registry, "_registered", dict(registry._registered))
    return register_config


def test_every_config_has_registered_keys_once(register):
    calls = []

    @register
    def add_keys(cfg):
        calls.append(1)
        cfg.MODEL.MINE = CfgNode({"SIZE": 3})
        cfg.DISTILLATION.MINE_WEIGHT = 0.5

    assert register(add_keys) is add_keys
    first, second = get_cfg(), get_cfg()
    assert len(calls) == 2
    assert first.MODEL.MINE.SIZE == 3 and second.DISTILLATION.MINE_WEIGHT == 0.5
    first.MODEL.MINE.SIZE = 4
    assert second.MODEL.MINE.SIZE == get_cfg().MODEL.MINE.SIZE == 3


@pytest.mark.parametrize("key", ["MODEL.DEVICE", "DISTILLATION.TERMS", "MODEL.MINE"])
def test_two_packages_with_one_key_are_refused(register, key):
    @register
    def add_first(cfg):
        cfg.MODEL.MINE = 1

    @register
    def add_second(cfg):
        node, name = key.split(".")
        cfg[node][name] = 2

    with pytest.raises(ValueError, match=rf"add_second.*{key}") as error:
        get_cfg()
    assert ("add_first" in str(error.value)) == (key == "MODEL.MINE")


def test_a_node_that_replaces_another_is_refused(register):
    @register
    def add_keys(cfg):
        cfg.DISTILLATION.TEACHER = CfgNode({"MINE": 1})

    with pytest.raises(ValueError, match=r"add_keys.*DISTILLATION\.TEACHER\.CONFIG_FILE"):
        get_cfg()


def test_an_imported_module_registers_its_keys(register, tmp_path, monkeypatch):
    (tmp_path / "my_keys.py").write_text(
        "from kd_search.config import register_config\n"
        "@register_config\n"
        "def add_keys(cfg):\n"
        "    cfg.MINE = 7\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        import_modules(["my_keys"])
        assert get_cfg().MINE == 7
    finally:
        sys.modules.pop("my_keys", None)


@pytest.mark.parametrize("name", ["no_such_package", "kd_search.no_such_module"])
def test_an_import_of_a_missing_module_is_named(name):
    with pytest.raises(ValueError, match=rf"--import {name}"):
        import_modules(["json", name])


def test_a_module_that_misses_another_one_is_reported_as_such(tmp_path, monkeypatch):
    (tmp_path / "needs_more.py").write_text("import no_such_package\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        import_modules(["needs_more"])


def test_own_data_sets_are_registered_from_the_config(tmp_path):
    from kd_search.data import get_id_map
    from kd_search.engine import build_config
    from kd_search.synthetic import PRESETS, generate_dataset

    root = tmp_path / "data"
    generate_dataset(root, PRESETS["tiny"], seed=0, progress=False)
    files = [str(root / "train.json"), str(root / "train" / "images")]
    own = str([["own_for_test", *files]])
    names = ["DATASETS.TRAIN", "('own_for_test',)", "MODEL.META_ARCHITECTURE", "PersonSearchRCNN"]
    cfg = build_config("", ["DATASETS.PERSON_SEARCH_COCO", own, *names])
    assert cfg.MODEL.OIM.NUM_IDS == len(get_id_map("own_for_test")) > 1
    # The same once more is no clash; the same name for something else is.
    build_config("", ["DATASETS.PERSON_SEARCH_COCO", own, *names])
    other = str([["own_for_test", "other.json", "images"]])
    with pytest.raises(ValueError, match="own_for_test is taken"):
        build_config("", ["DATASETS.PERSON_SEARCH_COCO", other, *names])
    with pytest.raises(ValueError, match="PERSON_SEARCH_COCO.*must be"):
        build_config("", ["DATASETS.PERSON_SEARCH_COCO", "[['only_a_name']]"])


def test_motchallenge_folders_are_registered_from_the_config(real_data):
    from kd_search.data import get_person_search_dicts
    from kd_search.engine import build_config

    entry = str(["mot_for_test", str(real_data("mot17_mini")), "queries=yes", "gallery_gap=3"])
    build_config("", ["DATASETS.PERSON_SEARCH_MOT", f"[{entry}]"])
    dicts, ids = get_person_search_dicts("mot_for_test")
    assert len(dicts) == 12 and len(ids) > 20
    other = entry.replace("gallery_gap=3", "gallery_gap=4")
    with pytest.raises(ValueError, match="PERSON_SEARCH_MOT: the name mot_for_test is taken"):
        build_config("", ["DATASETS.PERSON_SEARCH_MOT", f"[{other}]"])
    with pytest.raises(ValueError, match="mot_wrong.*colour"):
        build_config("", ["DATASETS.PERSON_SEARCH_MOT", "[['mot_wrong', 'x', 'colour=red']]"])
