"""Build frozen models with pluggable adapter updates, and the adapters of tenants.

- `minilm`: all-MiniLM-L6-v2 with a classifier, 48 tokens a sentence, every adapted
  kernel; the singular values are those of the adapter in train/assets.
- `llama`: the matrices of some layers of Llama-3-8B, one token a row, as in decoding.
  Norms and the gate are included; attention is not, and uses `v` instead. The singular
  values of a module decay as `j ** -p`, with `p` between 0.5 and 1.5, from a norm that
  varies by `exp(0.5 z)` between modules (`z` normal).

Every tenant's parent has rank 16 and its own norms, the model's times `exp(0.5 z)` for
each module: rank maps are similar but not equal. Children keep a quarter of the ranks,
by `para_jax.ranks`. Weights are random, since only shapes and ranks affect the time.
"""

import functools
import math
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import para_jax as para
from tests.benchmarks import cases
from train.models import bert

RANK, GAMMA, SPREAD = 16, 0.25, 0.5
TOKENS = 48
ADAPTER = pathlib.Path("train/assets/minilm-movie-r16")
MINILM = bert.Config(
    vocab_size=30522,
    hidden_size=384,
    num_hidden_layers=6,
    num_attention_heads=12,
    intermediate_size=1536,
    max_position_embeddings=512,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
)
LLAMA = cases.CASES["llama3-8b-r16"]

Update = Callable[[str, jax.Array], Any]
"""What adapters add to a module's output: its path, `[B, T, m]` to `[B, T, n]`."""


class Backbone(NamedTuple):
    """A frozen model.

    Attributes:
      name: Its name.
      dtype: The dtype of weights, factors and sums.
      kernels: `(m, n)` of all kernels that an adapter of the whole model changes.
      singular: Their singular values, `[modules, r]`.
      timed: The paths in `forward`: all of them, or those of some layers.
      params: The frozen weights, on the host.
      inputs: Makes a batch of a given number of rows.
      forward: Applies the model to weights, update and batch.
    """

    name: str
    dtype: str
    kernels: Mapping[str, tuple[int, int]]
    singular: np.ndarray
    timed: tuple[str, ...]
    params: Any
    inputs: Callable[[int], Any]
    forward: Callable[[Any, Update, Any], jax.Array]


def rank_maps(singular: np.ndarray, tenants: int) -> np.ndarray:
    """Return the ranks of all tenants' children, `[modules, tenants]`."""
    modules, r = singular.shape
    generator = np.random.default_rng(0)
    lengths = np.exp(SPREAD * generator.standard_normal((tenants, modules, 1)))
    square = np.zeros((modules, r, r))

    def ranks(s: np.ndarray) -> np.ndarray:
        one = para.Spectrum(
            s=s, left=square, right=square, shape=(r, r), dtype="float64", nominal=r
        )
        return para.ranks({"": one}, para.Gamma(GAMMA))[""]

    return np.stack([ranks(s) for s in lengths * singular], axis=1)


def drawn(shape: tuple[int, ...], scale: float, dtype: str) -> np.ndarray:
    """Return reproducible random values by repeating one block.

    Repeating makes a large array as fast as copying it.
    """
    return np.resize((_block() * scale).astype(jnp.dtype(dtype)), shape)


@functools.cache
def _block() -> np.ndarray:
    return np.random.default_rng(0).standard_normal(2**20 + 7)


def minilm() -> Backbone:
    modules = para.inspect(para.load(ADAPTER)).report.modules
    kernels = {x.path: (x.inputs, x.outputs) for x in modules}
    model, batch = bert.BertClassifier(MINILM, 3), _sentences(1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    return Backbone(
        name="minilm",
        dtype="float32",
        kernels=kernels,
        singular=np.stack([x.sigma for x in modules]),
        timed=tuple(kernels),
        params=jax.tree.map(lambda x: drawn(x.shape, 0.03, "float32"), shapes),
        inputs=_sentences,
        forward=functools.partial(_classify, model, frozenset(kernels)),
    )


def _sentences(rows: int) -> bert.Tokens:
    ids = np.random.default_rng(0).integers(0, MINILM.vocab_size, (rows, TOKENS))
    return bert.Tokens(ids.astype(np.int32), np.ones(ids.shape, bool))


def _classify(
    model: nn.Module, paths: frozenset[str], params: Any, update: Update, batch: Any
) -> jax.Array:
    inside = set()  # A subclass that calls `super().__call__` is intercepted twice.

    def add(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        path = "/".join(context.module.path)
        if path not in paths or path in inside:
            return call(*args, **kwargs)
        inside.add(path)
        return call(*args, **kwargs) + update(path, *args)

    with nn.intercept_methods(add):
        return model.apply({"params": params}, batch)


def llama(layers: int, dtype: str) -> Backbone:
    generator, shapes = np.random.default_rng(0), LLAMA.projections
    kernels = {f"{i}/{k}": x for i in range(LLAMA.layers) for k, x in shapes.items()}
    fall = generator.uniform(0.5, 1.5, (len(kernels), 1))
    length = np.exp(SPREAD * generator.standard_normal((len(kernels), 1)))
    timed = tuple(f"{i}/{k}" for i in range(layers) for k in shapes)
    return Backbone(
        name="llama",
        dtype=dtype,
        kernels=kernels,
        singular=length * np.arange(1, RANK + 1) ** -fall,
        timed=timed,
        params={x: drawn(kernels[x], kernels[x][0] ** -0.5, dtype) for x in timed},
        inputs=lambda rows: drawn((rows, 1, LLAMA.projections["q"][0]), 1, dtype),
        forward=functools.partial(_decode, layers),
    )


def _decode(
    layers: int, params: Mapping[str, jax.Array], update: Update, x: jax.Array
) -> jax.Array:
    def dense(path: str, x: jax.Array) -> jax.Array:
        return x @ params[path] + update(path, x)

    for i in range(layers):
        h = _norm(x)
        q, k, v = (dense(f"{i}/{name}", h) for name in "qkv")
        heads = q.shape[-1] // v.shape[-1]
        x = x + dense(f"{i}/o", q * jnp.tile(k, heads) + jnp.tile(v, heads))
        h = _norm(x)
        gate, up = (dense(f"{i}/{name}", h) for name in ("gate", "up"))
        x = x + dense(f"{i}/down", jax.nn.silu(gate) * up)
    return x


def _norm(x: jax.Array) -> jax.Array:
    square = jnp.mean(jnp.square(x.astype(jnp.float32)), axis=-1, keepdims=True)
    return x * jax.lax.rsqrt(square + 1e-6).astype(x.dtype)


def factors(
    m: int, n: int, ranks: np.ndarray, dtype: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return one module's `a: [S, m]` and `b: [S, n]` of all tenants."""
    total, size = int(ranks.sum()), 0.3
    a = drawn((total, m), size / math.sqrt(m), dtype)
    return a, drawn((total, n), size, dtype)
