"""Adapters in other libraries' trees: found, taken out, and put back.

    parent = para_jax.from_tree(params, alpha=16)      # {path: Adapter}, and the tree
    child = para_jax.compress(parent, para_jax.Gamma(0.25))
    params = para_jax.to_tree(child)                   # The same tree, smaller factors.

A tree is anything that JAX takes for one: nested dicts, an `nnx.State`, what Orbax
restores. The layout is recognised by keys and shapes. Both functions work inside
`jit`; with the form `masked`, so does all between them.
"""

from para_jax.layouts.axes import StackAxis as StackAxis
from para_jax.layouts.module_ranks import module_ranks as module_ranks
from para_jax.layouts.module_ranks import qwix_rules as qwix_rules
from para_jax.layouts.registry import LAYOUTS as LAYOUTS
from para_jax.layouts.tree import Tree as Tree
from para_jax.layouts.tree import from_tree as from_tree
from para_jax.layouts.tree import to_tree as to_tree
