"""Environments of the engines, one each, in `.venv-engines`: they pin what we do not.

    python -m tests.engines.environments vllm llamacpp

makes those that are missing or older than their `requirements/NAME.txt`. All if none is
named. One that cannot be installed is reported, and its tests are skipped.
"""

import argparse
import dataclasses
import pathlib
import subprocess
import sys
import tarfile
import time

HERE = pathlib.Path(__file__).parent
ROOT = HERE.parents[1] / ".venv-engines"
SOURCES = ROOT / "src"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Environment:
    """What an engine needs beside its `requirements/NAME.txt`.

    Attributes:
      checkouts: Public repositories on GitHub, as OWNER/NAME, and their commits. They
        are run from `SOURCES`, and nothing of them is installed.
      sdists: Source distributions to unpack in `SOURCES`, without installing them.
      without: Packages to uninstall. Those that PyPI builds for another torch fail when
        they are imported, and nothing here needs them.
      shares: The engine whose environment it runs in, instead of one of its own.
    """

    checkouts: dict[str, str] = dataclasses.field(default_factory=dict)
    sdists: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    shares: str = ""


ENVIRONMENTS: dict[str, Environment] = {
    "vllm": Environment(without=("torchaudio", "torchcodec", "torchvision")),
    "llamacpp": Environment(sdists=("llama-cpp-python==0.3.36",)),
}


def python(name: str) -> pathlib.Path:
    """Return the path of an engine's interpreter, whether it is there or not."""
    return ROOT / (ENVIRONMENTS[name].shares or name) / "bin" / "python"


def requirements(name: str) -> pathlib.Path:
    return HERE / "requirements" / f"{ENVIRONMENTS[name].shares or name}.txt"


def checkout(name: str, repository: str) -> pathlib.Path:
    """Return the folder of one of an engine's repositories at its commit."""
    commit = ENVIRONMENTS[name].checkouts[repository]
    return SOURCES / f"{repository.replace('/', '+')}-{commit[:12]}"


def missing(name: str) -> str:
    """Return why an engine cannot be run here, or an empty string."""
    needed = [_stamp(name)]
    needed += [checkout(name, x) for x in ENVIRONMENTS[name].checkouts]
    absent = [path for path in needed if not path.exists()]
    if not absent:
        return ""
    return f"{absent[0].parent} is not ready: make test-engines ENGINES={name}"


def make(name: str) -> None:
    """Make an environment, and checks its repositories out."""
    environment = ENVIRONMENTS[name]
    for repository, commit in environment.checkouts.items():
        if not checkout(name, repository).exists():
            _clone(repository, commit, checkout(name, repository))
    if environment.shares and _current(environment.shares):
        return
    if not _current(name):
        folder = python(name).parents[1]
        _call(sys.executable, "-m", "venv", "--clear", str(folder))
        pip = (str(python(name)), "-m", "pip", "--disable-pip-version-check")
        _call(*pip, "install", "--quiet", "--upgrade", "pip")
        _call(*pip, "install", "--quiet", "--requirement", str(requirements(name)))
        if environment.without:
            _call(*pip, "uninstall", "--quiet", "--yes", *environment.without)
        for sdist in environment.sdists:
            _unpack(pip, sdist)
        _stamp(name).touch()


def _stamp(name: str) -> pathlib.Path:
    return python(name).parents[1] / ".ready"


def _current(name: str) -> bool:
    stamp, wanted = _stamp(name), requirements(name)
    return stamp.exists() and stamp.stat().st_mtime >= wanted.stat().st_mtime


def _clone(repository: str, commit: str, folder: pathlib.Path) -> None:
    unfinished = folder.with_name(f"{folder.name}.part")
    _call("rm", "-rf", str(unfinished))
    _call(
        "git", "clone", "--quiet", f"https://github.com/{repository}", str(unfinished)
    )
    _call("git", "-C", str(unfinished), "checkout", "--quiet", commit)
    unfinished.rename(folder)


def _unpack(pip: tuple[str, ...], sdist: str) -> None:
    SOURCES.mkdir(parents=True, exist_ok=True)
    # Its metadata is made by its own build backend, which the requirements name.
    options = ("--no-deps", "--no-binary", ":all:", "--no-build-isolation")
    _call(*pip, "download", "--quiet", *options, "--dest", str(SOURCES), sdist)
    name = sdist.replace("-", "_").replace("==", "-")
    with tarfile.open(SOURCES / f"{name}.tar.gz") as archive:
        archive.extractall(SOURCES, filter="data")


def _call(*words: str) -> None:
    subprocess.run(words, check=True, stdin=subprocess.DEVNULL)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="ENGINE")
    names = parser.parse_args().names or list(ENVIRONMENTS)
    if unknown := sorted(set(names) - set(ENVIRONMENTS)):
        parser.error(
            f"{', '.join(unknown)}: expected some of {', '.join(ENVIRONMENTS)}"
        )
    failed = []
    for name in names:
        start = time.monotonic()
        try:
            make(name)
            print(f"{name}: ready ({time.monotonic() - start:.0f} s)", flush=True)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name}: {error}", file=sys.stderr, flush=True)
    return 1 if len(failed) == len(names) else 0


if __name__ == "__main__":
    sys.exit(main())
