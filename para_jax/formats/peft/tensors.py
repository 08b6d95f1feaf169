"""PEFT's tensors: their names, and torch's orientation.

`lora_A [r, in]` is our `a^T` and `lora_B [out, r]` our `b^T`. A convolution's factors
are flattened in Flax's axis order, and an embedding's `m` is the vocabulary. Runs on
the host.
"""

import dataclasses
import re
from collections.abc import Mapping

import numpy as np

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.checkpoint import Checkpoint, Layer

PREFIX = "base_model.model."
_KEY = re.compile(
    r"(?P<module>.+)\.(?:lora_(?P<factor>[AB])\.weight|lora_embedding_(?P<table>[AB])"
    r"|lora_(?P<bias>B)\.bias)$"
)
# Modules that PyTorch puts around others: torch.compile, FSDP, and activation
# checkpointing. PEFT silently ignores tensors with such names.
_WRAPPERS = {"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
# Prefixes before PEFT's own: DDP's and DeepSpeed's module, and the component of a
# pipeline. The component's name is kept, since it tells the model.
_HOLDER = re.compile(
    rf"(?:module\.|(?P<part>(?:unet|transformer|text_encoder(?:_\d)?)\.)){PREFIX}"
)
# VeLoRA's directions, along which activations are compressed for the gradient alone,
# and the sampler of MonteCLoRA's noise, which PEFT adds to A in training alone.
_TRAINING = re.compile(r"\.lora_(?:velora_embed$|monteclora_sampler\.)")
# Names of SkyRL's tx, whose writer takes the axis of experts for one of the matrix.
_TX_EXPERT = re.compile(r"\.experts\.\d+\.\w+\.lora_[AB]$")
_TABLE = "embed_tokens"
Tensors = dict[str, np.ndarray]


@dataclasses.dataclass
class Module:
    """The tensors of one module, as they are found."""

    a: np.ndarray | None = None
    b: np.ndarray | None = None
    bias: np.ndarray | None = None
    embedding: bool = False
    parameter: bool = False


def unwrapped(found: Mapping[str, np.ndarray]) -> Tensors:
    """Return tensors under their names in the model itself.

    Names of `_WRAPPERS` are removed, and PEFT's prefix if another one precedes it.

    Raises:
      ValueError: if two tensors then have one name. The message shows both.
    """
    result: Tensors = {}
    first: dict[str, str] = {}
    for name, value in found.items():
        new = ".".join(x for x in name.split(".") if x not in _WRAPPERS)
        if match := _HOLDER.match(new):
            new = (match["part"] or PREFIX) + new[match.end() :]
        bare = new.removeprefix(PREFIX)
        if bare in first:
            raise ValueError(
                f"'{name}' is there under another name too, '{first[bare]}'. Remove "
                "the one that is not the adapter's."
            )
        result[new], first[bare] = value, name
    return result


def by_module(found: Tensors) -> tuple[dict[str, Module], Tensors]:
    """Sort LoRA tensors by module, and return all others by name."""
    modules: dict[str, Module] = {}
    extra: Tensors = {}
    for name, value in unwrapped(found).items():
        if "/" in name:
            raise ValueError(
                f"'{name}' has a slash in its name, which parts paths here."
            )
        match = _KEY.match(name.removeprefix(PREFIX))
        if match is None:
            if _TRAINING.search(name):  # The update does not use it.
                continue
            if ".lora_magnitude_vector" in name:
                raise ValueError(
                    f"'{name}' makes this a DoRA adapter: its update is not the "
                    "product of two factors alone, so it cannot be compressed as LoRA."
                )
            if _TX_EXPERT.search(name):
                raise ValueError(
                    f"'{name}' is an expert's as SkyRL's tx exports it: its file lacks "
                    "all inputs of lora_A, and all experts, behind the first r (skyrl "
                    "0.4.0). Take the adapter from the model's tree: "
                    "para_jax.from_tree(nnx.state(model), slot=...)."
                )
            if ".lora_" in name:
                raise ValueError(f"'{name}' is a LoRA tensor of a kind not known here.")
            extra[name] = value
            continue
        module = modules.setdefault(match["module"], Module())
        if match["bias"]:
            module.bias = value
        else:
            module.embedding = bool(match["table"])
            setattr(module, (match["factor"] or match["table"]).lower(), value)
    for name, module in modules.items():
        if name.rpartition(".")[2] == _TABLE:
            _check_table(module)
    return modules, extra


def _check_table(module: Module) -> None:
    """Read an embedding under a linear layer's names, `[vocabulary, r]` and `[r, n]`.

    SkyRL's tx exports embeddings so. In PEFT such names mean `[r, m]` and `[n, r]`; if
    the shapes agree with those, they are a linear layer's.
    """
    a, b = module.a, module.b
    if a is None or b is None or module.embedding or not a.ndim == b.ndim == 2:
        return
    if a.shape[0] != b.shape[1] and a.shape[1] == b.shape[0]:
        module.a, module.b, module.embedding = a.T, b.T, True


def pair(name: str, module: Module, rank: int) -> tuple[np.ndarray, np.ndarray]:
    """Return A and B of a module; check them against each other and the rank."""
    a, b = module.a, module.b
    if a is None or b is None:
        there, missing = ("A", "B") if b is None else ("B", "A")
        raise ValueError(f"'{name}' has lora_{there} but no lora_{missing}.")
    if not (a.size and b.size):
        raise ValueError(
            f"'{name}' has empty factors: A {list(a.shape)}, B {list(b.shape)}. "
            "DeepSpeed's ZeRO-3 leaves such if it saves without gathering: save again "
            "with stage3_gather_16bit_weights_on_model_save, or run zero_to_fp32.py."
        )
    if "base_layer" in name.split("."):
        raise ValueError(
            f"'{name}' is adapted inside another adapted module (as PEFT does for "
            "MultiheadAttention), which is not supported."
        )
    if a.ndim < 2 or b.ndim != a.ndim:
        raise ValueError(
            f"'{name}': A {list(a.shape)} and B {list(b.shape)} are not a pair of "
            "factors."
        )
    # B is grouped too, so its rank axis is divided by the number of groups.
    if a.ndim > 2 and a.shape[0] != b.shape[1] and a.shape[0] % b.shape[1] == 0:
        raise ValueError(f"'{name}' is a grouped convolution, which is not supported.")
    if a.shape[0] != b.shape[1] or b.size != b.shape[0] * b.shape[1]:
        raise ValueError(
            f"'{name}': the ranks disagree: A {list(a.shape)}, B {list(b.shape)}."
        )
    if a.shape[0] != rank:
        raise ValueError(
            f"'{name}' has rank {a.shape[0]}, but adapter_config.json says {rank}, so "
            "its scale is not known. Correct r or rank_pattern there."
        )
    if a.dtype != b.dtype:
        raise ValueError(
            f"'{name}': A is {a.dtype} and B {b.dtype}: expected one dtype."
        )
    return a, b


def tied(modules: Mapping[str, Module]) -> set[str]:
    """Return the dense layers with the transposed factors of an embedding.

    PEFT's `ensure_weight_tying` ties them, whatever rank the layer would have.
    """
    tables = [x for x in modules.values() if x.embedding and x.a is not None]
    return {
        name
        for name, x in modules.items()
        if not x.embedding and any(_transposed(x, table) for table in tables)
    }


def _transposed(one: Module, two: Module) -> bool:
    if one.a is None or one.b is None or two.a is None or two.b is None:
        return False
    return np.array_equal(one.a, two.b.T) and np.array_equal(one.b, two.a.T)


def layer(module: Module, a: np.ndarray) -> Layer:
    """Infer the kind of layer from the shape of A."""
    if module.embedding:
        return Layer(kind="embedding")
    if a.ndim == 2:
        return Layer()
    _, channels, *window = a.shape
    return Layer(kind="conv", window=(*window, channels))


def from_torch(a: np.ndarray, b: np.ndarray, kind: Layer, scale: float) -> Adapter:
    """Convert torch's factors to an adapter; the inverse is `to_torch`."""
    rank, outputs = a.shape[0], b.shape[0]
    if kind.kind == "conv":  # [r, channels, *window] to [*window, channels, r].
        a = np.moveaxis(a, (0, 1), (-1, -2)).reshape(-1, rank).T
    return Adapter(a=a.T, b=b.reshape(outputs, rank).T, scale=scale)


def to_torch(adapter: Adapter, kind: Layer) -> tuple[np.ndarray, np.ndarray]:
    """Convert an adapter of scale 1 to torch's factors."""
    a, b = np.asarray(adapter.a).T, np.asarray(adapter.b).T
    if kind.kind == "conv":
        kernel = a.T.reshape(*kind.window, adapter.rank)
        a = np.moveaxis(kernel, (-1, -2), (0, 1))
        b = b.reshape(*b.shape, *(1 for _ in kind.window[:-1]))
    return a, b


def keys(module: str, kind: Layer) -> tuple[str, str]:
    """Return the names of both factors of a module."""
    inside = "lora_embedding_{}" if kind.kind == "embedding" else "lora_{}.weight"
    a, b = (f"{PREFIX}{module}.{inside.format(name)}" for name in "AB")
    return a, b


def name_of_extra(name: str, checkpoint: Checkpoint) -> str:
    """Return PEFT's name of a tensor other than a LoRA factor.

    In an adapted module the base's own tensors lie below `base_layer`. If the module
    kept no adapter, they have their plain names again.
    """
    bare = name.removeprefix(PREFIX)
    module, inside, leaf = bare.rpartition(".base_layer.")
    if inside and module.replace(".", "/") in checkpoint.absent:
        bare = f"{module}.{leaf}"
    return PREFIX + bare
