"""All layouts that are known, and which of them a tree has. Host."""

from collections.abc import Mapping

from para_jax._adapters.messages import Argument, Message
from para_jax.layouts.axes import StackAxis
from para_jax.layouts.layout import Layout, Leaves, halves, names, pairs
from para_jax.layouts.libraries import gemma, linen, lorax, maxtext, nnx, qwix, tunix

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
        linen.LAYOUT,
    )
}


def recognise(
    leaves: Leaves, *, layout: str | None = None, stack_axis: StackAxis | None = None
) -> Layout:
    """Returns the layout that the keys and shapes of a tree's leaves have.

    Raises:
      ValueError: if none fits, or two do.
    """
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
    fits = [x for x in LAYOUTS.values() if names(x, leaves)]
    if layout is not None:
        if not names(LAYOUTS[layout], leaves):
            others = f", but of {fits[-1].name}" if fits else ""
            raise ValueError(f"The tree is not of the layout {layout}{others}.")
        _check_others(LAYOUTS[layout], leaves)
        return LAYOUTS[layout]
    refined = {x.refines for x in fits}
    fits = [x for x in fits if x.name not in refined]
    if len(fits) > 1:
        fits = [x for x in fits if _reads(x, leaves, stack_axis)] or fits[:1]
    if len(fits) > 1:
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
    _check_others(fits[0], leaves)
    return fits[0]


def _check_others(chosen: Layout, leaves: Leaves) -> None:
    """Raise ValueError if a tree holds factors that its layout does not read."""
    read = halves(chosen, leaves)
    for other in (nnx.LAYOUT, qwix.LAYOUT):  # Names that nothing else has.
        if rest := sorted(halves(other, leaves) - read):
            raise ValueError(
                f"'{'/'.join(rest[0])}' is a LoRA factor that is named as by "
                f"{other.name}, others as by {chosen.name}: one of both would be left "
                "uncut. Give each kind as a tree of its own to para_jax.from_tree."
            )


def _reads(layout: Layout, leaves: Leaves, stack_axis: StackAxis | None) -> bool:
    try:
        pairs(layout, leaves, stack_axis)
    except ValueError:
        return False
    return True
