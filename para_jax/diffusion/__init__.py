"""Names of modules in image and video models, from one scheme to another. Host."""

from para_jax.diffusion.conversion import Target as Target
from para_jax.diffusion.conversion import convert as convert
from para_jax.diffusion.conversion import spelled as spelled
from para_jax.diffusion.schemes import Scheme as Scheme
from para_jax.diffusion.schemes import read as read
