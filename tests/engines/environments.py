"""Create the engines' environments in `.venv-engines`, apart from ours for their pins.

    python -m tests.engines.environments vllm llamacpp

creates the named ones, or all without a name, if they are missing or older than their
`requirements/NAME.txt`. A failed installation is reported, and its tests are skipped.
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
    """An engine's needs beyond its `requirements/NAME.txt`, if there is one.

    Attributes:
      beside: The engine to share an environment with; empty for one of its own.
      bare: Packages to install without their dependencies, which only GPUs need.
      without: Packages to uninstall. PyPI builds them for another torch, so importing
        them fails, and nothing here needs them.
      sdists: Source distributions to unpack in `SOURCES`, without installing them.
      checkouts: Public repositories on GitHub, as OWNER/NAME, and their commits. They
        are run from `SOURCES`, and nothing of them is installed.
    """

    beside: str = ""
    bare: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    sdists: tuple[str, ...] = ()
    checkouts: dict[str, str] = dataclasses.field(default_factory=dict)


ENVIRONMENTS: dict[str, Environment] = {
    "vllm": Environment(without=("torchaudio", "torchcodec", "torchvision")),
    "diffusers": Environment(),
    "comfyui": Environment(
        beside="diffusers",
        checkouts={
            "comfyanonymous/ComfyUI": "a125cd84b054a57729b5eecab930ca9408719832"
        },
    ),
    "sdscripts": Environment(
        beside="diffusers",
        checkouts={"kohya-ss/sd-scripts": "48d368fa557731ad0488c07304dfeba8c07910eb"},
    ),
    "llamacpp": Environment(sdists=("llama-cpp-python==0.3.36",)),
    "sglang": Environment(beside="vllm", bare=("sglang==0.5.23",)),
    "sglang_jax": Environment(
        beside="llamacpp",
        checkouts={
            "sgl-project/sglang-jax": "cddbf6f1cc33cbdd453bd8f36ff7051cf46ca176"
        },
    ),
    "lorax": Environment(
        beside="vllm",
        checkouts={"predibase/lorax": "a7394ba386ece427d5a6125b419aa38b46d966dc"},
    ),
    "lmdeploy": Environment(beside="vllm", bare=("lmdeploy==0.18.0",)),
}


def python(name: str) -> pathlib.Path:
    """Return the path of an engine's interpreter, whether or not it exists."""
    return ROOT / (ENVIRONMENTS[name].beside or name) / "bin" / "python"


def checkout(name: str, repository: str) -> pathlib.Path:
    """Return the folder of one of an engine's repositories at its commit."""
    commit = ENVIRONMENTS[name].checkouts[repository]
    return SOURCES / f"{repository.replace('/', '+')}-{commit[:12]}"


def missing(name: str) -> str:
    """Return why an engine cannot be run here, or an empty string."""
    needed = [_stamp(name)]
    needed += [checkout(name, x) for x in ENVIRONMENTS[name].checkouts]
    if absent := [path for path in needed if not path.exists()]:
        return f"{absent[0]} is missing: make test-engines ENGINES={name}"
    return ""


def make(name: str) -> None:
    """Create an environment, and check out its repositories."""
    environment = ENVIRONMENTS[name]
    if environment.beside:
        make(environment.beside)
    for repository, commit in environment.checkouts.items():
        if not checkout(name, repository).exists():
            _clone(repository, commit, checkout(name, repository))
    if _current(name):
        return
    pip = (str(python(name)), "-m", "pip", "--disable-pip-version-check")
    if not environment.beside:
        _call(sys.executable, "-m", "venv", "--clear", str(python(name).parents[1]))
        _call(*pip, "install", "--quiet", "--upgrade", "pip")
    if _requirements(name).exists():
        _call(*pip, "install", "--quiet", "--requirement", str(_requirements(name)))
    if environment.bare:
        _call(*pip, "install", "--quiet", "--no-deps", *environment.bare)
    if environment.without:
        _call(*pip, "uninstall", "--quiet", "--yes", *environment.without)
    for sdist in environment.sdists:
        _unpack(pip, sdist)
    _stamp(name).touch()


def _requirements(name: str) -> pathlib.Path:
    return HERE / "requirements" / f"{name}.txt"


def _stamp(name: str) -> pathlib.Path:
    return python(name).parents[1] / f".ready-{name}"


def _current(name: str) -> bool:
    stamp, wanted = _stamp(name), _requirements(name)
    if not (stamp.exists() and wanted.exists()):
        return stamp.exists()
    return stamp.stat().st_mtime >= wanted.stat().st_mtime


def _clone(repository: str, commit: str, folder: pathlib.Path) -> None:
    unfinished = folder.with_name(f"{folder.name}.part")
    address = f"https://github.com/{repository}"
    _call("rm", "-rf", str(unfinished))
    _call("git", "clone", "--quiet", "--no-checkout", address, str(unfinished))
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
