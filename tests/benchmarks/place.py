"""Describe the benchmark's machine: device, memory bandwidth, library versions."""

import importlib.metadata
import os
import pathlib
import platform
from typing import Any

import jax

from tests.benchmarks import clock


def where() -> dict[str, Any]:
    """Return the fields that all rows share."""
    versions = [f"Python {platform.python_version()}"]
    for name in ("jax", "torch", "peft"):
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    device = jax.devices()[0].device_kind
    if device == "cpu":
        device = f"{os.cpu_count()} cores of {_processor()}"
    return {
        "device": device,
        "versions": ", ".join(versions),
        "bandwidth": clock.bandwidth(),
    }


def _processor() -> str:
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [x.partition(": ")[2] for x in lines if x.startswith("model name")]
    return names[0] if names else platform.machine()
