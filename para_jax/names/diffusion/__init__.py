"""Rename modules of image and video models between schemes. Runs on the host."""

from para_jax.names.diffusion.conversion import Target as Target
from para_jax.names.diffusion.conversion import convert as convert
from para_jax.names.diffusion.conversion import spelled as spelled
from para_jax.names.diffusion.schemes import Scheme as Scheme
from para_jax.names.diffusion.schemes import read as read
