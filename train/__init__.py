"""Experiments with para_jax, run from a checkout: `python -m train ...`."""
