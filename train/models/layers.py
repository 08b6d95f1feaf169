"""Equal blocks, one after the other, with one array for all of them: `[L, ...]`.

The params are stacked: `layers/mlp/up/kernel: [L, m, n]`. The adapters decide how the
blocks are run, on the same params:

- stacked like them, `layers/mlp/up/a: [L, m, r]`, or none: the blocks are scanned, and
  compiled once;
- under the layer's number, `layers/3/mlp/up/a: [m, r]`, as PEFT names them: each layer
  has its own rank, or no adapter, and the blocks are compiled one by one.

`stacked` and `unstacked` go from one to the other. Traceable under `jit`, except for
these and `check`.
"""

import re
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
from flax import linen as nn

import para_jax as para
from para_jax import Adapter, nest, ordered, unnest
from para_jax.flax import linen

Remat = Literal["none", "full", "dots", "named"]

SAVED = "saved"
"""The `jax.ad_checkpoint.checkpoint_name` of the values kept by `remat="named"`."""

_POLICIES = {
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "named": jax.checkpoint_policies.save_only_these_names(SAVED),
}


class Layers(nn.Module):
    """`count` blocks in the scope of one: `x = block(x, scanned[i], *shared)`.

    A block takes the previous block's output, of the same shapes. It includes any
    caches that the blocks write.

    Attributes:
      block: Makes a block, such as `functools.partial(Block, config)`.
      count: The number of blocks `L`.
      remat: The values to recompute in a backward pass. `none`: none, all intermediate
        values are kept. `full`: all of a block but its input. `dots`: all but the
        products of activations and weights. `named`: all but those named `SAVED`.
    """

    block: Callable[[], nn.Module]
    count: int
    remat: Remat = "none"

    @nn.compact
    def __call__(self, x: Any, scanned: Any, *shared: Any) -> Any:
        """Return the output of the last block.

        Args:
          x: The input of the first block: any tree of arrays.
          scanned: Constants of the layers, any tree of `[L, ...]`, or None. A block
            gets the slices of its layer.
          *shared: The further arguments of all blocks.

        Raises:
          ValueError: if some adapters are stacked and others under a layer's number,
            or there is no such layer.
        """
        block = self.block()
        # The block's params appear under the name of `Layers` itself.
        nn.share_scope(self, block)
        # Init always scans: the params are stacked either way.
        unrolled = not self.is_initializing() and self._has_own_adapters()
        body = self._body(unrolled)
        if unrolled:
            for index in range(self.count):
                x, _ = _of_layer(body, index)(
                    block, x, jax.tree.map(lambda c, i=index: c[i], scanned), *shared
                )
            return x
        scan = nn.scan(
            body,
            # Stacked on their first axis, one slice a layer.
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, *[nn.broadcast] * len(shared)),
            length=self.count,
        )
        return scan(block, x, scanned, *shared)[0]

    def _body(self, unrolled: bool) -> Callable[..., Any]:
        def body(block: Any, x: Any, *args: Any) -> tuple[Any, None]:
            return block(x, *args), None

        if self.remat == "none":
            return body
        # A scan keeps XLA from undoing it without help.
        return nn.remat(body, policy=_POLICIES[self.remat], prevent_cse=unrolled)

    def _has_own_adapters(self) -> bool:
        names = list(self.variables.get("lora", {}))
        numbers = [name for name in names if name.isdigit()]
        allowed = {str(i) for i in range(self.count)}
        if numbers and not set(names) <= allowed:
            raise ValueError(
                f"The adapters of '{'/'.join(self.path)}' lie under {ordered(names)}, "
                f"expected numbers of layers, 0 to {self.count - 1}, or modules alone. "
                "Bring them into one form with `train.models.layers.stacked`."
            )
        return bool(numbers)


class Container(nn.Module):
    """The scope of transformers around the blocks, with `Layers` in it.

    Attributes:
      block: As for `Layers`.
      count: The number of blocks `L`.
      remat: As for `Layers`.
      within: The name of the blocks in this scope.
    """

    block: Callable[[], nn.Module]
    count: int
    remat: Remat
    within: str

    @nn.compact
    def __call__(self, x: Any, *shared: Any) -> Any:
        layers = Layers(self.block, self.count, self.remat, name=self.within)
        return layers(x, None, *shared)


