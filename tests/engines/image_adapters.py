"""Write image models' adapters with NumPy in three forms, and expected children.

The oracle truncates the parent's updates in float64: it pools all singular values and
keeps as many of the largest as the budget allows.
"""

import itertools
import json
import pathlib
import re

import numpy as np
import safetensors.numpy

from tests.engines import harness

RANK = 6
KEPT = 2
"""Ranks that a child keeps of each module, on average."""

BUDGET = ("--rank", str(KEPT))


def factors(shapes: dict[str, tuple[int, ...]], seed: int = 0) -> dict:
    """Draw (down, up) for each module of sufficient size, of different norms."""
    rng = np.random.default_rng(seed)
    result = {}
    for name, (rows, *window) in shapes.items():
        if min(rows, np.prod(window)) < RANK:
            continue
        # At most a tenth of the weights: otherwise deep models lose all digits.
        size = 0.05 * np.exp(rng.normal()) / np.sqrt(RANK * np.prod(window))
        down = rng.normal(size=(RANK, *window)) * size
        up = rng.normal(size=(rows, RANK, *(1 for _ in window[1:])))
        result[name] = down.astype(np.float32), up.astype(np.float32)
    return result


def updates(parent: dict, scales: dict[str, float]) -> dict[str, np.ndarray]:
    """Return `s B A` in float64, in the shapes of the weights."""
    result = {}
    for name, (down, up) in parent.items():
        matrix = up.reshape(len(up), -1).astype(np.float64) @ down.reshape(
            len(down), -1
        ).astype(np.float64)
        result[name] = scales[name] * matrix.reshape(len(up), *down.shape[1:])
    return result


def truncated(whole: dict[str, np.ndarray], kept: int) -> dict[str, np.ndarray]:
    """Keep the `kept` largest singular values of all modules."""
    parts = {
        name: np.linalg.svd(x.reshape(len(x), -1), full_matrices=False)
        for name, x in whole.items()
    }
    every = np.sort(np.concatenate([s for _, s, _ in parts.values()]))[::-1]
    threshold = (every[kept - 1] + every[kept]) / 2
    return {
        name: ((u * np.where(s > threshold, s, 0)) @ vh).reshape(whole[name].shape)
        for name, (u, s, vh) in parts.items()
    }


def ranks(whole: dict[str, np.ndarray], child: dict[str, np.ndarray]) -> set[int]:
    """Return the set of ranks in a child, to check for unequal ones."""
    found = (np.linalg.matrix_rank(child[x].reshape(len(child[x]), -1)) for x in whole)
    return {int(x) for x in found}


def peft(folder: pathlib.Path, parent: dict, alpha: float) -> pathlib.Path:
    """Write a PEFT folder with one alpha for all modules."""
    folder.mkdir()
    words = {"peft_type": "LORA", "r": RANK, "lora_alpha": alpha, "bias": "none"}
    words["target_modules"] = sorted(parent)
    (folder / "adapter_config.json").write_text(json.dumps(words))
    tensors = {}
    for name, (down, up) in parent.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = down
        tensors[f"base_model.model.{name}.lora_B.weight"] = up
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def diffusers(file: pathlib.Path, parent: dict, component: str) -> pathlib.Path:
    """Write a file as diffusers' training scripts do, without alphas."""
    tensors = {}
    for name, (down, up) in parent.items():
        tensors[f"{component}.{name}.lora_A.weight"] = down
        tensors[f"{component}.{name}.lora_B.weight"] = up
    safetensors.numpy.save_file(tensors, file)
    return file


def kohya(file: pathlib.Path, parent: dict, alphas: dict, dtype=np.float32):
    """Write a UNet's file as sd-scripts does, with alphas for the named modules."""
    tensors = {}
    for name, (down, up) in parent.items():
        key = "lora_unet_" + re.sub(r"\.", "_", name)
        tensors[f"{key}.lora_down.weight"] = down.astype(dtype)
        tensors[f"{key}.lora_up.weight"] = up.astype(dtype)
        if name in alphas:
            tensors[f"{key}.alpha"] = np.array(alphas[name], dtype)
    safetensors.numpy.save_file(tensors, file)
    return file


def largest(got: dict[str, np.ndarray], want: dict[str, np.ndarray]) -> float:
    """Return the largest difference of updates; a missing module counts as 0."""
    unknown = set(got) - set(want)
    assert not unknown, f"no such module: {sorted(unknown)[:3]}"
    return max(float(np.abs(got.get(x, 0) - want[x]).max()) for x in want)


ALPHAS = ("one alpha", "an alpha for each", "no alpha")
DTYPES = ("float32", "float16", "bfloat16")
KOHYA_CASES = [f"{x}, {y}" for x, y in itertools.product(ALPHAS, DTYPES)]


def unet(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    """Return the shapes of all weights in a tiny UNet adapted by sd-scripts."""
    found = harness.run("diffusers", {"shapes": ["sd"]}, folder / "shapes")
    # sd-scripts skips the time embedding, and the first and last convolution.
    inside = re.compile(r"attentions|resnets|samplers")
    shapes = found.facts["shapes"]["sd"]
    return {name: tuple(x) for name, x in shapes.items() if inside.search(name)}


def kohya_children(folder, shapes, engine) -> tuple[dict, dict]:
    """Write children of kohya files, and return their paths and their updates."""
    parent, files, wanted = factors(shapes), {}, {}
    for label in KOHYA_CASES:
        kind, _, dtype = label.partition(", ")
        own = {name: 1 + i % 7 for i, name in enumerate(parent)}
        one = dict.fromkeys(parent, 3)
        alphas = {"one alpha": one, "an alpha for each": own, "no alpha": {}}[kind]
        source = kohya(folder / f"{label} parent.safetensors", parent, alphas)
        scales = {name: alphas.get(name, RANK) / RANK for name in parent}
        whole = updates(parent, scales)
        wanted[label] = truncated(whole, KEPT * len(whole))
        words = (*BUDGET, "--dtype", dtype, "--for", engine)
        child = folder / f"{label}.safetensors"
        files[label] = harness.compress(source, child, *words)
    return files, wanted


BOUNDS = {"float32": 3e-7, "float16": 2e-3, "bfloat16": 2e-2}
"""Of an update, by its largest entry."""


def check_child(found, label: str, wanted: dict[str, np.ndarray], row, engine) -> None:
    """Compare an engine's changes of the weights with the child, and keep the row."""
    start = f"{label}/"
    got = {
        name.removeprefix(start): x
        for name, x in found.arrays.items()
        if name.startswith(start)
    }
    missing = [name for name, x in wanted.items() if not x.any()]
    assert missing
    assert not set(missing) & set(got)
    assert len(ranks(wanted, wanted)) > 2

    difference = largest(got, wanted)

    row(
        engine=engine,
        version=found.version,
        loaded=label,
        difference=difference,
        of="updates",
    )
    size = max(np.abs(x).max() for x in wanted.values())
    assert difference < BOUNDS[label.rpartition(", ")[2]] * max(size, 1)
