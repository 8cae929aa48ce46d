"""Scripts of a project import each other by their plain names: their folders go on the path."""

import sys

from tiny import REPO

PROJECTS = (
    *("DetectorKD", "DKD", "GlobalKnowledge"),
    *("PersonSearchKD", "QEEPS", "Rivals", "VKD"),
)
sys.path.extend(str(REPO / "projects" / name) for name in PROJECTS)
