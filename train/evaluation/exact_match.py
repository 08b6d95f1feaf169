"""Exact match of the answers that causal models generate, each with its own adapters.

An answer is the text of greedy generation after the prompt. The evaluator of
`train.evaluation.evaluate` maps over the adapters beside one frozen base; the memory
for their keys and values limits the number of models in one call.

Axis letters: `G` models in one call, `B` questions, `T` tokens, `N` new tokens. Runs on
the host.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import tokenizers
from jaxtyping import Float

from train.data.batch import NO_LABEL, Batch
from train.evaluation import evaluate
from train.models import generate
from train.models.adapted import Model

_CACHE_BYTES = 2**31
"""Bytes of the keys and values of all models in one call; a step copies them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExactMatch:
    """Settings of how answers are generated and graded.

    Attributes:
      tokenizer: The model's tokenizer.
      is_right: Compares the right response with the generated one: whether the answer
        is the same.
      tokens: The greatest number of new tokens `N`.
      stop: The tokens that end a response.
    """

    tokenizer: tokenizers.Tokenizer
    is_right: Callable[[str, str], bool]
    tokens: int
    stop: tuple[int, ...]

    @property
    def accuracies(self) -> evaluate.Evaluator:
        """The evaluator of causal models by their share of right answers.

        Its model is one that `generate.greedy` takes, its heads are empty (the
        embeddings are the head), and its batches are prompts with their right
        responses, all of one shape, as from `train.data.sequences.batches`.
        """
        return evaluate.Evaluator(self._count, self._limit)

    def _limit(self, model: Model, batches: Sequence[Batch]) -> int:
        return _at_once(model, batches[0], self.tokens)

    def _count(
        self, model: Model, base: Mapping[str, Any], batches: Sequence[Batch]
    ) -> evaluate.Count:
        wanted = [self._responses(x) for x in batches]
        total = sum(map(len, wanted))

        def share(group: evaluate.Group) -> Float[np.ndarray, "G"]:
            rights = np.zeros(group.count, int)
            # Batch by batch: the texts of a whole test set need not fit into memory.
            for batch, right in zip(batches, wanted, strict=True):
                written = self._written(model, base, group.lora, batch)
                rights += self._count_right(written, right, group.count)
            return rights / total

        return share

    def _responses(self, batch: Batch) -> dict[int, str]:
        """Return the right responses, by row; rows that fill up have none."""
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
        """Count the right answers of each of the first models."""
        ids, lengths = map(np.asarray, written)

        def count(model: int) -> int:
            texts = self.tokenizer.decode_batch(
                [ids[model, row, : lengths[model, row]].tolist() for row in wanted]
            )
            return sum(map(self.is_right, wanted.values(), texts))

        return [count(model) for model in range(models)]


def prompts(batch: Batch) -> generate.Prompts:
    """Return the prompts of a batch: the tokens before the first label.

    A row that fills up has no label; its first token is its prompt.
    """
    ids, counts = np.asarray(batch.inputs), np.asarray(batch.labels) != NO_LABEL
    lengths = 1 + counts.argmax(axis=1)
    here = np.arange(ids.shape[1])[None] < lengths[:, None]
    return generate.Prompts(
        np.where(here, ids, generate.PAD).astype(np.int32), lengths.astype(np.int32)
    )


def _at_once(model: Any, batch: Batch, tokens: int) -> int:
    """Return the number of models that fit into memory, at least one."""
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
    """Generate with each model; leaves `[G, B, ...]`. Traceable under `jit`."""

    def one(lora: Any) -> generate.Generated:
        variables = {"params": base, "lora": lora}
        # GPUs round float32 products to TF32 by default; children differ by less.
        with jax.default_matmul_precision("float32"):
            return generate.greedy(model, variables, prompts, tokens=tokens, stop=stop)

    return jax.vmap(one)(lora)
