"""Orbax checkpoints: our own trees, and those of other JAX libraries."""
