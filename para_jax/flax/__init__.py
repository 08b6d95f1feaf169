"""Adapters of any ranks inside Flax models, each layer with its own.

    from para_jax.flax import linen  # Dense, Einsum, check, applied
    from para_jax.flax import nnx  # attach, detach, merge

Neither module imports the other.
"""
