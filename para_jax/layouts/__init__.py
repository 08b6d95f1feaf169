"""Find adapters in other libraries' trees, take them out, and put them back.

    parent = para_jax.from_tree(params, alpha=16)      # {path: Adapter}, and the tree
    child = para_jax.compress(parent, para_jax.Gamma(0.25))
    params = para_jax.to_tree(child)                   # The same tree, smaller factors.

A tree is any pytree: nested dicts, an `nnx.State`, a checkpoint that Orbax restores.
Keys and shapes identify the layout. Both functions are traceable under `jit`, and with
`form="masked"` so is every step between them.
"""

from para_jax.layouts.axes import StackAxis as StackAxis
from para_jax.layouts.keras_models import (
    keras_assign as keras_assign,
    keras_tree as keras_tree,
)
from para_jax.layouts.module_ranks import (
    module_ranks as module_ranks,
    qwix_rules as qwix_rules,
)
from para_jax.layouts.registry import LAYOUTS as LAYOUTS
from para_jax.layouts.tree import (
    Tree as Tree,
    from_tree as from_tree,
    to_tree as to_tree,
)
