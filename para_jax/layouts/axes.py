"""Assign a role to each axis of two stored factors: stack, input, output or rank.

Most libraries store `a` with the rank last, but the input side may be several axes, the
rank of `b` moves with the scan axis, and a stack may be axis 0 or 1. In torch's order
the rank is first in `a` and last in `b`. A reading names the role of each axis by a
letter: `L` stack, `m` inputs, `n` outputs, `r` rank.
Readings use shapes alone, so they also work on the metadata of a checkpoint. Runs on
the host, except for `matrices` and `stored`, which are traceable under `jit`.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from para_jax._adapters.adapter import Array
from para_jax._adapters.choices import StackAxis as StackAxis
from para_jax._adapters.messages import Argument, Message

Shape = tuple[int, ...]


class Axes(NamedTuple):
    """The role of each axis of the two stored factors.

    Attributes:
      a: One letter per axis of the input-side factor, such as `Lmr` or `mmr`.
      b: The same for the output-side factor, such as `Lrn` or `rLn`.
    """

    a: str
    b: str

    @property
    def is_window(self) -> bool:
        """Whether the pair belongs to a convolution: a window, then a 1x1 window."""
        return "nrn" in self.b

    @property
    def stack_axis(self) -> StackAxis:
        """The position of the stack, as callers pass it to `from_tree`."""
        return "none" if "L" not in self.a else 0 if self.a[0] == "L" else 1

    def stacked_on(self, axis: StackAxis) -> bool:
        """Check whether `axis` is a stack axis; a reading may have several."""
        return self.stack_axis == axis if axis == "none" else self.a[axis] == "L"


def reading(
    path: str,
    a: Shape,
    b: Shape,
    kernel: Shape | None,
    stack_axis: StackAxis | None,
    *,
    flat: bool = False,
    torch: bool = False,
    known: Axes | None = None,
) -> Axes:
    """Return the only reading of a pair's shapes and of its kernel's shape.

    Args:
      path: The module, for errors.
      a: The shape of the input-side factor.
      b: The shape of the output-side factor.
      kernel: The shape of the base weight, if the tree holds it.
      stack_axis: The axis on which layers are stacked, if the user gives it. It
        decides between readings that both fit, and does not apply to a pair that
        cannot be stacked.
      flat: Whether the library flattens both sides: one input and one output axis.
      torch: Whether the axes are in torch's order.
      known: The reading by the names of the axes, if the tree has names. Shapes must
        fit it.

    Raises:
      ValueError: if no reading fits, or more than one does.
    """
    every = _torch_readings(a, b) if torch else _readings(a, b)
    found = [x for x in every if not (flat and _has_several(x))]
    if known is not None:
        found = [known] if _agrees(known, a, b) else []
    if not found:
        raise ValueError(_misfit(path, a, b, torch=torch))
    if kernel is not None:
        found = _of_kernel(path, a, b, found, kernel, flat=flat)
    if stack_axis is not None:
        found = _of_stack(path, a, b, found, stack_axis)
    found = _distinct(a, b, found)
    if len(found) > 1:
        raise ValueError(_ambiguous(path, a, b, found))
    return found[0]


def _of_kernel(
    path: str, a: Shape, b: Shape, found: Sequence[Axes], kernel: Shape, *, flat: bool
) -> list[Axes]:
    """Keep the readings compatible with the shape of the base weight."""
    fits = [x for x in found if _fits(x, a, b, kernel, flat=flat)]
    if not fits:
        raise ValueError(
            f"'{path}': a {list(a)} and b {list(b)} do not fit their kernel "
            f"{list(kernel)}."
        )
    return fits


def _of_stack(
    path: str, a: Shape, b: Shape, found: Sequence[Axes], stack_axis: StackAxis
) -> Sequence[Axes]:
    """Keep the readings stacked on the axis given by the user."""
    # A tree mixes scanned layers with modules outside of the scan. Those have no
    # stacked reading, so an argument that is meant for the others must not refuse them.
    if all(x.stack_axis == "none" for x in found):
        return found
    if not (meant := [x for x in found if x.stacked_on(stack_axis)]):
        raise ValueError(
            Message(
                f"'{path}': a {list(a)} and b {list(b)} are not stacked on axis "
                f"{stack_axis}: expected ",
                Argument("stack_axis", found[0].stack_axis),
                ".",
            )
        )
    return meant


def _distinct(a: Shape, b: Shape, found: Sequence[Axes]) -> list[Axes]:
    """Drop the readings with the same matrices as an earlier one."""
    # An axis of size one may have any role without a change of the matrices.
    distinct: dict[tuple[str, str], Axes] = {}
    for x in found:
        distinct.setdefault((_longer(x.a, a), _longer(x.b, b)), x)
    return list(distinct.values())


def matrices(axes: Axes, a: Array, b: Array) -> tuple[Array, Array]:
    """Return stored factors as `[*stack, m, r]` and `[*stack, r, n]`."""
    return _matrix(axes.a, "Lmr", a), _matrix(axes.b, "Lrn", b)


def stored(
    axes: Axes, a: Array, b: Array, like: tuple[Shape, Shape]
) -> tuple[Array, Array]:
    """Return matrices in the stored form: the inverse of `matrices`.

    Args:
      axes: The role of each stored axis.
      a: `[*stack, m, r]`.
      b: `[*stack, r, n]`.
      like: The stored shapes of the parent; its rank may differ.
    """
    one = _stored(axes.a, "Lmr", a, like[0], a.shape[-1])
    return one, _stored(axes.b, "Lrn", b, like[1], a.shape[-1])


def _matrix(letters: str, order: str, value: Array) -> Array:
    """Group the axes of `value` by letter, and flatten each group but the stack."""
    permutation = _permutation(letters, order)
    moved = value.transpose(permutation)
    roles = [letters[i] for i in permutation]
    sizes = [math.prod(_sizes(roles, moved.shape, role)) for role in order[1:]]
    return moved.reshape(*_sizes(roles, moved.shape, "L"), *sizes)


def _stored(letters: str, order: str, value: Array, like: Shape, rank: int) -> Array:
    permutation = _permutation(letters, order)
    sizes = [rank if letters[i] == "r" else like[i] for i in permutation]
    # The argsort of a permutation is its inverse.
    back = [int(i) for i in np.argsort(permutation)]
    return value.reshape(sizes).transpose(back)


def _permutation(letters: str, order: str) -> list[int]:
    # Axes of one role keep their order, since the kernel's inputs and outputs are
    # flattened in it.
    return sorted(range(len(letters)), key=lambda i: (order.index(letters[i]), i))


def _readings(a: Shape, b: Shape) -> list[Axes]:
    """List every assignment of roles to a pair of shapes."""
    if len(a) < 2 or len(b) < 2:
        return []
    return [*_stacked_in_front(a, b), *_stacked_second(a, b), *_windows(a, b)]


def _torch_readings(a: Shape, b: Shape) -> list[Axes]:
    """List the readings in torch's order, `L..rm..` and `L..n..r`."""
    # With its sides exchanged, such a pair is one with the rank last in `a`.
    sides = str.maketrans("mn", "nm")
    if len(a) < 2 or len(b) < 2:
        return []
    return [
        Axes(x.b.translate(sides), x.a.translate(sides))
        for x in _stacked_in_front(b, a)
    ]


