"""Check the output of `make dist`: its contents, and that it works once installed.

python -m tests.dist           # of the files in dist/
"""

import argparse
import email
import os
import pathlib
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile

ROOT = pathlib.Path(__file__).parents[1]
NAME = "para_jax"
# Files beside the package. hatchling adds some by itself.
IN_SDIST = ("CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml")
BY_HATCHLING = (".gitignore", "PKG-INFO")
IN_WHEEL = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", "licenses/LICENSE")

# The setup that the README's first block assumes.
BEFORE = """
import shutil, sys
from importlib.util import find_spec

import para_jax

assert para_jax.__file__.startswith(sys.prefix), para_jax.__file__
assert find_spec("tests") is None and find_spec("train") is None
shutil.copytree(sys.argv[1], "adapter")


def accuracy(adapters):
    return float(sum(x.rank for x in adapters.values()) > 100)


"""


def package(root: pathlib.Path = ROOT) -> set[str]:
    """Return the files of the package: its modules and the `py.typed` marker."""
    modules = (root / NAME).rglob("*.py")
    return {x.relative_to(root).as_posix() for x in modules} | {f"{NAME}/py.typed"}


def in_wheel(path: pathlib.Path) -> set[str]:
    with zipfile.ZipFile(path) as file:
        return {x for x in file.namelist() if not x.endswith("/")}


def in_sdist(path: pathlib.Path) -> set[str]:
    with tarfile.open(path) as file:
        return {x.name for x in file.getmembers() if not x.isdir()}


def wheel(version: str, modules: set[str]) -> set[str]:
    return modules | {f"{NAME}-{version}.dist-info/{x}" for x in IN_WHEEL}


def sdist(version: str, modules: set[str]) -> set[str]:
    whole = modules | {*IN_SDIST, *BY_HATCHLING}
    return {f"{NAME}-{version}/{x}" for x in whole}


def differences(what: str, found: set[str], expected: set[str]) -> list[str]:
    """Return a line for each missing or unexpected file."""
    lines = [f"{what}: {x} is missing" for x in sorted(expected - found)]
    return lines + [
        f"{what}: {x} should not be there" for x in sorted(found - expected)
    ]


def described(path: pathlib.Path, version: str) -> list[str]:
    """Return the differences between a wheel's metadata and pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    with zipfile.ZipFile(path) as file:
        text = file.read(f"{NAME}-{version}.dist-info/METADATA").decode()
    found = email.message_from_string(text)
    expected = {
        "Name": project["name"],
        "Version": version,
        "Summary": project["description"],
        "License-Expression": project["license"],
        "License-File": "LICENSE",
        "Requires-Python": project["requires-python"],
    }
    return [
        f"METADATA: {name} is {found[name]}, and should be {value}"
        for name, value in expected.items()
        if found[name] != value
    ]


def first_block(readme: str) -> str:
    return re.search(r"^```python\n(.*?)^```", readme, re.M | re.S)[1]


def installed(path: pathlib.Path, version: str, folder: pathlib.Path) -> None:
    """Install a wheel into an empty environment and run the README's first block.

    Raises:
      subprocess.CalledProcessError: if something fails.
    """
    block = first_block((ROOT / "README.md").read_text())
    # Without extras, except for the one in the block itself.
    extra = "[plot]" if re.search(r"\bimport plot\b", block) else ""
    scripts = folder / "venv" / "bin"
    subprocess.run([sys.executable, "-m", "venv", folder / "venv"], check=True)
    python = [scripts / "python", "-I"]
    words = ["--quiet", "--disable-pip-version-check", "--progress-bar", "off"]
    wanted = f"{path.resolve()}{extra}"
    subprocess.run([*python, "-m", "pip", "install", *words, wanted], check=True)
    subprocess.run([*python, "-m", "pip", "check"], check=True)

    home = folder / "home"
    home.mkdir()
    (home / "block.py").write_text(BEFORE + block)
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(folder)}
    adapter = ROOT / "train/assets/minilm-movie-r16"
    for command in (
        [*python, "-W", "error::DeprecationWarning:__main__", "block.py", adapter],
        [*python, scripts / "para", "inspect", "adapter", "--json"],
    ):
        subprocess.run(
            command, cwd=home, env=environment, check=True, stdout=subprocess.DEVNULL
        )
    said = subprocess.check_output([*python, scripts / "para", "--version"], text=True)
    if said.split() != ["para", version]:
        raise ValueError(f"para --version says {said!r}, and the wheel is {version}.")


def main() -> int:
    """Run all checks and return 1 if any fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", nargs="?", type=pathlib.Path, default=ROOT / "dist")
    given = parser.parse_args()
    (whl,), (tar,) = (list(given.folder.glob(x)) for x in ("*.whl", "*.tar.gz"))
    version = whl.name.split("-")[1]
    modules = package()
    lines = differences(whl.name, in_wheel(whl), wheel(version, modules))
    lines += differences(tar.name, in_sdist(tar), sdist(version, modules))
    lines += described(whl, version)
    print("\n".join(lines) or f"{whl.name} and {tar.name} hold what they should.")
    if lines:
        return 1
    # With a space, as a user's folder may have one.
    folder = pathlib.Path(tempfile.mkdtemp(prefix="para_jax dist "))
    try:
        installed(whl, version, folder)
    finally:
        shutil.rmtree(folder)
    print("Installed alone, it runs the README's first block.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
