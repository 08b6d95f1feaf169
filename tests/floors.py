"""Prints the floors in pyproject.toml as constraints for pip: these versions exactly.

    python tests/floors.py >floors.txt
    pip install --constraint floors.txt --editable '.[cli,plot]'

Only of what a user installs: the tests' own tools are as new as they come.
"""

import pathlib
import re
import tomllib
from collections.abc import Iterable, Iterator

PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("cli", "fleet", "plot", "train")

_FLOOR = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?>=(?P<floor>[\d.]+)(,<[\d.]+)?")


def main() -> None:
    """Prints a line for each package."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    print("\n".join(constraints(project)))


def constraints(project: dict) -> list[str]:
    """Returns `name==floor` of each dependency, and of each in an extra for users.

    Raises:
      ValueError: A requirement has no floor, or has two.
    """
    floors: dict[str, str] = {}
    for name, floor in _floors(_requirements(project)):
        if floors.setdefault(name, floor) != floor:
            raise ValueError(
                f"pyproject.toml: {name} has two floors, {floors[name]} and {floor}; "
                "expected one in all extras."
            )
    return [f"{name}=={floor}" for name, floor in floors.items()]


def _requirements(project: dict) -> Iterator[str]:
    yield from project["dependencies"]
    for extra in EXTRAS:
        yield from project["optional-dependencies"][extra]


def _floors(requirements: Iterable[str]) -> Iterator[tuple[str, str]]:
    for requirement in requirements:
        found = _FLOOR.fullmatch(requirement)
        if found is None:
            raise ValueError(
                f"pyproject.toml: the requirement {requirement!r} has no floor; "
                "expected NAME>=VERSION."
            )
        yield found["name"], found["floor"]


if __name__ == "__main__":
    main()
