"""How many questions causal models answer rightly, each with its own adapters.

An answer is what greedy generation writes after the prompt. Many adapters are evaluated
in one call, as `train.evaluation.evaluate` does for classifiers: mapped over beside one
frozen base, as many at once as the memory for their keys and values allows.

Axis letters: `C` models, `B` questions, `T` tokens, `N` new tokens. Host code.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Float

from train.data.batch import NO_LABEL, Batch
from train.evaluation import evaluate
from train.models import generate
from train.models.adapted import Model

_CACHE_BYTES = 2**31
"""Of the keys and values of all models in one call; a step copies them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """How answers are written and graded.

    Attributes:
      tokenizer: That of the model.
      is_right: Says of the right response and of what was written whether the answer
        is the same.
      tokens: The greatest number of new tokens `N`.
      stop: The tokens that end a response.
    """

    tokenizer: tokenizers.Tokenizer
    is_right: Callable[[str, str], bool]
    tokens: int
    stop: tuple[int, ...]

    def accuracies(
        self,
        model: Model,
        base: Mapping[str, Any],
        heads: Mapping[str, Any],
        lora: Mapping[str, Any],
        batches: Sequence[Batch],
        *,
        at_once: int = evaluate.AT_ONCE,
    ) -> Float[np.ndarray, "C"]:
        """Returns the share of right answers of each of many models on one base.

        Args:
          model: A causal model that `generate.greedy` takes.
          base: The frozen params.
          heads: Empty: its embeddings are its head.
          lora: The adapters, as `para_jax.to_params` gives them, leaves `[C, ...]`.
          batches: Prompts with their right responses, all of one shape, as from
            `train.data.sequences.batches`.
          at_once: The greatest number of models in one call of the compiled program.

        Raises:
          ValueError: if there are no batches.
        """
        evaluate.check(batches)
        base = jax.tree.map(jnp.asarray, {**base, **heads})
        wanted = [self._responses(x) for x in batches]
        count = len(jax.tree.leaves(lora)[0])
        size = min(at_once, _at_once(model, batches[0], self.tokens))
        rights = np.zeros(count, int)
        for start, some in zip(
            range(0, count, size), evaluate.groups(lora, size), strict=True
        ):
            here = slice(start, min(start + size, count))
            for batch, right in zip(batches, wanted, strict=True):
                written = self._written(model, base, some, batch)
                rights[here] += self._count_right(written, right, here.stop - start)
        return rights / sum(map(len, wanted))

    def _responses(self, batch: Batch) -> dict[int, str]:
        """Returns the right responses, by row; rows that fill up have none."""
        labels = np.asarray(batch.labels)
        rows = np.flatnonzero((labels != NO_LABEL).any(axis=1)).tolist()
        text = ~np.isin(labels, (NO_LABEL, *self.stop))
        texts = [labels[row][text[row]].tolist() for row in rows]
        return dict(zip(rows, self.tokenizer.decode_batch(texts), strict=True))

    def _written(
        self, model: Model, base: Any, lora: Any, batch: Batch
    ) -> generate.Generated:
        settings = {"tokens": self.tokens, "stop": self.stop}
        return jax.device_get(_written(model, base, lora, prompts(batch), **settings))

    def _count_right(
        self, written: generate.Generated, wanted: Mapping[int, str], models: int
    ) -> list[int]:
        """Returns how many of the answers of each of the first models are right."""
        ids, lengths = map(np.asarray, written)

        def count(model: int) -> int:
            texts = self.tokenizer.decode_batch(
                [ids[model, row, : lengths[model, row]].tolist() for row in wanted]
            )
            return sum(map(self.is_right, wanted.values(), texts))

        return [count(model) for model in range(models)]


def prompts(batch: Batch) -> generate.Prompts:
    """Returns the prompts of a batch: all that comes before the first label.

    A row that fills up has no label; its first token is its prompt.
    """
    ids, counts = np.asarray(batch.inputs), np.asarray(batch.labels) != NO_LABEL
    lengths = 1 + counts.argmax(axis=1)
    here = np.arange(ids.shape[1])[None] < lengths[:, None]
    return generate.Prompts(
        np.where(here, ids, generate.PAD).astype(np.int32), lengths.astype(np.int32)
    )


def _at_once(model: Any, batch: Batch, tokens: int) -> int:
    """Returns for how many models there is memory, at least one."""
    rows, width = np.shape(batch.inputs)
    make = functools.partial(
        model.apply, {}, rows, width + tokens, method="empty_cache"
    )
    cache = jax.tree.leaves(jax.eval_shape(make))
    return max(1, _CACHE_BYTES // sum(x.size * x.dtype.itemsize for x in cache))


@functools.partial(jax.jit, static_argnames=("model", "tokens", "stop"))
def _written(
    model: Any,
    base: Mapping[str, Any],
    lora: Mapping[str, Any],
    prompts: generate.Prompts,
    *,
    tokens: int,
    stop: tuple[int, ...],
) -> generate.Generated:
    """Returns what each model writes, leaves `[C, B, ...]`. Traced."""

    def one(lora: Any) -> generate.Generated:
        variables = {"params": base, "lora": lora}
        # Whatever a GPU does by default: children differ by little.
        with jax.default_matmul_precision("float32"):
            return generate.greedy(model, variables, prompts, tokens=tokens, stop=stop)

    return jax.vmap(one)(lora)
