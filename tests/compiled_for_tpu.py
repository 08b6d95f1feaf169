"""Compile a cut for TPUs that are not there, and print what the compiler says of it.

    python tests/compiled_for_tpu.py v5e:2x2 gemma3-4b stacked 34 chip

The arguments: a topology, a case of `tests/benchmarks/cases.py`, whether its modules
are stacked by projection or named one by one, the number of layers, and `chip` or
`mesh`. It needs libtpu, of the version that JAX's extra `tpu` names, and no TPU. Run it
in a process of its own, with a time limit: some programs take hours to compile.
"""

import dataclasses
import json
import math
import os
import re
import sys
import time

# libtpu would ask a cloud machine's metadata, and keep a second process out.
ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}
_MOVES = r"all-reduce|all-gather|all-to-all|collective-permute|reduce-scatter"
# The result of an operation, or of each of several merged into one.
_MOVE = re.compile(rf"= (.*?) (?:{_MOVES})(?:-start)?\(")
_ARRAY = re.compile(r"\b[a-z]+(\d+)\[([\d,]*)\]")


def main(topology: str, case: str, form: str, layers: str, place: str) -> None:
    os.environ.update(ENVIRONMENT)
    import jax
    import numpy as np
    from jax.experimental import topologies

    import para_jax
    from tests.benchmarks import cases

    # As on a host with a TPU: earlier builds of ours read it.
    jax.default_backend = lambda: "tpu"
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology)
    made = dataclasses.replace(cases.CASES[case], layers=int(layers))
    adapters = _adapters(made, form, np.array(devices.devices), place)

    def cut(adapters):
        spectra = para_jax.decompose(adapters)
        masks = para_jax.masks(spectra, para_jax.Gamma(0.25))
        return para_jax.repack(spectra, masks, adapters, form="masked")

    # What every first program pays.
    first = jax.tree.leaves(adapters)[0]
    _compile(lambda x: x + 1, first)
    compiled, seconds = _compile(cut, adapters)
    moved = [
        math.prod(int(y) for y in sizes.split(",") if y) * int(bits) // 8
        for result in _MOVE.findall(compiled.as_text())
        for bits, sizes in _ARRAY.findall(result)
    ]
    nbytes = sum(
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(adapters)
    )
    memory = compiled.memory_analysis()
    result = {
        "seconds": seconds,
        "temporary": memory.temp_size_in_bytes / nbytes,
        "moved": sum(moved),
        "largest": max(moved, default=0),
        "grams": made.modules * made.rank**2 * 4,
    }
    print(json.dumps(result))


def _compile(function, *args):
    import jax

    lowered = jax.jit(function).trace(*args).lower(lowering_platforms=("tpu",))
    start = time.process_time()  # Of all threads: the machine may be busy.
    compiled = lowered.compile()
    return compiled, time.process_time() - start


def _adapters(case, form, devices, place):
    import jax
    from jax.sharding import Mesh, NamedSharding, PartitionSpec as P

    import para_jax

    mesh = Mesh(devices.reshape(-1)[:4].reshape(2, 2), ("x", "y"))

    def factor(*shape, axes):
        if place == "mesh":
            spec = P(*[None] * (len(shape) - 2), *axes)
            sharding = NamedSharding(mesh, spec)
        else:
            sharding = jax.sharding.SingleDeviceSharding(devices.reshape(-1)[0])
        return jax.ShapeDtypeStruct(shape, "float32", sharding=sharding)

    def pair(m, n, *stack):
        a = factor(*stack, m, case.rank, axes=("x", None))
        b = factor(*stack, case.rank, n, axes=(None, "y"))
        return para_jax.Adapter(a, b, 2.0)

    if form == "stacked":
        return {p: pair(m, n, *case.stack) for p, (m, n) in case.projections.items()}
    return {
        f"{layer}/{path}": pair(m, n)
        for layer in range(case.layers)
        for path, (m, n) in case.projections.items()
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
