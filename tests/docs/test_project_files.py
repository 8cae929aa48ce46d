"""CITATION.cff, the workflow and the issue forms."""

import re

import pytest
import yaml
from tiny import REPO

import kd_search


def citation():
    return yaml.safe_load((REPO / "CITATION.cff").read_text())


def test_the_citation_has_the_version_and_licence_of_the_package():
    assert citation()["version"] == kd_search.__version__
    assert f'license="{citation()["license"]}"' in (REPO / "setup.py").read_text()


#: Without the rivals, which are methods to compare with.
PROJECTS = sorted(p.name for p in REPO.glob("projects/*/") if p.name != "Rivals")


@pytest.mark.parametrize("project", PROJECTS)
def test_the_citation_has_the_paper_of_every_project(project):
    """As the head of the project's page gives it: authors, title, venue and year."""
    head = (REPO / "projects" / project / "README.md").read_text().split("\n\n")[1]
    head = " ".join(head.split())
    (paper,) = [one for one in citation()["references"] if f"projects/{project}" in one["notes"]]
    names = [f"{one['given-names']} {one['family-names']}" for one in paper["authors"]]
    assert head.startswith(f"{', '.join(names)}: *{paper['title']}*")
    venue = re.search(r"\((\w+)\)", paper["collection-title"])[1]
    assert f"{venue} {paper['year']}" in head
    assert paper.get("url", head) in head


def test_the_workflow_and_the_forms_are_valid():
    workflow = yaml.safe_load((REPO / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1] == {"run": ".ci/run"}
    forms = [*(REPO / ".github/ISSUE_TEMPLATE").glob("*.yml")]
    forms = [yaml.safe_load(path.read_text()) for path in forms if path.stem != "config"]
    assert forms
    for form in forms:
        assert form["name"] and form["description"]
        assert all(part["attributes"]["label"] for part in form["body"])
