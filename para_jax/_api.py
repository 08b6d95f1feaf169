"""The public names of the package, which `para_jax` has too.

`para_jax/__init__.py` imports this at the first use of one of them, so that the command
line can answer a mistake before it imports JAX.
"""

from para_jax._adapters.adapter import (
    Adapter as Adapter,
    Adapters as Adapters,
    Array as Array,
    folded as folded,
    ordered as ordered,
)
from para_jax._adapters.checkpoint import (
    Checkpoint as Checkpoint,
    Child as Child,
    Layer as Layer,
)
from para_jax._adapters.padding import pad as pad
from para_jax._adapters.params import (
    from_params as from_params,
    nest as nest,
    to_params as to_params,
    unnest as unnest,
)
from para_jax._adapters.stacks import stack as stack, unstack as unstack
from para_jax._pruning.decompose import Spectrum as Spectrum, decompose as decompose
from para_jax._pruning.extract import (
    Extraction as Extraction,
    extract as extract,
    plain as plain,
)
from para_jax._pruning.inspect import Inspection as Inspection, inspect as inspect
from para_jax._pruning.pipeline import (
    compress as compress,
    family as family,
    spectra_of as spectra_of,
)
from para_jax._pruning.policies import (
    Budget as Budget,
    Bytes as Bytes,
    Epsilon as Epsilon,
    Gamma as Gamma,
    Params as Params,
    Policy as Policy,
    Rank as Rank,
    Threshold as Threshold,
)
from para_jax._pruning.pool import Pool as Pool, pool as pool
from para_jax._pruning.repack import repack as repack
from para_jax._pruning.repack_traced import pack as pack
from para_jax._pruning.report import Report as Report
from para_jax._pruning.scores import Score as Score
from para_jax._pruning.search import Search as Search, search as search
from para_jax._pruning.select import masks as masks, ranks as ranks
from para_jax._training.moments import (
    project_moments as project_moments,
    reset_moments as reset_moments,
)
from para_jax._training.optimizer_check import check_optimizer as check_optimizer
from para_jax._training.squeeze import shrink as shrink, squeeze as squeeze
from para_jax.formats import load as load, save as save
from para_jax.formats.base_norms import kernel_norms as kernel_norms
from para_jax.layouts import from_tree as from_tree, to_tree as to_tree
