"""What XLA's own operations are too slow for on a GPU, in Pallas (Triton). Traced.

Each kernel has a plain twin in `para_jax.linalg`, which is its definition and runs
everywhere else. They compute in float64, so they need JAX's 64-bit mode. Importing them
takes a while, so `para_jax.linalg` does it where there is a GPU alone.
"""
