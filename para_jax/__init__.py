"""Post-optimization adaptive rank allocation (PARA) for LoRA adapters, in JAX.

    import para_jax as para

    parent = para.load("adapter/")
    child = para.compress(parent, para.Gamma(0.25))
    print(child.report)
    para.save(child, "adapter-r4/", format="peft")

or inside a traced program:

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

from importlib.metadata import version as _version

from para_jax._adapters.adapter import Adapter as Adapter
from para_jax._adapters.adapter import Adapters as Adapters
from para_jax._adapters.adapter import Array as Array
from para_jax._adapters.adapter import folded as folded
from para_jax._adapters.adapter import ordered as ordered
from para_jax._adapters.checkpoint import Checkpoint as Checkpoint
from para_jax._adapters.checkpoint import Child as Child
from para_jax._adapters.checkpoint import Layer as Layer
from para_jax._adapters.padding import pad as pad
from para_jax._adapters.params import from_params as from_params
from para_jax._adapters.params import nest as nest
from para_jax._adapters.params import to_params as to_params
from para_jax._adapters.params import unnest as unnest
from para_jax._adapters.stacks import stack as stack
from para_jax._adapters.stacks import unstack as unstack
from para_jax._pruning.decompose import Spectrum as Spectrum
from para_jax._pruning.decompose import decompose as decompose
from para_jax._pruning.extract import Extraction as Extraction
from para_jax._pruning.extract import extract as extract
from para_jax._pruning.extract import plain as plain
from para_jax._pruning.inspect import Inspection as Inspection
from para_jax._pruning.inspect import inspect as inspect
from para_jax._pruning.pipeline import compress as compress
from para_jax._pruning.pipeline import family as family
from para_jax._pruning.pipeline import spectra_of as spectra_of
from para_jax._pruning.policies import Budget as Budget
from para_jax._pruning.policies import Bytes as Bytes
from para_jax._pruning.policies import Epsilon as Epsilon
from para_jax._pruning.policies import Gamma as Gamma
from para_jax._pruning.policies import Params as Params
from para_jax._pruning.policies import Policy as Policy
from para_jax._pruning.policies import Rank as Rank
from para_jax._pruning.policies import Threshold as Threshold
from para_jax._pruning.pool import Pool as Pool
from para_jax._pruning.pool import pool as pool
from para_jax._pruning.repack import repack as repack
from para_jax._pruning.repack_traced import pack as pack
from para_jax._pruning.report import Report as Report
from para_jax._pruning.search import Search as Search
from para_jax._pruning.search import search as search
from para_jax._pruning.select import masks as masks
from para_jax._pruning.select import ranks as ranks
from para_jax._training.moments import project_moments as project_moments
from para_jax._training.moments import reset_moments as reset_moments
from para_jax._training.optimizer_check import check_optimizer as check_optimizer
from para_jax._training.squeeze import shrink as shrink
from para_jax._training.squeeze import squeeze as squeeze
from para_jax.formats import load as load
from para_jax.formats import save as save
from para_jax.layouts import from_tree as from_tree
from para_jax.layouts import to_tree as to_tree

__version__ = _version("para-jax")
