"""Causal language models that choose one of several given answers.

The model's answer is the text that it finds the most likely per token, after the
question. Axis letters: `B` questions, `A` answers, `T` tokens of a question with an
answer, `K` tokens of an answer, `d` model width, `V` vocabulary. Traceable under `jit`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from train.models.adapted import Adapted

NO_TOKEN = -1
"""The token behind an answer, and of answers that a question lacks."""

_AT_ONCE = 128  # Tokens with logits in memory at a time.


class Questions(NamedTuple):
    """Questions of one width.

    Attributes:
      ids: The tokens of the question and of each answer, and zeros behind them.
      last: The place of the question's last token.
      answers: The tokens of the answers alone, and `NO_TOKEN` behind them.
    """

    ids: Int[jax.Array | np.ndarray, "B A T"]
    last: Int[jax.Array | np.ndarray, " B"]
    answers: Int[jax.Array | np.ndarray, "B A K"]


@dataclasses.dataclass(frozen=True)
class Chooser:
    """A causal language model with the likelihoods of answers.

    Attributes:
      model: The model, with `hidden` and `logits` as `gemma3.Gemma3`.
    """

    model: Any

    @property
    def adapted(self) -> Adapted:
        return self.model.adapted

    def apply(
        self, variables: Mapping[str, Any], inputs: Questions
    ) -> Float[jax.Array, "B A"]:
        """Return the mean log-likelihood of each answer's tokens, float32.

        It is `-inf` where there is no answer.
        """
        count, choices, width = inputs.ids.shape
        ids = jnp.reshape(inputs.ids, (-1, width))
        x = self.model.apply(variables, ids, method="hidden").x
        x = x.reshape(count, choices, width, -1)
        # The tokens before those of the answer; the last of a row precedes none.
        places = (
            jnp.asarray(inputs.last)[:, None]
            + jnp.arange(inputs.answers.shape[-1])[None]
        )
        places = jnp.minimum(places, width - 1)[:, None, :, None]
        x = jnp.take_along_axis(x, places, axis=2)

        rows = (
            x.reshape(-1, *x.shape[2:]),
            jnp.reshape(inputs.answers, (len(ids), -1)),
        )

        # All logits would take `B A K V` floats.
        @jax.checkpoint
        def one(row: tuple[jax.Array, jax.Array]) -> Float[jax.Array, ""]:
            return self._likelihood(variables, *row)

        size = max(1, _AT_ONCE // inputs.answers.shape[-1])
        return jax.lax.map(one, rows, batch_size=size).reshape(count, choices)

    def init(self, rngs: Any, inputs: Questions) -> Any:
        """Initialise variables, with the shapes that `apply` reads."""
        return self.model.init(rngs, inputs.ids[:, 0])

    def _likelihood(
        self,
        variables: Mapping[str, Any],
        x: Float[jax.Array, "K d"],
        answer: Int[jax.Array, " K"],
    ) -> Float[jax.Array, ""]:
        logits = self.model.apply(variables, x, method="logits")
        counts = answer != NO_TOKEN
        # Any valid token: its logit is not used.
        chosen = jnp.maximum(answer, 0)[:, None]
        found = jnp.take_along_axis(logits, chosen, axis=1)[:, 0]
        found -= jax.nn.logsumexp(logits, axis=1)
        tokens = counts.sum()
        mean = found.sum(where=counts) / jnp.maximum(tokens, 1)
        return jnp.where(tokens > 0, mean, -jnp.inf)
