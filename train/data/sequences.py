"""Prompts with responses, to train a causal language model on the responses.

The label of a position is the token after it: the label of a prompt's last token is the
response's first token. Prompts and padding have no labels. Axis letters: `N` sequences,
`T` tokens, `B` sequences of a batch. Runs on the host, except for `batch`.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from jaxtyping import Int

from train.data import arrays
from train.data.batch import NO_LABEL, Batch


class Pair(NamedTuple):
    """The tokens of a prompt, and of the response to it."""

    prompt: Sequence[int]
    response: Sequence[int]


class Sequences(NamedTuple):
    """Sequences of one width. A pytree, so that a compiled program can index it.

    Attributes:
      ids: Prompt, response, and zeros behind them.
      lengths: The tokens of both together.
      prompts: The lengths of the prompts alone.
    """

    ids: Int[jax.Array | np.ndarray, "N T"]
    lengths: Int[jax.Array | np.ndarray, "N"]
    prompts: Int[jax.Array | np.ndarray, "N"]

    def batch(self, rows: Int[jax.Array | np.ndarray, "B"]) -> Batch:
        """Return some of the sequences, with labels `[B, T]`. Traceable under `jit`."""
        ids, lengths, prompts = (x[rows] for x in self)
        following = jnp.pad(ids[:, 1:], [(0, 0), (0, 1)])
        # A label is the next token, so places are shifted by one.
        places = 1 + jnp.arange(ids.shape[1])[None]
        counts = (places >= prompts[:, None]) & (places < lengths[:, None])
        return Batch(ids, jnp.where(counts, following, NO_LABEL))


def encode(
    tokenizer: tokenizers.Tokenizer, texts: Iterable[tuple[str, str]], *, end: int
) -> list[Pair]:
    """Tokenize prompts and responses.

    A prompt has the tokenizer's special tokens at its start. A response continues
    the same text, and ends with the token `end`.

    Args:
      tokenizer: The model's tokenizer.
      texts: Each prompt with its response.
      end: The token for the model to write after a response.
    """
    prompts, responses = zip(*texts, strict=True)
    begun = tokenizer.encode_batch(list(prompts))
    # Without special tokens: a response continues its prompt.
    more = tokenizer.encode_batch(list(responses), add_special_tokens=False)
    return [Pair(x.ids, [*y.ids, end]) for x, y in zip(begun, more, strict=True)]


def pack(
    pairs: Sequence[Pair], *, width: int, multiple: int | None = None
) -> Sequences:
    """Pack sequences into arrays, padded with zeros to `width` tokens.

    Args:
      pairs: The sequences.
      width: Tokens of a row.
      multiple: The divisor of the number of rows, as for `arrays.filled_up`.
        Rows that fill up have no labels.

    Raises:
      ValueError: if there are none, one is too long, or a part of one is empty.
    """
    if not pairs:
        raise ValueError("No sequences to train on: the split is empty.")
    ids = np.zeros((len(pairs), width), np.int32)
    for number, (row, pair) in enumerate(zip(ids, pairs, strict=True)):
        _check(number, pair, width)
        tokens = [*pair.prompt, *pair.response]
        row[: len(tokens)] = tokens
    prompts = np.array([len(x.prompt) for x in pairs], np.int32)
    lengths = prompts + np.array([len(x.response) for x in pairs], np.int32)
    full = (arrays.filled_up(x, multiple) for x in (ids, lengths, prompts))
    return Sequences(*full)


def batches(pairs: Sequence[Pair], *, width: int, size: int) -> list[Batch]:
    """Return all sequences in batches of one size, in order, on the host.

    Args:
      pairs: The sequences.
      width: As for `pack`.
      size: The rows of a batch.

    Raises:
      ValueError: as `pack`.
    """
    full = pack(pairs, width=width, multiple=size)
    rows = np.arange(len(full.ids)).reshape(-1, size)
    return [jax.device_get(full.batch(x)) for x in rows]


def _check(number: int, pair: Pair, width: int) -> None:
    for name, tokens in pair._asdict().items():
        if not tokens:
            raise ValueError(
                f"The {name} of sequence {number} is empty, expected at least one "
                "token, such as the first or the last of every text."
            )
    if (length := len(pair.prompt) + len(pair.response)) > width:
        raise ValueError(
            f"Sequence {number} has {length} tokens, {len(pair.response)} of them in "
            f"its response, expected <= {width}."
        )
