"""Leaves of an Orbax tree: describe, request, receive and store them.

Orbax saves arrays, typed PRNG keys, and Python's int, float, bool and str. `None` and
empty containers belong to the structure of the tree. Everything else is refused by the
path of the leaf, or converted where no information is lost.

Source: orbax-checkpoint 0.12.8, v1 (`_src/serialization/registry.py`).
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp_v0

Description = jax.ShapeDtypeStruct | type
"""An array's shape and dtype, or the Python type of a leaf that is not an array."""


def described(found: Any) -> Description:
    """Describe a leaf from Orbax's metadata, of its v0 or v1 interface."""
    if isinstance(found, ocp_v0.metadata.StringMetadata):
        return str
    if isinstance(found, ocp_v0.metadata.ScalarMetadata):
        kinds = {"b": bool, "i": int, "u": int}
        return kinds.get(np.dtype(found.dtype).kind, float)
    if isinstance(found, int | float | str):
        return type(found)  # v1 describes a scalar or a string by an example.
    return jax.ShapeDtypeStruct(found.shape, found.dtype)


def requested(leaf: Description) -> Any:
    """Return the value to request a leaf with.

    Arrays are requested as NumPy arrays, which works on any number of devices. A typed
    key is stored as its uint32 data and restored as a key only if a `jax.Array` is
    requested, so every array of uint32 is requested as one and sorted out by
    `received`.
    """
    if isinstance(leaf, type):
        return leaf
    if leaf.dtype != np.uint32 or not leaf.shape:
        return np.ndarray
    place = jax.sharding.SingleDeviceSharding(_device())
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place)


def received(leaf: Any) -> Any:
    """Convert a leaf back: a typed key to a key, other arrays to NumPy."""
    if not isinstance(leaf, jax.Array):
        return leaf
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(leaf)
    data = jnp.asarray(np.asarray(jax.random.key_data(leaf)))
    return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))


def _device() -> jax.Device:
    """Return the CPU, if JAX has one: leaves may be larger than an accelerator."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def stored(tree: Any) -> Any:
    """Convert a tree for Orbax, with NumPy scalars as arrays of no axes.

    Raises:
      ValueError: if Orbax cannot hold a leaf. The message names its path.
    """
    return jax.tree.map_with_path(_stored, tree)


def _stored(path: tuple[Any, ...], leaf: Any) -> Any:
    if isinstance(leaf, str):
        return leaf
    if isinstance(leaf, np.generic):  # Before float: np.float64 is one too.
        leaf = np.asarray(leaf)
    if isinstance(leaf, bool | float):
        return leaf
    if isinstance(leaf, int):
        if not -(2**63) <= leaf < 2**64:
            raise _refused(path, f"is {leaf}", "Store it as a string.")
        return leaf
    if not isinstance(leaf, jax.Array | np.ndarray):
        kind = f"is of type {type(leaf).__name__}"
        raise _refused(path, kind, "Convert it to an array, or leave it out.")
    if not leaf.size:
        shape = f"has shape {list(leaf.shape)}, without any entry"
        raise _refused(path, shape, "Leave it out.")
    if isinstance(leaf, jax.Array) and jax.process_count() > 1:
        return _shared(leaf) if leaf.is_fully_addressable else leaf
    return leaf


def _shared(leaf: jax.Array) -> jax.Array | np.ndarray:
    """Copy an array of one process for Orbax, which refuses such in several."""
    if not jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return np.asarray(leaf)
    data = np.asarray(jax.random.key_data(leaf))
    mesh = jax.sharding.Mesh(np.array(jax.devices()), ("devices",))
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    copy = jax.make_array_from_callback(data.shape, everywhere, lambda part: data[part])
    return jax.random.wrap_key_data(copy, impl=jax.random.key_impl(leaf))


def unsupported(tree: Any, message: str) -> ValueError | None:
    """Return the error for a leaf with the dtype named in Orbax's message.

    Orbax has no list of the dtypes that it supports: its storage refuses the others
    while it writes, by their name alone.
    """
    for path, leaf in jax.tree.leaves_with_path(tree):
        name = getattr(getattr(leaf, "dtype", None), "name", None)
        if name and f'Unsupported data type: "{name}"' in message:
            return _refused(path, f"is of {name}", "Convert it, or leave it out.")
    return None


def _refused(path: tuple[Any, ...], what: str, remedy: str) -> ValueError:
    name = jax.tree_util.keystr(path, simple=True, separator="/")
    return ValueError(
        f"'{name}' {what}: an Orbax checkpoint cannot hold it, only arrays, int, "
        f"float, bool, str and None. {remedy}"
    )
