"""Causal language models that choose one of several given answers.

A question ends where the answers begin to differ, and the model's answer is the most
likely one of their next tokens. All other tokens of the vocabulary have no say, in the
loss neither. Axis letters: `B` questions, `T` tokens, `A` answers, `V` vocabulary.
Traceable under `jit`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from train.models.adapted import Adapted

NO_ANSWER = -1
"""The token in the place of an answer, for questions with fewer than others."""


class Questions(NamedTuple):
    """Questions of one width.

    Attributes:
      ids: The tokens, and zeros behind them.
      last: The place of each question's last token.
      answers: The next tokens to choose from, or `NO_ANSWER`.
    """

    ids: Int[jax.Array | np.ndarray, "B T"]
    last: Int[jax.Array | np.ndarray, " B"]
    answers: Int[jax.Array | np.ndarray, "B A"]


@dataclasses.dataclass(frozen=True)
class Chooser:
    """A causal language model with the logits of answers.

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
        """Return the logits of the answers, float32; `-inf` where there is none."""
        state = self.model.apply(variables, inputs.ids, method="hidden")
        # One position a question: logits of all would take `T V` floats each.
        x = jnp.take_along_axis(state.x, inputs.last[:, None, None], axis=1)[:, 0]
        logits = self.model.apply(variables, x, method="logits")
        # Any valid token: its logit is not used.
        chosen = jnp.maximum(inputs.answers, 0)
        found = jnp.take_along_axis(logits, chosen, axis=1)
        return jnp.where(inputs.answers == NO_ANSWER, -jnp.inf, found)

    def init(self, rngs: Any, inputs: Questions) -> Any:
        """Initialise variables, with the shapes that `apply` reads."""
        return self.model.init(rngs, inputs.ids)
