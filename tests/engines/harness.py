"""Run an engine's runner in its own environment, and collect its results per file.

A runner reads the path of a job (JSON), and writes arrays and facts to its `out`:

    {"model": FOLDER, "adapters": {LABEL: PATH}, "tokens": [[1, 2, ...]], "out": FOLDER}

`out/facts.json` holds `version` and, for files that the engine refused, `refused:
{LABEL: its words}`; `out/arrays.npz` holds the rest, by LABEL/NAME, with the names of
`models`.
"""

import dataclasses
import json
import os
import pathlib
import subprocess

import numpy as np

from tests.engines import environments

RUNNERS = pathlib.Path(__file__).parent / "runners"


@dataclasses.dataclass(frozen=True)
class Answer:
    """An engine's results for some adapters.

    Attributes:
      facts: Its `version`, and further facts from the runner.
      arrays: By LABEL/NAME.
      log: Its output.
    """

    facts: dict
    arrays: dict[str, np.ndarray]
    log: str

    @property
    def version(self) -> str:
        return self.facts["version"]

    @property
    def refused(self) -> dict[str, str]:
        return self.facts.get("refused", {})


def run(engine: str, job: dict, folder: pathlib.Path, *, seconds: int = 1500) -> Answer:
    """Run an engine's runner and return its results.

    Args:
      engine: A name in `environments.ENVIRONMENTS`; its runner has the same name.
      job: The runner's job, without `out`.
      folder: The folder for the job and its results.
      seconds: The time limit.

    Raises:
      RuntimeError: if the runner failed. The message ends with its output.
    """
    out = folder / "out"
    out.mkdir(parents=True, exist_ok=True)
    file = folder / "job.json"
    file.write_text(json.dumps(job | {"out": str(out)}, default=str))
    # -P: a runner has its package's name, and would shadow it on the path.
    runner = str(RUNNERS / f"{engine}.py")
    words = [str(environments.python(engine)), "-P", runner, str(file)]
    process = subprocess.run(
        words,
        env=_surroundings(engine),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=seconds,
        check=False,
    )
    (folder / "log.txt").write_text(process.stdout)
    if process.returncode:
        end = process.stdout[-4000:]
        raise RuntimeError(f"{' '.join(words)} ended with {process.returncode}:\n{end}")
    with np.load(out / "arrays.npz") as arrays:
        found = {name: arrays[name] for name in arrays.files}
    return Answer(json.loads((out / "facts.json").read_text()), found, process.stdout)


def _surroundings(engine: str) -> dict[str, str]:
    """Return the environment variables, without those for our own tests."""
    ours = ("JAX_", "OPENBLAS_NUM", "PYTHONPATH", "PYTEST")
    kept = {name: x for name, x in os.environ.items() if not name.startswith(ours)}
    checkouts = environments.ENVIRONMENTS[engine].checkouts
    paths = {name: str(environments.checkout(engine, name)) for name in checkouts}
    return kept | {
        "ENGINES_CHECKOUTS": json.dumps(paths),
        "ENGINES_SOURCES": str(environments.SOURCES),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }


def compress(source: pathlib.Path, target: pathlib.Path, *words: str) -> pathlib.Path:
    """Write a child by the command line, and return its folder or file."""
    from para_jax import cli  # Imported after conftest's import hook is set.

    assert cli.main(["compress", str(source), str(target), *words]) == 0
    return target


def difference(answer: Answer, label: str, wanted: dict[str, np.ndarray]) -> float:
    """Return the largest difference of an answer's log-probabilities from an oracle.

    It compares the ones after each token of the prompts, if the engine reports them,
    and the ones that chose the greedy tokens, up to the first different token.
    """
    found = [
        np.abs(answer.arrays[f"{label}/prompt"] - wanted["prompt"]).max()
        for name in (f"{label}/prompt",)
        if name in answer.arrays
    ]
    same = answer.arrays[f"{label}/tokens"] == wanted["tokens"]
    before = np.cumprod(same, axis=1).astype(bool)
    comparable = np.insert(before[:, :-1], 0, True, axis=1)
    steps = np.abs(answer.arrays[f"{label}/steps"] - wanted["steps"])
    return float(max(*found, steps[comparable].max(), 0))


def tokens(answer: Answer, label: str, wanted: dict[str, np.ndarray]) -> str:
    """Count the greedy tokens equal to an oracle's, as "COUNT/TOTAL"."""
    same = answer.arrays[f"{label}/tokens"] == wanted["tokens"]
    return f"{int(same.sum())}/{same.size}"


def loaded(answer: Answer, label: str) -> dict[str, np.ndarray]:
    """Return an engine's updates, by module."""
    start = f"{label}/"
    return {
        name.removeprefix(start): x
        for name, x in answer.arrays.items()
        if name.startswith(start)
    }


def furthest(answer: Answer, label: str, wanted: dict[str, np.ndarray]) -> float:
    """Return the largest difference of an engine's updates, over all modules.

    Modules that are not in `wanted` must hold zeros.
    """
    got = loaded(answer, label)
    assert wanted.keys() <= got.keys(), wanted.keys() - got.keys()
    return max(float(np.abs(x - wanted.get(path, 0)).max()) for path, x in got.items())
