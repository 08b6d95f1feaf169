"""Name, write and read single safetensors files as other programs do.

The readers' rules are those of their sources, in NumPy float64:

- ComfyUI (`comfy/weight_adapter/lora.py`): a module's names in the order of `NAMES`,
  its own `.alpha / rank`, or 1.
- diffusers, of kohya's files (`loaders/lora_conversion_utils.py`, `utils/peft_utils.py`
  0.42): the most common alpha of the file over each module's rank, or 1.
"""

import collections

import numpy as np
import safetensors
import safetensors.numpy

# The names of a module's factors, and of its alpha.
NAMES = {
    "kohya": ("{}.lora_down.weight", "{}.lora_up.weight"),
    "underscore": ("{}_lora_down.weight", "{}_lora_up.weight"),
    "peft": ("{}.lora_A.weight", "{}.lora_B.weight"),
    "adapter": ("{}.lora_A.default.weight", "{}.lora_B.default.weight"),
    "mochi": ("{}.lora_A", "{}.lora_B"),
    "diffusers": ("{}.lora.down.weight", "{}.lora.up.weight"),
    "text": ("{}.lora_linear_layer.down.weight", "{}.lora_linear_layer.up.weight"),
    "processor": ("{}_lora.down.weight", "{}_lora.up.weight"),
}


def random(*shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def write(path, tensors, **metadata):
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    safetensors.numpy.save_file(whole, path, metadata=metadata or None)
    return path


def read(path):
    with safetensors.safe_open(path, framework="numpy") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return found, dict(file.metadata() or {})


def pair(module, m, n, r, *, names="kohya", alpha=None, seed=0, dtype=np.float32):
    down, up = NAMES[names]
    result = {
        down.format(module): random(r, m, seed=seed, dtype=dtype),
        up.format(module): random(n, r, seed=seed + 99, dtype=dtype),
    }
    if alpha is not None:
        result[f"{module}.alpha"] = np.asarray(alpha, np.float32)
    return result


def factors(tensors):
    """Return `(down, up, alpha)` of each module by its name in the keys."""
    result = {}
    for name in tensors:
        for down, up in NAMES.values():
            end = down.removeprefix("{}")
            module = name.removesuffix(end)
            other = up.format(module)
            if name.endswith(end) and module not in result and other in tensors:
                alpha = tensors.get(f"{module}.alpha")
                result[module] = (
                    tensors[name].astype(np.float64),
                    tensors[other].astype(np.float64),
                    None if alpha is None else float(alpha.reshape(())),
                )
    return result


def comfy(path):
    """Return ComfyUI's delta of each weight `[out, in]`, times `rule`'s scale."""
    return _deltas(
        read(path)[0], lambda alpha, rank, _: 1 if alpha is None else alpha / rank
    )


def diffusers(path):
    """Return diffusers' delta, for a file in kohya's names."""

    def scale(_, rank, alphas):
        common = collections.Counter(alphas).most_common(1)
        return common[0][0] / rank if common else 1

    return _deltas(read(path)[0], scale)


def _deltas(tensors, scale):
    found = factors(tensors)
    alphas = [alpha for _, _, alpha in found.values() if alpha is not None]
    result = {}
    for module, (down, up, alpha) in found.items():
        product = up.reshape(len(up), -1) @ down.reshape(len(down), -1)
        result[module] = scale(alpha, len(down), alphas) * product
    return result


def cut(deltas, keep):
    """Return the `keep` largest components over all matrices."""
    svds = {name: np.linalg.svd(x, full_matrices=False) for name, x in deltas.items()}
    every = np.sort(np.concatenate([s for _, s, _ in svds.values()]))[::-1]
    least = every[keep - 1]
    return {n: (u * np.where(s >= least, s, 0)) @ vt for n, (u, s, vt) in svds.items()}


def same(got, want, eps=1e-5):
    """Check updates; modules that keep nothing may be missing."""
    for name, x in want.items():
        bound = eps * np.abs(x).max() + 1e-12
        np.testing.assert_allclose(got.get(name, 0 * x), x, atol=bound, err_msg=name)
    assert got.keys() <= want.keys()
