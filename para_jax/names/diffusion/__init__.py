"""Rename modules of image and video models between schemes. Runs on the host."""

from para_jax.names.diffusion.conversion import (
    Target as Target,
    convert as convert,
    spelled as spelled,
)
from para_jax.names.diffusion.schemes import Scheme as Scheme, read as read
