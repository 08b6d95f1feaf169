"""How the two stored factors of an adapter lie: which axes are stack, input, output.

Every library stores `a` with the rank last, but the input side may be several axes,
the rank of `b` moves with the scan axis, and a stack may be axis 0 or 1. A reading
names the role of each axis by a letter: `L` stack, `m` inputs, `n` outputs, `r` rank.
Only shapes are looked at, so this works on the metadata of a checkpoint too. Host.
"""

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from para_jax._adapters.adapter import Array
from para_jax._adapters.messages import Argument, Message

Shape = tuple[int, ...]
StackAxis = Literal[0, 1, "none"]


class Axes(NamedTuple):
    """The role of each axis of the two stored factors.

    Attributes:
      a: One letter an axis of the input-side factor, such as `Lmr` or `mmr`.
      b: The same for the output-side factor, such as `Lrn` or `rLn`.
    """

    a: str
    b: str

    @property
    def is_window(self) -> bool:
        """Whether the pair is a convolution's: a window, and a 1x1 window after it."""
        return "nr" in self.b

    @property
    def stack_axis(self) -> StackAxis:
        """Which axis is the stack, in the words of the arguments."""
        return "none" if "L" not in self.a else 0 if self.a[0] == "L" else 1

    def stacked_on(self, axis: StackAxis) -> bool:
        """Returns whether this axis is a stack: of two stack axes, both are."""
        return self.stack_axis == axis if axis == "none" else self.a[axis] == "L"


def reading(
    path: str,
    a: Shape,
    b: Shape,
    kernel: Shape | None,
    stack_axis: StackAxis | None,
    *,
    flat: bool = False,
) -> Axes:
    """Returns the one reading that the shapes of a pair, and of its kernel, allow.

    Args:
      path: The module, for errors.
      a: The shape of the input-side factor.
      b: The shape of the output-side factor.
      kernel: The shape of the base weight, where it is there.
      stack_axis: Which axis the layers are stacked on, as far as the user says. It
        decides between readings that both fit; a pair that cannot be stacked needs
        none.
      flat: Whether the library flattens both sides: one input and one output axis.

    Raises:
      ValueError: if no reading fits, or more than one does.
    """
    found = [x for x in _readings(a, b) if not (flat and _several(x))]
    if not found:
        raise ValueError(_misfit(path, a, b))
    if kernel is not None:
        found = [x for x in found if _fits(x, a, b, kernel, flat=flat)]
        if not found:
            raise ValueError(
                f"'{path}': a {list(a)} and b {list(b)} do not fit their kernel "
                f"{list(kernel)}."
            )
    if stack_axis is not None and any(x.stack_axis != "none" for x in found):
        if not (meant := [x for x in found if x.stacked_on(stack_axis)]):
            raise ValueError(
                Message(
                    f"'{path}': a {list(a)} and b {list(b)} are not stacked on axis "
                    f"{stack_axis}: expected ",
                    Argument("stack_axis", found[0].stack_axis),
                    ".",
                )
            )
        found = meant
    # An axis of size one may have any role: the matrices are the same.
    found = list({_longer(x, a, b): x for x in reversed(found)}.values())[::-1]
    if len(found) > 1:
        raise ValueError(_ambiguous(path, a, b, found))
    return found[0]


def matrices(axes: Axes, a: Array, b: Array) -> tuple[Array, Array]:
    """Returns stored factors as `[*stack, m, r]` and `[*stack, r, n]`."""
    return _matrix(axes.a, "Lmr", a), _matrix(axes.b, "Lrn", b)


def stored(
    axes: Axes, a: Array, b: Array, like: tuple[Shape, Shape]
) -> tuple[Array, Array]:
    """Returns matrices in the stored form: the inverse of `matrices`.

    Args:
      axes: How they are to lie.
      a: `[*stack, m, r]`.
      b: `[*stack, r, n]`.
      like: The stored shapes of the parent, whose rank may differ.
    """
    one = _stored(axes.a, "Lmr", a, like[0], a.shape[-1])
    return one, _stored(axes.b, "Lrn", b, like[1], a.shape[-1])