def _of_layer(body: Callable[..., Any], index: int) -> Callable[..., Any]:
    def pick(variables: Mapping[str, Any]) -> dict[str, Any]:
        params = jax.tree.map(lambda x: x[index], variables["params"])
        # A layer without adapters gets an empty collection.
        return {"params": params, "lora": variables["lora"].get(str(index), {})}

    return nn.map_variables(body, ["params", "lora"], trans_in_fn=pick)


def stacked(
    adapters: Mapping[str, Adapter], count: int, *, path: str = "model/layers"
) -> dict[str, Adapter]:
    """Stack the adapters of all layers, for one scan. Inverse: `unstacked`.

    `layers/0/mlp/up`, `layers/2/mlp/up` become `layers/mlp/up` with `a: [L, m, r]`,
    padded with zeros to the largest rank; a layer without an adapter has zeros alone.

    Args:
      adapters: By path. Stacked ones, and those outside of the layers, stay.
      count: The number of layers `L`.
      path: The path of the layers.

    Raises:
      ValueError: if there is no such layer, or kernels of one stack differ in shape.
    """
    groups: dict[str, dict[int, Adapter]] = {}
    rest: dict[str, Adapter] = {}
    for name, adapter in adapters.items():
        if found := re.fullmatch(rf"{re.escape(path)}/(\d+)/(.+)", name):
            layers = groups.setdefault(f"{path}/{found[2]}", {})
            layers[int(found[1])] = para.folded(adapter)
        else:
            rest[name] = adapter
    return rest | {name: _stack(name, x, count) for name, x in groups.items()}


def _stack(name: str, layers: Mapping[int, Adapter], count: int) -> Adapter:
    if max(layers) >= count:
        raise ValueError(
            f"'{name}' has an adapter of layer {max(layers)}, expected 0 to "
            f"{count - 1}. Was it trained on this model?"
        )
    # All layers get the largest rank; zeros do not change the product.
    widest = max(layers.values(), key=lambda x: x.rank)
    members = {f"{name}/{i}": x for i, x in layers.items()}
    padded = para.pad(members, like={f"{name}/{i}": widest for i in range(count)})
    return para.stack(padded, {name: (count,)})[name]


def unstacked(
    adapters: Mapping[str, Adapter], *, path: str = "model/layers"
) -> dict[str, Adapter]:
    """Give every layer its own adapters, under its number. Inverse: `stacked`.

    Args:
      adapters: Stacks of the layers, as `layers/mlp/up` with `a: [L, m, r]`; or their
        members, as `layers/mlp/up/3`, which is what a ragged child consists of.
      path: The path of the layers.
    """
    # `unstack` puts the layer's number last; PEFT has it after the path.
    pattern = re.compile(rf"{re.escape(path)}/(.*\D.*)/(\d+)")
    return {
        pattern.sub(rf"{path}/\2/\1", name): adapter
        for name, adapter in para.unstack(adapters).items()
    }


def check(lora: Mapping[str, Any], params: Mapping[str, Any]) -> None:
    """Check adapters against kernels as `linen.check` does, also within stacks.

    It knows of layers' own adapters: `layers/3/mlp/up` fits into a slice of
    `layers/mlp/up/kernel`.

    Raises:
      ValueError: if a path has no kernel, or the factors do not fit the kernel.
    """
    kernels = unnest(nn.unbox(params))
    view = dict(kernels)
    for path in {name.rpartition("/")[0] for name in unnest(lora)}:
        for number in re.finditer(r"/(\d+)(?=/)", path):
            stack = path[: number.start()] + path[number.end() :]
            whole = kernels.get(f"{stack}/kernel")
            # A view of one layer, so that the common check sees plain kernels.
            if whole is not None and int(number[1]) < whole.shape[0]:
                slice_ = jax.ShapeDtypeStruct(whole.shape[1:], whole.dtype)
                view[f"{path}/kernel"] = slice_
    linen.check(lora, nest(view))
