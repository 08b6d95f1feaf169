"""Plan the new name of every adapter, by one table for all of them."""

import difflib
import itertools
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import NamedTuple

from para_jax._adapters.messages import Argument, Message, Remedy
from para_jax.names.patterns import Match, Module, Pair, fill, match, placeholders


class Move(NamedTuple):
    """The destination of one part of an adapter.

    Attributes:
      path: Its name on the other side.
      index: The index into the stack: a number for an axis that becomes part of the
        name, a full slice for an axis that stays.
      module: The differences in form.
    """

    path: str
    index: tuple[int | slice, ...]
    module: Module


Stacks = Mapping[str, tuple[int, ...]]
Moves = Mapping[str, Sequence[Move]]
Renumber = Callable[[Module, int, str], int | None]

_SHOWN = 3


def of(stacks: Stacks, pairs: Sequence[Pair], renumber: Renumber) -> Moves:
    """Return the moves of every path; an empty list if it fits no pattern.

    Args:
      stacks: The shape of each path's stack.
      pairs: The table, in one of its directions.
      renumber: Maps a layer's number to the other side, or to None if an entry lacks
        that layer.
    """
    return {path: _of(path, stack, pairs, renumber) for path, stack in stacks.items()}


def _of(
    path: str, stack: tuple[int, ...], pairs: Sequence[Pair], renumber: Renumber
) -> list[Move]:
    if "*" in path:  # Here it stands for a stack.
        return []
    starred = "/".join([path, *"*" * len(stack)])
    matches = ((pair, match(pair.source, starred)) for pair in pairs)
    moves = [
        move
        for pair, found in matches
        if found is not None
        for move in _spread(path, stack, pair, found, renumber)
    ]
    # By `str`, as slices cannot be hashed before Python 3.12.
    taken = [(str(move.index), move.module.half) for move in moves]
    if len(set(taken)) < len(taken):
        names = sorted({move.module.name for move in moves})
        raise ValueError(
            f"'{path}' fits several patterns of the table, for {', '.join(names)}. "
            "Expected one: make the patterns differ."
        )
    return moves


def _spread(
    path: str, stack: tuple[int, ...], pair: Pair, found: Match, renumber: Renumber
) -> list[Move]:
    """Return one move per kernel; experts stay stacked if the name ends in `{e}`."""
    axes = [x for x in placeholders(pair.source) if getattr(found, x) == "*"]
    kept = "e" if pair.target.endswith("/{e}") else ""
    spans = [
        [slice(None)] if x == kept else range(n)
        for x, n in zip(axes, stack, strict=True)
    ]
    result = []
    for index in itertools.product(*spans):
        numbers = [str(k) if isinstance(k, int) else "*" for k in index]
        at = found._replace(**dict(zip(axes, numbers, strict=True)))
        layer = None if at.i is None else renumber(pair.module, int(at.i), path)
        # An entry for blocks of layers has only every `step`-th layer.
        if (at.i is None) == (layer is None):
            target = fill(pair.target, layer, at.e).removesuffix("/*")
            result.append(Move(target, index, pair.module))
    return result


def chosen(
    found: Mapping[str, Moves], patterns: Mapping[str, Collection[str]], model: str
) -> Moves:
    """Return the moves of the one table that fits all paths.

    Args:
      found: The moves by the name of the table.
      patterns: Each table's patterns, for errors.
      model: The name of the model, for errors.

    Raises:
      ValueError: if no table fits, or two tables fit and differ for these paths.
    """
    lost = {
        name: [path for path, x in moves.items() if not x]
        for name, moves in found.items()
    }
    fits = [name for name in found if not lost[name]]
    if not fits:
        raise ValueError(_unknown(lost, patterns, model))
    # Tables overlap, as `tunix` and `tunix-fused` do in the MLP: equal results are not
    # an ambiguity.
    others = [x for x in fits if _effect(found[x]) != _effect(found[fits[0]])]
    if others:
        raise ValueError(
            Message(
                f"The paths fit '{fits[0]}' and '{others[0]}' of {model}, which differ "
                "for them. Say whose they are: ",
                Argument("ecosystem", f"'{fits[0]}'"),
                f" or '{others[0]}'.",
            )
        )
    return found[fits[0]]


def _effect(moves: Moves) -> list[object]:
    return [
        (path, move.path, move.index, x.scaled, x.interleaved, x.half, x.heads)
        for path, several in moves.items()
        for move, x in ((move, move.module) for move in several)
    ]


def _unknown(
    lost: Mapping[str, list[str]], patterns: Mapping[str, Collection[str]], model: str
) -> str:
    # The table with the fewest misses is probably the one that was meant.
    paths = min(lost.values(), key=len)
    first = paths[0]
    every = {pattern: name for name, x in patterns.items() for pattern in x}
    general = re.sub(r"(?<![^/_])\d+(?![^/])", "{i}", first)
    near = difflib.get_close_matches(general, every, n=1, cutoff=0)[0]
    shown = ", ".join(f"'{path}'" for path in paths[:_SHOWN])
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return Message(
        f"{shown}{more}: no module of {model} has such a path. The nearest pattern is "
        f"'{near}' ({every[near]}). Choose another model, or give ",
        Remedy.OWN_TABLE,
        ".",
    )
