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

import importlib as _importlib
import typing as _typing
from importlib import metadata as _metadata

try:
    __version__ = _metadata.version("para-jax")
except _metadata.PackageNotFoundError:  # A checkout on the path, not installed.
    __version__ = "0+unknown"


def _bind() -> None:
    """Import the public names, and with them subpackages such as `formats`."""
    # Not `from para_jax import _api`, which would ask `__getattr__` for it.
    api = vars(_importlib.import_module("para_jax._api"))
    globals().update((x, y) for x, y in api.items() if not x.startswith("_"))


# A checker finds a misspelt name only if it sees no `__getattr__`.
if _typing.TYPE_CHECKING:
    from para_jax._api import *  # noqa: F403
else:

    def __getattr__(name: str) -> _typing.Any:
        """Import the public names at the first use of one (PEP 562)."""
        _bind()
        if name in globals():
            return globals()[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    _bind()
    return sorted(globals())
