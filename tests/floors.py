"""Print the version floors of pyproject.toml as exact constraints for pip.

    python tests/floors.py >floors.txt
    pip install --constraint floors.txt --editable '.[cli,plot]'

Only dependencies of an installation for users are listed: the tests' own tools stay at
their newest versions.
"""

import pathlib
import re
import tomllib
from collections.abc import Iterable, Iterator

PROJECT = pathlib.Path(__file__).parents[1] / "pyproject.toml"
EXTRAS = ("cli", "fleet", "keras", "plot", "train")

_FLOOR = re.compile(r"(?P<name>[\w.-]+)(\[[^]]*\])?>=(?P<floor>[\d.]+)(,<[\d.]+)?")


def main() -> None:
    """Print a line for each package."""
    project = tomllib.loads(PROJECT.read_text())["project"]
    print("\n".join(constraints(project)))


def constraints(project: dict) -> list[str]:
    """Return `name==floor` for each dependency, including the extras for users.

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
