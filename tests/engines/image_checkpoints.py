"""Build checkpoints with an update of every weight of an image model."""

import numpy as np
import torch

import para_jax as para


def adapted(shapes, component, *, rank=2, seed=0):
    """Build a checkpoint with an update of each weight, in diffusers' names."""
    rng = np.random.default_rng(seed)
    adapters, layers = {}, {}
    for name, (n, channels, *window) in shapes.items():
        path = f"{component}/{name.replace('.', '/')}"
        m = channels * int(np.prod(window))
        a, b = rng.normal(size=(m, rank)), rng.normal(size=(rank, n))
        adapters[path] = para.Adapter(a.astype(np.float32), b.astype(np.float32), 0.5)
        if window:
            layers[path] = para.Layer(kind="conv", window=(*window, channels))
    return para.Checkpoint(adapters=adapters, layers=layers)


def deltas(checkpoint):
    """Return the update of each module, `[out, in, *window]`, in float64."""
    result = {}
    for path, x in checkpoint.adapters.items():
        full = x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)
        layer = checkpoint.layers.get(path, para.Layer())
        full = full.T
        if layer.kind == "conv":
            *window, channels = layer.window
            full = np.moveaxis(full.reshape(len(full), *window, channels), -1, 1)
        result[path.replace("/", ".")] = full
    return result


def same(got, want, atol=1e-12):
    assert got.keys() == want.keys()
    for name, x in want.items():
        np.testing.assert_allclose(got[name], x, atol=atol, err_msg=name)


def kohya_state(checkpoint):
    """Build a state dict as sd-scripts writes it, with alpha for the scale."""
    result = {}
    for path, x in checkpoint.adapters.items():
        layer = checkpoint.layers.get(path, para.Layer())
        a, b = np.asarray(x.a).T, np.asarray(x.b).T
        if layer.kind == "conv":
            a = np.moveaxis(a.reshape(len(a), *layer.window), -1, 1)
            b = b.reshape(*b.shape, *(1 for _ in layer.window[:-1]))
        result[f"{path}.lora_down.weight"] = torch.from_numpy(a.copy())
        result[f"{path}.lora_up.weight"] = torch.from_numpy(b.copy())
        result[f"{path}.alpha"] = torch.tensor(x.scale * x.rank)
    return result
