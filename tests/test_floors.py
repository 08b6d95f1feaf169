"""Test the constraints of `make test-floors`: each requirement's lowest version."""

import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from tests import floors

PROJECT = tomllib.loads(floors.PROJECT.read_text())["project"]


def project(*requirements, **extras):
    extras = {name: [] for name in floors.EXTRAS} | extras
    return {"dependencies": requirements, "optional-dependencies": extras}


def test_a_floor_is_the_lowest_version_that_its_requirement_allows():
    lines = [Requirement(line) for line in floors.constraints(PROJECT)]
    found = {x.name: next(iter(x.specifier)) for x in lines}

    groups = [PROJECT["dependencies"]]
    groups += [PROJECT["optional-dependencies"][x] for x in floors.EXTRAS]
    asked = [Requirement(line) for group in groups for line in group]

    assert set(found) == {x.name for x in asked}
    for requirement in asked:
        floor = found[requirement.name]
        (least,) = (x for x in requirement.specifier if x.operator == ">=")
        assert floor.operator == "=="
        assert Version(floor.version) == Version(least.version)
        assert floor.version in requirement.specifier


def test_an_extra_of_a_package_and_a_cap_are_left_out():
    asked = project("ray[data]>=2.5", "numpy>=2.0,<3")

    assert floors.constraints(asked) == ["ray==2.5", "numpy==2.0"]


@pytest.mark.parametrize("requirement", ["jax", "jax==0.10", "jax<1", "jax>0.10"])
def test_a_requirement_without_a_floor_is_named(requirement):
    with pytest.raises(ValueError, match=f"'{requirement}' has no floor"):
        floors.constraints(project("numpy>=2.0", requirement))


def test_two_floors_of_one_package_are_refused():
    with pytest.raises(ValueError, match=r"rich has two floors, 14 and 13"):
        floors.constraints(project(cli=["rich>=14"], train=["rich>=13"]))
