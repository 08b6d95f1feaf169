"""Resolve the scale of each layer of a file of keras-hub, which does not record alpha.

Runs on the host.
"""

import math
import pathlib
from collections.abc import Mapping

from para_jax._adapters.adapter import Adapter
from para_jax._adapters.messages import ALPHA_OR_SCALE, Argument, Message
from para_jax.formats.format import Hints


def of_layers(
    path: pathlib.Path, adapters: Mapping[str, Adapter], given: Hints, *, known: bool
) -> dict[str, float]:
    """Return the scale of each layer.

    Args:
      path: The file, for errors.
      adapters: Its adapters.
      given: The user's alpha or scale.
      known: Whether `save` wrote the file, at a scale of 1.

    Raises:
      ValueError: if the scale is not known, given twice, or not a finite number.
    """
    names = [x for x in ("alpha", "scale") if getattr(given, x) is not None]
    if known and names:
        argument = Argument(names[0], getattr(given, names[0]))
        raise ValueError(
            Message(f"'{path}' holds its own scales: leave out ", argument, ".")
        )
    if len(names) == 2:
        raise ValueError(Message("Give ", ALPHA_OR_SCALE, ", not both."))
    if known:
        return dict.fromkeys(adapters, 1.0)
    if not names:
        raise ValueError(_unknown())
    found = {name: _scale(name, x.rank, given) for name, x in adapters.items()}
    _check(found, given)
    return found


def _unknown() -> str:
    return Message(
        "it does not record alpha. Give ",
        Argument("alpha"),
        ", lora_alpha of the layers, or ",
        Argument("scale"),
        ": 1 if enable_lora of a backbone set it, which is alpha equal to the rank.",
    )


def _scale(name: str, rank: int, given: Hints) -> float:
    if given.scale is not None:
        return float(given.scale)
    alpha = given.alpha.get(name) if isinstance(given.alpha, Mapping) else given.alpha
    if alpha is None:
        raise ValueError(
            Message(Argument("alpha"), f" has no entry for the layer '{name}'.")
        )
    return float(alpha) / max(rank, 1)


def _check(found: Mapping[str, float], given: Hints) -> None:
    for name, value in found.items():
        if not math.isfinite(value):
            raise ValueError(f"'{name}' has the scale {value}: expected a finite one.")
    # A misspelt path must not pass unnoticed beside the right ones.
    alphas = given.alpha if isinstance(given.alpha, Mapping) else {}
    if unknown := sorted(alphas.keys() - found.keys()):
        raise ValueError(
            Message(
                Argument("alpha"),
                f" names '{unknown[0]}', expected one of {list(found)[:3]}, ...",
            )
        )
