"""How long a GPU computes, by JAX's profiler, whatever the host takes beside it."""

import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import jax

_CALLS = 3


def busy(call: Callable[[], Any]) -> float:
    """Return the seconds of all kernels and copies of a call on a GPU; 0 elsewhere."""
    if jax.default_backend() != "gpu":
        return 0.0
    jax.block_until_ready(call())
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            for _ in range(_CALLS):
                result = call()
            jax.block_until_ready(result)
        (file,) = pathlib.Path(folder).rglob("*.xplane.pb")
        data = jax.profiler.ProfileData.from_file(str(file))
    return _total(data) / _CALLS / 1e9


def _total(data: Any) -> float:
    return sum(
        event.duration_ns
        for plane in data.planes
        if "GPU" in plane.name
        for line in plane.lines
        if line.name.startswith("Stream")
        for event in line.events
    )
