"""tools/derive_config.py: configs for other networks and data sets."""

import derive_config
import pytest
from tiny import REPO

from tests.projects.project_files import TREE, commands, merged


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mars").mkdir()
    (tmp_path / "Base-r50.yaml").write_text("MODEL: {RESNETS: {DEPTH: 50}}\n")
    (tmp_path / "Base-r34.yaml").write_text("MODEL: {RESNETS: {DEPTH: 34}}\n")
    (tmp_path / "mars" / "net_r50.yaml").write_text(
        '_BASE_: "../Base-r50.yaml"\nOUTPUT_DIR: "output/mars/r50"\n'
    )


def test_all_combinations_are_written_and_merge(tmp_path, capsys):
    argv = ["mars/net_r50.yaml", "--replace", "r50", "r50", "r34", "--replace", "mars", "veri"]
    assert derive_config.main(argv) == 0
    assert "wrote veri/net_r34.yaml" in capsys.readouterr().out
    for name, depth in (("r50", 50), ("r34", 34)):
        cfg = merged(tmp_path / "veri" / f"net_{name}.yaml")
        assert cfg.MODEL.RESNETS.DEPTH == depth and cfg.OUTPUT_DIR == f"output/veri/{name}"
    assert len(list(tmp_path.rglob("*.yaml"))) == 5 and not list(tmp_path.rglob(".*"))
    assert derive_config.main(argv) == 0


@pytest.mark.parametrize(
    "argv, word",
    [
        (["mars/net_r50.yaml", "--replace", "r99", "r34"], "r99"),
        (["mars/net_r18.yaml", "--replace", "r18", "r34"], "mars/net_r18.yaml"),
        (["mars/net_r50.yaml", "--replace", "output", "elsewhere"], "mars/net_r50.yaml"),
        # Its base does not exist.
        (["mars/net_r50.yaml", "--replace", "r50", "r77"], "mars/net_r77.yaml"),
        (["mars/net_r50.yaml", "--replace", "r50", "taken"], "mars/net_taken.yaml"),
    ],
)
def test_what_cannot_be_derived_is_one_line_and_writes_nothing(argv, word, tmp_path, capsys):
    (tmp_path / "mars" / "net_taken.yaml").write_text("MODEL: {}\n")
    before = sorted(tmp_path.rglob("*"))
    assert derive_config.main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and word in line
    assert sorted(tmp_path.rglob("*")) == before


def test_commands_of_the_readmes_write_configs_that_merge(monkeypatch, capsys):
    monkeypatch.chdir(TREE)
    for options in commands("GlobalKnowledge", "tools/derive_config.py"):
        assert derive_config.main(options) == 0, capsys.readouterr().err
    assert not list((REPO / "projects/GlobalKnowledge/configs").glob("prw"))
