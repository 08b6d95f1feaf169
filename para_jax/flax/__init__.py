"""Run adapters inside Flax models, each layer at its own rank.

    from para_jax.flax import linen  # Dense, Einsum, check, applied
    from para_jax.flax import nnx  # attach, detach, merge

Neither module imports the other.
"""