def _matrix(letters: str, order: str, value: Array) -> Array:
    """Returns `value` with its axes grouped by letter, all but the stack flattened."""
    permutation = _permutation(letters, order)
    sizes = [
        math.prod(value.shape[i] for i in permutation if letters[i] == letter)
        for letter in order[1:]
    ]
    stack = [value.shape[i] for i in permutation if letters[i] == "L"]
    return value.transpose(permutation).reshape(*stack, *sizes)


def _stored(letters: str, order: str, value: Array, like: Shape, rank: int) -> Array:
    permutation = _permutation(letters, order)
    sizes = [rank if letters[i] == "r" else like[i] for i in permutation]
    back = [int(i) for i in np.argsort(permutation)]
    return value.reshape(sizes).transpose(back)


def _permutation(letters: str, order: str) -> list[int]:
    return sorted(range(len(letters)), key=lambda i: (order.index(letters[i]), i))


def _readings(a: Shape, b: Shape) -> list[Axes]:
    """Returns all ways to read a pair of shapes."""
    if len(a) < 2 or len(b) < 2:
        return []
    rank, found = a[-1], []
    for depth in range(min(len(a), len(b)) - 1):  # A stack of so many leading axes.
        if a[:depth] == b[:depth] and b[depth] == rank:
            inputs, outputs = len(a) - depth - 1, len(b) - depth - 1
            stack = "L" * depth
            found.append(Axes(f"{stack}{'m' * inputs}r", f"{stack}r{'n' * outputs}"))
    if min(len(a), len(b)) > 2 and a[1] == b[1] and b[0] == rank:
        found.append(Axes(f"mL{'m' * (len(a) - 3)}r", f"rL{'n' * (len(b) - 2)}"))
    for depth in range(len(a) - 2 if len(a) == len(b) and b[-2] == rank else 0):
        window = {1} == set(b[depth:-2]) != set(a[depth:-2])
        if a[:depth] == b[:depth] and window:  # A convolution's second half.
            one, two = "m" * (len(a) - depth - 1), "n" * (len(b) - depth - 2)
            found.append(Axes(f"{'L' * depth}{one}r", f"{'L' * depth}{two}rn"))
    return found


def _several(axes: Axes) -> bool:
    return axes.a.count("m") > 1 or axes.b.count("n") > 1


def _fits(axes: Axes, a: Shape, b: Shape, kernel: Shape, *, flat: bool) -> bool:
    """Returns whether the factors are of a kernel of this shape."""
    sides = [(x, n) for x, n in _roles(axes.a, a) if x in "Lm"]
    sides += [(x, n) for x, n in _roles(axes.b, b) if x == "n"]
    stack = [n for role, n in sides if role == "L"]
    where = max(axes.a.find("L"), 0)
    at, rest = kernel[where : where + len(stack)], list(kernel)
    del rest[where : where + len(stack)]
    if flat and len(rest) == 2 and rest != [n for role, n in sides if role != "L"]:
        return False
    size = math.prod(n for _, n in sides)
    return size == math.prod(kernel) and list(at) == stack


def _longer(axes: Axes, a: Shape, b: Shape) -> tuple[str, str]:
    """Returns the roles of the axes that are longer than one."""
    return tuple(
        "".join(role for role, n in _roles(*side) if n > 1)
        for side in zip(axes, (a, b), strict=True)
    )


def _roles(letters: str, shape: Sequence[int]) -> zip:
    return zip(letters, shape, strict=False)


def _ambiguous(path: str, a: Shape, b: Shape, found: Sequence[Axes]) -> str:
    text = f"'{path}': a {list(a)} and b {list(b)} can be read in {len(found)} ways. "
    choices = sorted({str(x.stack_axis) for x in found})
    if len(choices) == 1:
        return f"{text}Give the tree with its base kernels, whose shapes tell."
    return Message(
        f"{text}Say where the layers are stacked, ",
        Argument("stack_axis"),
        f": {' or '.join(choices)}. It is the axis that the model is scanned over "
        "(variable_axes in Linen, param_scan_axis in MaxText), or none for an einsum "
        "of several axes.",
    )


def _misfit(path: str, a: Shape, b: Shape) -> str:
    text = f"'{path}': a {list(a)} and b {list(b)} are no pair of factors"
    if _readings(b, a):
        return f"{text}, but they would be with a and b swapped."
    return (
        f"{text}, the ranks disagree or the stacks do: expected [*stack, m, r] and "
        "[*stack, r, n]."
    )
