"""Make the golden run's inputs: shipped adapters, and small ones from seeds.

The library writes none of them. All numbers are multiples of 2^-20, so their bits are
the same on every machine.
"""

import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

REPO = pathlib.Path(__file__).parents[3]
ASSETS = {
    "minilm": "train/assets/minilm-movie-r16",
    "glyphs": "train/assets/glyphs-armenian-r16",
}
LORAX = "tests/interop/layouts/data/lorax_parent.npz"


def array(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    """Return numbers in [-1, 1), the same on every machine."""
    rng = np.random.default_rng([seed, *shape])
    return (rng.integers(-(2**20), 2**20, size=shape) / 2**20).astype(dtype)


def pair(name: str, m: int, n: int, r: int, *, seed: int, **kwargs: Any) -> dict:
    """Return the factors of one module as PEFT stores them."""
    return {
        f"base_model.model.{name}.lora_A.weight": array(r, m, seed=seed, **kwargs),
        f"base_model.model.{name}.lora_B.weight": array(n, r, seed=seed + 1, **kwargs),
    }


def write(path: pathlib.Path, tensors: Mapping[str, Any], **metadata: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
    safetensors.numpy.save_file(whole, path, metadata=metadata or None)


def peft(folder: pathlib.Path, tensors: Mapping[str, Any], **config: Any) -> None:
    write(folder / "adapter_model.safetensors", tensors, format="pt")
    words = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"} | config
    (folder / "adapter_config.json").write_text(json.dumps(words, indent=1))


def llama(*, r: int = 4, layers: int = 2, seed: int = 0, **kwargs: Any) -> dict:
    """Return attention and MLP of a tiny Llama, two heads of size 4."""
    shapes = {
        "self_attn.q_proj": (8, 8),
        "self_attn.k_proj": (8, 4),
        "self_attn.v_proj": (8, 4),
        "self_attn.o_proj": (8, 8),
        "mlp.gate_proj": (8, 12),
        "mlp.up_proj": (8, 12),
        "mlp.down_proj": (12, 8),
    }
    found = {}
    for i in range(layers):
        for j, (name, (m, n)) in enumerate(shapes.items()):
            path = f"model.layers.{i}.{name}"
            found |= pair(path, m, n, r, seed=seed + 100 * i + 2 * j, **kwargs)
    return found


def mixed() -> dict:
    """Return modules of unequal ranks, a trained head, and a bias beside an update."""
    return {
        **pair("block.0.fc", 7, 5, 2, seed=1),
        **pair("block.2.fc", 7, 5, 3, seed=2),
        **pair("block.10.fc", 5, 9, 4, seed=3),
        "base_model.model.block.10.fc.lora_B.bias": array(9, seed=4),
        "base_model.model.classifier.weight": array(3, 9, seed=5),
        "base_model.model.classifier.bias": array(3, seed=6),
    }


def layers() -> dict:
    """Return a convolution and an embedding."""
    name = "base_model.model."
    return {
        f"{name}stem.lora_A.weight": array(3, 2, 3, 3, seed=1),
        f"{name}stem.lora_B.weight": array(6, 3, 1, 1, seed=2),
        f"{name}embed.lora_embedding_A": array(3, 11, seed=3),
        f"{name}embed.lora_embedding_B": array(6, 3, seed=4),
        **pair("fc", 6, 5, 3, seed=5),
    }


def kohya(alpha: float | None) -> dict:
    """Return a file of a text encoder and a UNet in kohya's names."""
    shapes = {
        "lora_te_text_model_encoder_layers_0_self_attn_q_proj": (8, 8),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q": (6, 6),
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_k": (6, 6),
    }
    found = {}
    for i, (name, (m, n)) in enumerate(shapes.items()):
        found[f"{name}.lora_down.weight"] = array(4, m, seed=2 * i)
        found[f"{name}.lora_up.weight"] = array(n, 4, seed=2 * i + 1)
        if alpha is not None:
            found[f"{name}.alpha"] = np.float32(alpha)
    return found


def mlx() -> dict:
    names = ("model.layers.2.self_attn.q_proj", "model.layers.10.mlp.up_proj")
    return {
        f"{name}.{key}": array(*shape, seed=i)
        for i, name in enumerate(names)
        for key, shape in (("lora_a", (8, 3)), ("lora_b", (3, 7 + 4 * i)))
    }


def nnx() -> dict:
    def one(i: int) -> dict:
        return {
            "lora_a": {"value": array(8, 3, seed=i)},
            "lora_b": {"value": array(3, 5, seed=i)},
            "base_module": {"kernel": {"value": array(8, 5)}},
        }

    return {"blocks": {str(i): {"fc": one(i)} for i in range(2)}}


def _pair(name: str, a: tuple[int, ...], b: tuple[int, ...], seed: int) -> dict:
    return {
        f"{name}_lora_a": array(*a, seed=seed),
        f"{name}_lora_b": array(*b, seed=seed + 1),
    }


def tunix() -> dict:
    def one(i: int) -> dict:
        q = {"w": array(12, 2, 4)} | _pair("w", (12, 3), (3, 2, 4), i)
        o = {"w": array(2, 4, 12)} | _pair("w", (2, 4, 3), (3, 12), i + 5)
        return {"attn": {"q_proj": q, "o_proj": o}, "norm": {"w": array(12)}}

    return {"layers": {str(i): one(i) for i in range(2)}}


def qwix() -> dict:
    fc = {"kernel": array(8, 5)} | _pair("kernel", (8, 3), (3, 5), 1)
    return {"fc": fc, "head": {"w": array(4, 2, 7)} | _pair("w", (4, 2, 3), (3, 7), 2)}


def gemma() -> dict:
    def lora(a: tuple[int, ...], b: tuple[int, ...], seed: int) -> dict:
        return {"lora": {"a": array(*a, seed=seed), "b": array(*b, seed=seed + 1)}}

    def one(i: int) -> dict:
        kv = {"_LoRAEinsum_0": lora((9, 3), (3, 2, 1, 4), i)}
        return {"attn": {"kv_einsum": kv}, "mlp": {"linear": lora((7, 3), (3, 9), i)}}

    return {f"layer_{i}": one(i) for i in range(2)}


def maxtext() -> dict:
    query = {"kernel": array(12, 2, 2, 4)}
    query |= _pair("kernel", (12, 2, 3), (3, 2, 2, 4), 0)
    return {"params": {"decoder": {"layers": {"self_attention": {"query": query}}}}}


def linen() -> dict:
    up = {"a": array(2, 8, 3), "b": array(2, 3, 5)}
    return {"lora": {"h": {"up": up}}}


def lorax() -> dict:
    """Return a shipped tree written by jax-lorax."""
    found: dict = {}
    with np.load(REPO / LORAX, allow_pickle=False) as file:
        for path, x in file.items():
            first, *parents, name = path.split("/")
            node = found
            for parent in parents:
                node = node.setdefault(parent, {})
            if first == "tree":
                node[name] = x
    return found


TREES = {x.__name__: x for x in (nnx, tunix, qwix, gemma, maxtext, linen)}


def jnp_adapters(**kwargs: Any) -> dict:
    """Return two modules, one of them a stack, as JAX arrays."""
    import para_jax as para

    def one(m: int, n: int, r: int, seed: int, *stack: int) -> para.Adapter:
        a = jnp.asarray(array(*stack, m, r, seed=seed, **kwargs))
        b = jnp.asarray(array(*stack, r, n, seed=seed + 1, **kwargs))
        return para.Adapter(a, b, 0.5)

    return {"head": one(6, 5, 3, 1), "layers/up": one(7, 6, 4, 3, 2)}


def make(folder: pathlib.Path) -> None:
    """Write all inputs."""
    for name, path in ASSETS.items():
        shutil.copytree(REPO / path, folder / name)
    peft(folder / "llama", llama(), target_modules="all-linear")
    half = llama(seed=7, dtype=ml_dtypes.bfloat16)
    peft(folder / "half", half, use_rslora=True)
    patterns = {"block.0.fc": 2, "block.2.fc": 3}
    alphas = {"block.2.fc": 12}
    peft(folder / "mixed", mixed(), rank_pattern=patterns, alpha_pattern=alphas)
    peft(folder / "layers", layers(), r=3, lora_alpha=6)
    tied = pair("a", 8, 6, 4, seed=1)
    tied |= {x.replace(".a.", ".b."): y for x, y in tied.items()}
    peft(folder / "tied", tied | pair("c", 8, 6, 4, seed=3))
    for i, name in enumerate(("acme", "beta", "core")):
        peft(folder / "tenants" / name / "adapter", llama(layers=1, seed=10 * i))
    write(folder / "kohya.safetensors", kohya(2.0), ss_network_module="networks.lora")
    write(folder / "bare.safetensors", kohya(None))
    write(folder / "mlx/adapters.safetensors", mlx())
    lora = {"rank": 3, "scale": 20.0, "dropout": 0.1}
    words = {"fine_tune_type": "lora", "num_layers": 16, "lora_parameters": lora}
    (folder / "mlx/adapter_config.json").write_text(json.dumps(words))
    for name, tree in TREES.items():
        facts = {"lora": {"lora_rank": 3, "lora_alpha": 6.0}}
        ocp.save(folder / name, tree(), custom_metadata=facts if "max" in name else {})
    _broken(folder)


def _broken(folder: pathlib.Path) -> None:
    plain = pair("fc", 8, 6, 4, seed=1)
    peft(folder / "dora", plain, use_dora=True)
    peft(folder / "pissa", plain, init_lora_weights="pissa")
    peft(folder / "pissa-initial", pair("fc", 8, 6, 4, seed=5))
    peft(folder / "nan", {x: y * np.float32("nan") for x, y in plain.items()})
    peft(folder / "half-gone", dict(list(plain.items())[:1]))
    peft(folder / "cut-short", plain)
    file = folder / "cut-short/adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-7])
    (folder / "empty").mkdir()
    (folder / "text.safetensors").write_text("no tensors")
    (folder / "table.toml").write_text('"blocks/{i}/fc" = "model.blocks.{i}.dense"\n')
