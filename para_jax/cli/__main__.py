"""`python -m para_jax.cli`: the command `para`."""

from para_jax.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