def _agrees(axes: Axes, a: Shape, b: Shape) -> bool:
    """Check whether shapes have the axes of a reading, of one rank and one stack."""
    if (len(axes.a), len(axes.b)) != (len(a), len(b)):
        return False
    return all(_sizes(axes.a, a, x) == _sizes(axes.b, b, x) for x in "Lr")


def _stacked_in_front(a: Shape, b: Shape) -> Iterator[Axes]:
    """Yield the readings with 0, 1, ... leading stack axes, `L..m..r` and `L..rn..`."""
    for depth in range(min(len(a), len(b)) - 1):
        if a[:depth] == b[:depth] and b[depth] == a[-1]:
            inputs, outputs = len(a) - depth - 1, len(b) - depth - 1
            stack = "L" * depth
            yield Axes(f"{stack}{'m' * inputs}r", f"{stack}r{'n' * outputs}")


def _stacked_second(a: Shape, b: Shape) -> Iterator[Axes]:
    """Yield the reading with the stack on axis 1, `mLm..r` and `rLn..`."""
    # MaxText scans over axis 1 of its kernels, and Flax applies the same axis to both
    # factors, so that it lands behind the first input of `a` and the rank of `b`.
    if min(len(a), len(b)) > 2 and a[1] == b[1] and b[0] == a[-1]:
        yield Axes(f"mL{'m' * (len(a) - 3)}r", f"rL{'n' * (len(b) - 2)}")


