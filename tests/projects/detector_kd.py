"""What the tests of projects/DetectorKD share: where it is, and its configs."""

from tiny import REPO

PROJECT = REPO / "projects" / "DetectorKD"
CONFIGS = sorted((PROJECT / "configs").rglob("*.yaml"))
#: Configs to train with: not the parts they are made of.
RUNNABLE = [path for path in CONFIGS if not path.name.startswith("Base-")]


def name_of(path) -> str:
    return str(path.relative_to(PROJECT / "configs"))
