"""Post-optimization adaptive rank allocation (PARA) for LoRA adapters, in JAX.

    import para_jax as para

    parent = para.load("adapter/")
    child = para.compress(parent, para.Gamma(0.25))
    print(child.report)
    para.save(child, "adapter-r4/", format="peft")

or inside a program that is traced:

    spectra = para.decompose(adapters)
    masks = para.masks(spectra, para.Epsilon(0.99))
    masked = para.repack(spectra, masks, adapters, form="masked")

All examples in the documentation of this package start from here:

    >>> import jax, jax.numpy as jnp, numpy as np, para_jax
    >>> def adapter(m, n, *sigma):
    ...     s = np.diag(np.float32(sigma))  # The singular values of its update.
    ...     a, b = np.eye(m, len(s)), np.eye(len(s), n)
    ...     return para_jax.Adapter(np.float32(a), np.float32(s @ b))
    >>> adapters = {"down": adapter(7, 5, 6, 0.5), "up": adapter(5, 7, 8, 4, 2, 1)}
"""

from para_jax.adapters import Adapter as Adapter
from para_jax.adapters import Checkpoint as Checkpoint
from para_jax.adapters import Child as Child
from para_jax.adapters import Layer as Layer
from para_jax.adapters import stack as stack
from para_jax.adapters import unstack as unstack
from para_jax.columns import pack as pack
from para_jax.compress import compress as compress
from para_jax.compress import family as family
from para_jax.extract import Extraction as Extraction
from para_jax.extract import extract as extract
from para_jax.extract import plain as plain
from para_jax.formats import load as load
from para_jax.formats import save as save
from para_jax.inspection import Inspection as Inspection
from para_jax.inspection import inspect as inspect
from para_jax.layouts import from_tree as from_tree
from para_jax.layouts import to_tree as to_tree
from para_jax.moments import project_moments as project_moments
from para_jax.moments import reset_moments as reset_moments
from para_jax.optimizer_check import check_optimizer as check_optimizer
from para_jax.padding import pad as pad
from para_jax.params import from_params as from_params
from para_jax.params import to_params as to_params
from para_jax.policy import Bytes as Bytes
from para_jax.policy import Epsilon as Epsilon
from para_jax.policy import Gamma as Gamma
from para_jax.policy import Params as Params
from para_jax.policy import Policy as Policy
from para_jax.policy import Rank as Rank
from para_jax.policy import Threshold as Threshold
from para_jax.repack import repack as repack
from para_jax.report import Report as Report
from para_jax.search import Search as Search
from para_jax.search import search as search
from para_jax.select import masks as masks
from para_jax.select import ranks as ranks
from para_jax.spectrum import Spectrum as Spectrum
from para_jax.spectrum import decompose as decompose
from para_jax.squeeze import shrink as shrink
from para_jax.squeeze import squeeze as squeeze

__version__ = "0.1.0"