def _windows(a: Shape, b: Shape) -> Iterator[Axes]:
    """Yield the readings as a convolution's pair, `L..m..r` and `L..n..rn`.

    The second half is a convolution with a window of ones: its `n` before the rank are
    those axes of size one.
    """
    if len(a) != len(b) or b[-2] != a[-1]:
        return
    for depth in range(len(a) - 2):
        # With ones in both windows, the pair already reads as a stack of ones.
        ones_after_a_window = {1} == set(b[depth:-2]) != set(a[depth:-2])
        if a[:depth] == b[:depth] and ones_after_a_window:
            one, two = "m" * (len(a) - depth - 1), "n" * (len(b) - depth - 2)
            yield Axes(f"{'L' * depth}{one}r", f"{'L' * depth}{two}rn")


def _has_several(axes: Axes) -> bool:
    """Check whether the inputs or the outputs are more than one axis."""
    return axes.a.count("m") > 1 or axes.b.count("n") > 1


def _fits(axes: Axes, a: Shape, b: Shape, kernel: Shape, *, flat: bool) -> bool:
    """Check whether the factors belong to a kernel of this shape."""
    stack, inputs = _sizes(axes.a, a, "L"), _sizes(axes.a, a, "m")
    outputs = _sizes(axes.b, b, "n")
    # A scan stacks kernel and factors on the same axis.
    start = max(axes.a.find("L"), 0)
    end = start + len(stack)
    rest = [*kernel[:start], *kernel[end:]]
    if flat and len(rest) == 2 and rest != [*inputs, *outputs]:
        return False
    # Only the product of the other sizes is compared: the order of a kernel's inputs
    # and outputs depends on the equation of its einsum, which shapes do not show.
    size = math.prod([*stack, *inputs, *outputs])
    return size == math.prod(kernel) and list(kernel[start:end]) == stack


def _sizes(letters: Sequence[str], shape: Shape, role: str) -> list[int]:
    """Return the sizes of the axes with one role, in their order."""
    return [n for letter, n in zip(letters, shape, strict=True) if letter == role]


def _longer(letters: str, shape: Shape) -> str:
    """Return the roles of the axes longer than one."""
    return "".join(role for role, n in zip(letters, shape, strict=True) if n > 1)


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


def _misfit(path: str, a: Shape, b: Shape, *, torch: bool) -> str:
    text = f"'{path}': a {list(a)} and b {list(b)} are not a pair of factors"
    if _torch_readings(b, a) if torch else _readings(b, a):
        return f"{text}, but they would be with a and b swapped."
    expected = ("[*stack, r, m]", "[*stack, n, r]")
    if not torch:
        expected = ("[*stack, m, r]", "[*stack, r, n]")
    return (
        f"{text}, the ranks disagree or the stacks do: expected {expected[0]} and "
        f"{expected[1]}."
    )
