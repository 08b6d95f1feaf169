"""Define Linen layers with LoRA adapters as variables. Traceable under `jit`.

Adapters are variables of the collection `lora`, beside the frozen `params`:

    logits = model.apply({"params": base, "lora": adapters}, batch)

with `adapters = para_jax.to_params(...)`: at a layer's path the factors `a: [m, r]`
and `b: [r, n]`, the scale folded in. A layer without factors computes as Flax's own, so
the shapes of the adapters are their only configuration.

`nn.scan` and `nn.vmap` must carry the collection along, or no layer sees it:
`variable_axes={"params": 0, "lora": 0}`, with stacked adapters `a: [L, m, r]`.

For a model of other layers, use `applied`.
"""

import typing
from collections.abc import Mapping
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Num

from para_jax._adapters.adapter import Array
from para_jax._adapters.params import unnest
from para_jax.flax import checks, updates
from para_jax.flax.interceptor import applied as applied


@typing.no_type_check  # Flax annotates fields with protocols unknown at run time.
class Dense(nn.Dense):
    """`flax.linen.Dense` with `y = x @ kernel + bias + (x @ a) @ b`.

    The layer adds the last term if the collection `lora` has `a` and `b` for it. The
    attributes and `params` are those of `flax.linen.Dense`.

    Example:
      >>> from para_jax.flax import linen
      >>> layer, x = linen.Dense(7), jnp.ones((1, 5))
      >>> base = layer.init(jax.random.key(0), x)
      >>> lora = {"a": jnp.ones((5, 2)), "b": jnp.ones((2, 7))}
      >>> y = layer.apply(base | {"lora": lora}, x)
      >>> np.round(y - layer.apply(base, x)).tolist()
      [[10.0, 10.0, 10.0, 10.0, 10.0, 10.0, 10.0]]
    """

    def __call__(self, inputs: Num[Array, "*B m"]) -> Num[jax.Array, "*B n"]:
        """Return the layer's output, in the same dtype as without an adapter.

        Raises:
          ValueError: if the factors do not fit the kernel.
        """
        return _with_lora(self, super().__call__(inputs), inputs)


@typing.no_type_check  # Likewise.
class Einsum(nn.Einsum):
    """`flax.linen.Einsum` with the update of its collection `lora`.

    The factors are matrices over the kernel's axes, flattened in the kernel's order:
    the equation contracts the axes of `m` and keeps the axes of `n`. The factors of
    `BTD,NDH->BTNH` are `a: [D, r]`, `b: [r, N*H]`; those of `BTNH,NHD->BTD` are
    `a: [N*H, r]`, `b: [r, D]`.
    The attributes and `params` are those of `flax.linen.Einsum`.

    Example:
      >>> from para_jax.flax import linen
      >>> layer, x = linen.Einsum((6, 2, 3), "TD,DNH->TNH", False), jnp.ones((1, 6))
      >>> base = layer.init(jax.random.key(0), x)
      >>> lora = {"a": jnp.ones((6, 2)), "b": jnp.ones((2, 2 * 3))}
      >>> y = layer.apply(base | {"lora": lora}, x)
      >>> np.round(y - layer.apply(base, x)).tolist()
      [[[12.0, 12.0, 12.0], [12.0, 12.0, 12.0]]]
    """

    def __call__(
        self, inputs: Num[Array, "..."], einsum_str: str | None = None
    ) -> Num[jax.Array, "..."]:
        """Return the layer's output, in the same dtype as without an adapter.

        Raises:
          ValueError: if the factors do not fit the kernel, or the kernel has a batch
            axis, as in `EBD,EDF->EBF`: its update is not a product of two matrices.
        """
        y = super().__call__(inputs, einsum_str)
        return _with_lora(self, y, inputs, einsum_str)


def _with_lora(module: nn.Module, y: jax.Array, *args: Any) -> jax.Array:
    # Not `module.variable`, which would create factors when a model is initialised.
    found = [name for name in ("a", "b") if module.has_variable("lora", name)]
    if not found:
        return y
    if len(found) == 1:
        raise ValueError(
            f"The adapter '{updates.path_of(module)}' has the factor '{found[0]}' "
            "alone, expected 'a' and 'b'. Make it with `para_jax.to_params`."
        )
    a, b = (module.get_variable("lora", name) for name in found)
    return updates.add(module, y, a, b, *args)


def check(lora: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Check that every adapter of `lora` fits a kernel of `params`.

    Flax ignores variables without a module: an adapter under a wrong path would have no
    effect, and raise no error. Runs on the host.

    Example:
      >>> from para_jax.flax import linen
      >>> lora = {"up": {"a": np.ones((5, 2)), "b": np.ones((2, 7))}}
      >>> linen.check(lora, {"up": {"kernel": np.ones((5, 7))}})

    Args:
      lora: Nested dicts, where each adapted module holds `a` and `b`.
      params: The model's params. Kernels of two axes are compared; of more axes, only
        the layer knows which of them it contracts, and compares when it is called.

    Raises:
      ValueError: if a path has no kernel, or the factors do not fit the kernel.
    """
    leaves = unnest(nn.unbox(params))
    kernels = {
        path.removesuffix("/kernel"): x.shape
        for path, x in leaves.items()
        if path.endswith("/kernel")
    }
    factors = unnest(lora)
    for path in dict.fromkeys(path.rpartition("/")[0] for path in factors):
        if path not in kernels:
            raise checks.unknown(path, kernels)
        a, b = (factors.get(f"{path}/{name}") for name in ("a", "b"))
        if a is None or b is None:
            raise ValueError(
                f"The adapter '{path}' has one factor alone, expected 'a' and 'b'. "
                "Make it with `para_jax.to_params`."
            )
        if len(kernels[path]) == 2:
            m, n = kernels[path]
            checks.check(path, a.shape, b.shape, m=m, n=n)
