"""The scale of each module of a single file.

A module's own alpha has precedence, then statements in the header or in a file beside
it (see `stated`), then 1, which is how ComfyUI, sd-scripts and diffusers since 0.40
read factors without an alpha. An unclear statement is refused, unless the user supplies
the scale. Runs on the host.
"""

import math
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from para_jax._adapters.messages import ALPHA_OR_SCALE, Argument, Message
from para_jax.formats.format import Hints
from para_jax.formats.kohya.spellings import Module
from para_jax.formats.kohya.stated import Shape, Statement
from para_jax.formats.other_files import listed
from para_jax.formats.peft.tensors import PREFIX

_REMEDY = Message("Say it with ", ALPHA_OR_SCALE, ".")


def shape(module: Module) -> Shape:
    """Return the shape of a module, to compare with statements."""
    rank = module.a.shape[0] if module.a.ndim else 0
    return Shape(rank, any(x > 1 for x in module.a.shape[2:]))


def of_modules(
    modules: Mapping[str, Module], stated: Sequence[Statement], given: Hints
) -> dict[str, float]:
    """Return the scale of each module by its name.

    Raises:
      ValueError: if a scale is unknown, unclear, or stated twice.
    """
    _check_given(given, modules)
    scales: dict[str, float] = {}
    twice: list[str] = []
    for name, module in modules.items():
        said = _said(given, name, shape(module).rank)
        known = _clear(name, module, stated, said)
        if known is not None and said is not None:
            twice.append(name)
        if known is not None:
            scales[name] = known
        elif said is not None:
            scales[name] = said
        else:
            scales[name] = _default(name, module, given)
    # One number may be meant for just the modules without a scale; a table names each.
    if twice and (isinstance(given.alpha, Mapping) or len(twice) == len(modules)):
        word = "alpha" if given.scale is None else "scale"
        value = given.alpha if given.scale is None else given.scale
        raise ValueError(
            Message("it holds its own scales: leave out ", Argument(word, value), ".")
        )
    return scales


def _clear(
    name: str, module: Module, stated: Sequence[Statement], said: float | None
) -> float | None:
    """Return the file's scale of a module; None if it leaves it to the user."""
    try:
        return _known(name, module, stated)
    except _UnclearError:
        if said is None:
            raise
        return None


class _UnclearError(ValueError):
    """A stated but unclear scale, which the user may supply."""


def _check_given(given: Hints, modules: Mapping[str, Module]) -> None:
    if given.alpha is not None and given.scale is not None:
        raise ValueError(Message("Give ", ALPHA_OR_SCALE, ", not both."))
    # A misspelt path would silently leave its module at the default.
    by_path = given.alpha if isinstance(given.alpha, Mapping) else {}
    alphas = [*by_path.values()] if given.alpha is by_path else [given.alpha]
    for name, value in [*(("alpha", x) for x in alphas), ("scale", given.scale)]:
        if value is not None and not _is_scale(value):
            raise ValueError(
                Message(Argument(name, value), ": expected a finite number but 0.")
            )
    paths = {name.replace(".", "/") for name in modules}
    if unknown := sorted(by_path.keys() - paths):
        raise ValueError(
            Message(
                Argument("alpha"),
                f" names '{unknown[0]}', expected one of {listed(sorted(paths))}.",
            )
        )


def _is_scale(value: Any) -> bool:
    return isinstance(value, numbers.Real) and math.isfinite(value) and value != 0


def _said(given: Hints, name: str, rank: int) -> float | None:
    if given.scale is not None:
        return float(given.scale)
    alpha = given.alpha
    if isinstance(alpha, Mapping):
        alpha = alpha.get(name.replace(".", "/"))
    # Factors of rank 0 are refused later, with their shapes.
    return None if alpha is None else float(alpha) / max(rank, 1)


def _known(name: str, module: Module, stated: Sequence[Statement]) -> float | None:
    """Return the scale of a module by its alpha, or by statements outside of it."""
    if module.alpha is not None:
        return _own(module)
    found: dict[str, float] = {}
    for one in stated:
        if (scale := _outside(name, shape(module), one)) is not None:
            found[one.where] = scale
    # Equal numbers from several places do not contradict each other.
    if len(set(found.values())) > 1:
        said = ", ".join(f"{scale:g} by {where}" for where, scale in found.items())
        raise _UnclearError(Message(f"'{name}' has several scales: {said}. ", _REMEDY))
    if stated and not found and any(one.whole for one in stated):
        raise _UnclearError(
            Message(
                f"'{name}' has no alpha, and {stated[0].where}, which states others, "
                "does not cover it. ",
                _REMEDY,
            )
        )
    return next(iter(found.values()), None)


def _outside(name: str, form: Shape, one: Statement) -> float | None:
    """Return the scale of a module by one statement outside the tensors."""
    try:
        scale = one.scale(name, form)
    except ValueError as error:
        raise _UnclearError(
            Message(
                f"'{name}' has the rank {form.rank} and no alpha, and {one.where} does "
                "not tell its scale: ",
                error,
                ". ",
                _REMEDY,
            )
        ) from error
    if scale == 0:
        raise _UnclearError(
            Message(
                f"'{name}' has the scale 0 by {one.where}, which would be no update "
                "at all. ",
                _REMEDY,
            )
        )
    return scale


def _own(module: Module) -> float:
    name, alpha = module.spelling.alpha, np.asarray(module.alpha)
    if alpha.size != 1 or not np.isfinite(alpha.astype(np.float64)).all():
        raise ValueError(f"'{name}' is {alpha}: expected one finite number.")
    value = float(alpha.reshape(()))
    if value == 0:
        raise ValueError(
            f"'{name}' is 0, which sd-scripts takes for the rank, and others for no "
            "update at all. Set it to the value you mean."
        )
    return value / max(shape(module).rank, 1)


def _default(name: str, module: Module, given: Hints) -> float:
    # A table of alphas says that the default is wrong for this file.
    if isinstance(given.alpha, Mapping):
        raise ValueError(
            Message(f"'{name}' has no alpha. Name it in ", Argument("alpha"), " too.")
        )
    if module.spelling.a.startswith(PREFIX):
        raise ValueError(
            Message(
                f"'{module.spelling.a}' is a name of PEFT, and without "
                "adapter_config.json its scales are not known. Put that beside the "
                "file, or say them with ",
                ALPHA_OR_SCALE,
                ".",
            )
        )
    return 1.0
