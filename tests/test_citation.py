"""Test the citation of the software and of the paper behind its method."""

import pathlib
import tomllib

import pytest
import yaml  # Flax depends on it.

import para_jax

ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture
def citation():
    return yaml.safe_load((ROOT / "CITATION.cff").read_text())


def test_it_is_of_this_version_and_licence(citation):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert citation["version"] == project["version"] == para_jax.__version__
    assert citation["license"] == project["license"]


def test_it_has_what_the_format_asks_for(citation):
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    for work in (citation, *citation["references"]):
        assert work["title"]
        assert all("name" in x or "family-names" in x for x in work["authors"])
    assert citation["message"]


def test_it_refers_to_the_paper_that_the_readme_links(citation):
    (paper,) = citation["references"]

    assert paper["url"] in (ROOT / "README.md").read_text()
    assert paper["title"] in " ".join((ROOT / "README.md").read_text().split())
    assert [x["family-names"] for x in paper["authors"]] == [
        "Kumaravelu",
        "Gupta",
        "Srijith",
    ]
