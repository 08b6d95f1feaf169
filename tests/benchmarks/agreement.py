"""Compare the ranks on the current device with those of NumPy in float64.

    python -m tests.benchmarks.agreement
    JAX_PLATFORMS=cpu python -m tests.benchmarks.agreement

200 random adapters and a trained one are each compressed by several policies in three
ways: as traced programs without and with `jax.enable_x64`, and by `compress`. NumPy's
ranks do not depend on the device, so two devices that agree with NumPy agree with each
other. For each choice that disagrees, the table shows how close the tie was.
"""

import argparse
import dataclasses
import functools
import math
import pathlib
from collections.abc import Iterator, Sequence

import jax
import ml_dtypes
import numpy as np

import para_jax as para
from para_jax import spectra_of
from tests import reference

TRAINED = pathlib.Path(__file__).parents[2] / "train/assets/minilm-movie-r16"
Structure = tuple[tuple[tuple[int, int, int], ...], int, type]
WAYS = ("float32", "float64", "host")

# `(modules, m, n)` of each group of modules, the rank, and the storage dtype.
# There are only a few, since each one compiles a program of its own.
STRUCTURES = (
    (((4, 48, 48), (2, 48, 131)), 8, np.float32),
    (((3, 96, 64), (3, 64, 96)), 16, np.float32),
    (((12, 64, 64),), 4, np.float32),
    (((2, 192, 80), (1, 80, 257)), 32, np.float32),
    (((4, 48, 48), (2, 131, 48)), 8, ml_dtypes.bfloat16),
    (((6, 24, 40),), 16, np.float16),
    (((1, 128, 128), (1, 128, 12), (1, 12, 128)), 16, np.float32),
    (((2, 160, 96),), 64, np.float32),
)

Ranks = dict[tuple[str | int, ...], int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """One policy's choice for one adapter, computed in one way.

    Attributes:
      adapter: The adapter's name.
      policy: The policy's name.
      way: How the choice was computed.
      moved: The number of ranks that differ from NumPy's; 0 if they agree.
      gap: How close a tie it was, see `tests.reference.Cut`.
    """

    adapter: str
    policy: str
    way: str
    moved: int
    gap: float


def random_adapters(
    count: int, structures: Sequence[Structure] = STRUCTURES
) -> Iterator[tuple[str, dict[str, para.Adapter]]]:
    """Yield random adapters of different shapes, ranks, scales and spectra."""
    for seed in range(count):
        groups, rank, dtype = structures[seed % len(structures)]
        rng = np.random.default_rng(seed)
        yield (
            f"random {seed}",
            {
                f"group{i}": _stack(rng, *group, rank, dtype)
                for i, group in enumerate(groups)
            },
        )


def _stack(
    rng: np.random.Generator, modules: int, m: int, n: int, r: int, dtype: type
) -> para.Adapter:
    """Draw modules of different norms, with spectra that decay at different rates."""
    a = rng.standard_normal((modules, m, r)) / math.sqrt(m)
    b = rng.standard_normal((modules, r, n)) / math.sqrt(n)
    norms = np.exp(rng.normal(size=(modules, 1)))
    fall = norms * np.exp(-np.arange(r) * rng.uniform(0, 0.5, (modules, 1)))
    rotation = np.linalg.qr(rng.standard_normal((modules, r, r)))[0]
    a, b = a * fall[:, None] @ rotation, rotation.mT @ b
    # One scale for the whole group, so that all adapters share a compiled program.
    return para.Adapter(a.astype(dtype), b.astype(dtype), 2.0)


def policies(adapters: dict[str, para.Adapter]) -> dict[str, para.Policy]:
    whole = sum(x.parameters for x in adapters.values())
    return {
        **{f"gamma {x}": para.Gamma(x) for x in (0.1, 0.25, 0.5)},
        **{f"epsilon {x}": para.Epsilon(x) for x in (0.9, 0.99)},
        **{f"params 1/{x}": para.Params(whole // x) for x in (3, 10)},
    }


@functools.partial(jax.jit, static_argnames="asked")
def _traced(
    adapters: dict[str, para.Adapter], asked: tuple[para.Policy, ...]
) -> list[dict[str, jax.Array]]:
    spectra = para.decompose(adapters)
    return [
        {path: mask.sum(-1) for path, mask in para.masks(spectra, policy).items()}
        for policy in asked
    ]


def ranks(
    adapters: dict[str, para.Adapter], asked: tuple[para.Policy, ...], way: str
) -> list[Ranks]:
    """Return the rank of each kernel for each policy, as the package computes it."""
    if way == "host":
        spectra = spectra_of(adapters)
        found = [para.ranks(spectra, policy) for policy in asked]
    else:
        with jax.enable_x64(way == "float64"):
            found = jax.device_get(_traced(adapters, asked))
    return [
        {(p, *i): int(x[p][i]) for p in adapters for i in np.ndindex(x[p].shape)}
        for x in found
    ]


def compared(name: str, adapters: dict[str, para.Adapter]) -> Iterator[Choice]:
    """Yield every choice for one adapter."""
    asked, kernels = policies(adapters), reference.kernels(adapters)
    wanted = [reference.cut(kernels, policy) for policy in asked.values()]
    for way in WAYS:
        found = ranks(adapters, tuple(asked.values()), way)
        for policy, want, got in zip(asked, wanted, found, strict=True):
            yield Choice(
                adapter=name,
                policy=policy,
                way=way,
                moved=sum(abs(got[key] - rank) for key, rank in want.ranks.items()),
                gap=min(want.gap, want.slack),
            )


def show(choices: list[Choice]) -> None:
    columns = "".join(f"{way:>12}" for way in WAYS)
    print(f"{'ranks as NumPy has them':26}{columns}")
    for policy in dict.fromkeys(x.policy for x in choices):
        cells = ""
        for way in WAYS:
            some = [x for x in choices if (x.policy, x.way) == (policy, way)]
            agree = sum(x.moved == 0 for x in some)
            cells += f"{f'{agree} of {len(some)}':>12}"
        print(f"{policy:26}{cells}")
    others = [x for x in choices if x.moved]
    for x in sorted(others, key=lambda x: -x.gap):
        print(
            f"{x.adapter}, {x.policy}, {x.way}: {x.moved} ranks elsewhere; the tie was "
            f"as close as {x.gap:.1e} of a module's largest value"
        )
    for way in WAYS:
        same = [x.gap for x in choices if x.way == way and not x.moved]
        print(f"{way}: the closest tie with the same ranks {min(same):.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=200)
    given = parser.parse_args()
    print(f"jax {jax.__version__} on {jax.devices()[0].device_kind}")
    parents = dict(random_adapters(given.adapters))
    parents[TRAINED.name] = dict(para.load(TRAINED).adapters)
    show([x for name, parent in parents.items() for x in compared(name, parent)])


if __name__ == "__main__":
    main()
