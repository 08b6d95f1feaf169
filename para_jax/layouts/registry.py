"""List all layouts, and recognise the layout of a tree. Runs on the host."""

from collections.abc import Mapping, Sequence

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.axes import StackAxis
from para_jax.layouts.layout import Layout, Leaves, halves, names, pairs
from para_jax.layouts.libraries import (
    gemma,
    keras,
    levanter,
    linen,
    lorax,
    maxtext,
    nnx,
    qwix,
    tunix,
    tx,
)

LAYOUTS: Mapping[str, Layout] = {
    x.name: x
    for x in (
        nnx.LAYOUT,
        qwix.LAYOUT,
        tunix.LAYOUT,
        gemma.LAYOUT,
        maxtext.NATIVE,
        maxtext.QWIX,
        lorax.LAYOUT,
        keras.LAYOUT,
        levanter.LAYOUT,
        tx.LAYOUT,
        linen.LAYOUT,
    )
}


def recognise(
    leaves: Leaves, *, layout: str | None = None, stack_axis: StackAxis | None = None
) -> Layout:
    """Identify the layout of a tree by the keys and shapes of its leaves.

    Args:
      leaves: The leaves of the tree by key.
      layout: The name of a layout, to check instead of to find.
      stack_axis: As for `from_tree`; it decides between layouts whose shapes need it.

    Raises:
      ValueError: if no layout fits, or two do.
    """
    _check_arguments(layout, stack_axis)
    fits = [x for x in LAYOUTS.values() if names(x, leaves)]
    chosen = _only(fits, leaves, stack_axis) if layout is None else LAYOUTS[layout]
    if not names(chosen, leaves):
        others = f", but of {fits[-1].name}" if fits else ""
        raise ValueError(f"The tree is not of the layout {layout}{others}.")
    _check_others(chosen, leaves)
    return chosen


def _check_arguments(layout: str | None, stack_axis: StackAxis | None) -> None:
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(
            f"Unknown layout '{layout}': expected one of {', '.join(LAYOUTS)}."
        )
    if stack_axis not in (None, 0, 1, "none"):
        raise ValueError(
            Message(
                Argument("stack_axis", repr(stack_axis)), ": expected 0, 1 or 'none'."
            )
        )


def _only(
    fits: Sequence[Layout], leaves: Leaves, stack_axis: StackAxis | None
) -> Layout:
    """Return the only layout among those whose names a tree has."""
    # tunix and MaxText refine qwix: their trees have its names, and more rules.
    refined = {x.refines for x in fits}
    fits = [x for x in fits if x.name not in refined]
    if len(fits) > 1:
        # Names come first, since reading shapes can fail for the right layout too: its
        # error is then the one to show, so one layout always remains.
        fits = [x for x in fits if _reads(x, leaves, stack_axis)] or fits[:1]
    if len(fits) > 1:
        # Of a tree with factors of two libraries, the mixture is the clearer error.
        _check_others(fits[0], leaves)
        both = " and ".join(x.name for x in fits)
        raise ValueError(
            Message(
                f"'{names(fits[0], leaves)[0]}': the layouts {both} both fit. Say "
                "which it is: ",
                Argument("layout"),
                ".",
            )
        )
    if not fits:
        some = ["/".join(key) for key in leaves][:2]
        raise ValueError(
            "the tree holds no adapters that are known: expected pairs such as "
            f"'a' and 'b', 'lora_a' and 'lora_b', or 'kernel_lora_a' and "
            f"'kernel_lora_b', got {some}, ..."
        )
    return fits[0]


def _check_others(chosen: Layout, leaves: Leaves) -> None:
    """Raise ValueError if a tree holds factors of another library than its layout's."""
    read = halves(chosen, leaves)
    # Only the names of these two are distinctive: `a` and `b` occur in other trees.
    for other in (nnx.LAYOUT, qwix.LAYOUT):
        if rest := sorted(halves(other, leaves) - read):
            raise ValueError(
                f"'{'/'.join(rest[0])}' is a LoRA factor that is named as by "
                f"{other.name}, others as by {chosen.name}: one of both would be left "
                "uncut. Give each kind as a tree of its own to para_jax.from_tree."
            )


def _reads(layout: Layout, leaves: Leaves, stack_axis: StackAxis | None) -> bool:
    """Check whether the shapes of a tree fit a layout."""
    try:
        pairs(layout, leaves, stack_axis)
    except ValueError:
        return False
    return True
