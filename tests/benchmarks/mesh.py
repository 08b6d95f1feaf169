"""Compare one adapter on one device with all devices: time and communication.

    python -m tests.benchmarks.mesh --model llama-8b --rank 64
    python -m tests.benchmarks.mesh --devices 8 --model small --rank 8

Decomposition, threshold and packing into a quarter of the columns run as one program,
with the layers stacked. The table has one row per way of dividing the factors: the
median of many runs in milliseconds, the speedup over one device, the megabytes of
factors on each device, the communication operations, their output in megabytes on each
device (as in the compiled program), and the number of kernels with another rank than on
one device.
"""

import argparse
import collections
import dataclasses
import functools
import json
import math
import re
import statistics
import time
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P

import para_jax as para

# Layers; sizes of hidden state, queries, keys and values, and the MLP.
MODELS = {
    "small": (8, 256, 256, 128, 1024),
    "gemma3-4b": (34, 2560, 2048, 1024, 10240),
    "llama-8b": (32, 4096, 4096, 1024, 14336),
    "llama-70b": (80, 8192, 8192, 1024, 28672),
}
MOVES = (
    "all-gather",
    "all-reduce",
    "all-to-all",
    "collective-permute",
    "collective-broadcast",
    "reduce-scatter",
)
_MOVE = re.compile(rf" = (.*?) ({'|'.join(MOVES)})(-start)?\(")  # Within one line.
_ARRAY = re.compile(r"\b[a-z]+(\d+)\w*\[([\d,]*)\]")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """A way of dividing the factors, and its cost."""

    name: str
    axes: str
    ms: float
    factors: int
    moves: dict[str, int]
    moved: int
    ranks: list[int]


def shapes(model: str) -> dict[str, tuple[int, int, int]]:
    layers, hidden, query, kv, ffn = MODELS[model]
    modules = {
        "q": (hidden, query),
        "k": (hidden, kv),
        "v": (hidden, kv),
        "o": (query, hidden),
        "gate": (hidden, ffn),
        "up": (hidden, ffn),
        "down": (ffn, hidden),
    }
    return {name: (layers, m, n) for name, (m, n) in modules.items()}


def ways(
    devices: int, axes: str
) -> Iterator[tuple[str, str, tuple[P, P], tuple[int, int]]]:
    """Yield a name, the kind of axes, the factors' shardings and the mesh's shape."""
    over_layers, over_sizes = (P("x"), P("x")), (P(None, "y"), P(None, None, "y"))
    yield "layers", axes, over_layers, (devices, 1)
    yield "inputs, outputs", axes, over_sizes, (1, devices)
    if devices >= 4 and devices % 2 == 0:
        both = P("x", "y"), P("x", None, "y")
        yield "layers, inputs, outputs", axes, both, (2, devices // 2)


def adapters(model: str, rank: int, dtype: str, places) -> dict[str, para.Adapter]:
    """Create the factors directly on their devices."""

    @functools.partial(jax.jit, static_argnums=(1, 2, 3), out_shardings=places)
    def made(key: jax.Array, layers: int, m: int, n: int):
        a, b = jax.random.split(key)
        # Graded, so that layers keep different ranks.
        weight = 0.9 ** jax.numpy.arange(rank)
        a = jax.random.normal(a, (layers, m, rank)) * weight
        return a.astype(dtype), jax.random.normal(b, (layers, rank, n)).astype(dtype)

    result = {}
    for i, (name, shape) in enumerate(shapes(model).items()):
        result[name] = para.Adapter(*made(jax.random.key(i), *shape), 2.0)
    return result


def pipeline(parent, policy, width):
    spectra = para.decompose(parent, method="gram")
    kept = para.masks(spectra, policy)
    return kept, para.pack(spectra, kept, parent, width=width)


def moves(program: str) -> tuple[dict[str, int], int]:
    """Count the communication operations of a program and their output bytes."""
    found, total = collections.Counter(), 0
    for result, kind, start in _MOVE.findall(program):
        arrays = _ARRAY.findall(result)
        if start and kind != "all-reduce":
            arrays = arrays[len(arrays) // 2 :]  # Operands precede results.
        sizes = [math.prod(map(int, filter(None, x.split(",")))) for _, x in arrays]
        bits = [int(x) for x, _ in arrays]
        found[kind] += 1
        total += sum(map(math.prod, zip(sizes, bits, strict=True))) // 8
    return dict(found), total


def measured(name: str, axes: str, parent, width: int, repeats: int) -> Row:
    compiled = jax.jit(pipeline, static_argnums=2)
    policy = para.Gamma(0.25)
    program = compiled.lower(parent, policy, width).compile()
    kept, _ = jax.block_until_ready(program(parent, policy))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(program(parent, policy))
        times.append(1e3 * (time.perf_counter() - start))
    kinds, total = moves(program.as_text())
    first = jax.devices()[0]
    here = [
        shard.data.nbytes
        for x in jax.tree.leaves(parent)
        for shard in x.addressable_shards
        if shard.device == first
    ]
    return Row(
        name=name,
        axes=axes,
        ms=statistics.median(times),
        factors=sum(here),
        moves=kinds,
        moved=total,
        ranks=[int(x) for mask in kept.values() for x in np.sum(mask, -1).ravel()],
    )


def rows(given: argparse.Namespace) -> Iterator[Row]:
    make = functools.partial(adapters, given.model, given.rank, given.dtype)
    run = functools.partial(measured, width=given.rank // 4, repeats=given.repeats)
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    yield run("one device", "", make((one, one)))
    for kind in ("Auto", "Explicit"):
        for name, axes, places, shape in ways(jax.device_count(), kind):
            types = (getattr(AxisType, kind),) * 2
            mesh = jax.make_mesh(shape, ("x", "y"), axis_types=types)
            yield run(name, axes, make(tuple(NamedSharding(mesh, x) for x in places)))


def show(found: list[Row]) -> None:
    columns = ("ms", "faster", "MB", "moved MB", "ranks")
    heads = f"{'divided over':26}{'axes':10}"
    print(heads + "".join(f"{x:>10}" for x in columns) + "  operations")
    first = found[0]
    for row in found:
        other = sum(x != y for x, y in zip(row.ranks, first.ranks, strict=True))
        kinds = ", ".join(f"{n} {kind}" for kind, n in row.moves.items())
        cells = f"{row.ms:10.2f}{first.ms / row.ms:10.2f}{row.factors / 1e6:10.1f}"
        cells += f"{row.moved / 1e6:10.3f}{other:10}"
        print(f"{row.name:26}{row.axes:10}{cells}  {kinds}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=MODELS, default="gemma3-4b")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--x64", action="store_true", help="compute in float64")
    parser.add_argument("--devices", type=int, help="as many simulated CPU devices")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if given.devices:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", given.devices)
    jax.config.update("jax_enable_x64", given.x64)
    found = list(rows(given))
    if given.json:
        print(json.dumps([dataclasses.asdict(x) for x in found], indent=1))
        return
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    print(
        f"jax {jax.__version__}, {devices}, {given.model} r={given.rank} {given.dtype}"
    )
    show(found)


if __name__ == "__main__":
    main()
