"""Check that the words of a command go together, before JAX is imported."""

import dataclasses

from para_jax.cli import words
from para_jax.cli.request import Compress, Fleet, Inspect, Output, Request, Sweep


def check(request: Request) -> None:
    """Raise ValueError if two words do not go together, or a budget is missing."""
    if isinstance(request, Inspect):
        return
    _check_output(request.output)
    # The parser itself requires one of the commands that take one.
    if isinstance(request, (Compress, Sweep, Fleet)) and not request.cut.budgets:
        flags = ", ".join(f"--{x}" for x in words.BUDGETS)
        raise ValueError(f"Name a budget: {flags}.")


def _check_output(output: Output) -> None:
    if output.engine:
        for name in ("format", "profile"):
            if getattr(output, name):
                raise ValueError(
                    f"--for {output.engine} decides on format and profile: leave out "
                    f"--{name}."
                )
    # Without a model these would have no effect, and no one would notice.
    facts = dataclasses.asdict(output.rename)
    if facts.pop("model"):
        return
    for name, value in facts.items():
        if value is not None:
            flag = name.replace("_", "-")
            raise ValueError(
                f"--{flag} describes a model: give --model, or leave it out."
            )
