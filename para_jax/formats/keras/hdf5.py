"""Read and write the arrays of an HDF5 file as Keras does. Runs on the host.

NumPy's bfloat16 and float8 are opaque bytes to HDF5: Keras states the dtype in an
attribute (`H5IOStore` in keras/src/saving/saving_lib.py, 3.15.1).
"""

import pathlib
from collections.abc import Mapping

import h5py
import jax.numpy as jnp
import numpy as np

from para_jax.formats import other_files

_DTYPE = "dtype"


def read(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Return all arrays and all texts of a file by their names.

    Raises:
      ValueError: if the file is damaged, or an array is kept in another file.
    """
    arrays: dict[str, np.ndarray] = {}
    texts: dict[str, str] = {}
    links: dict[str, object] = {}
    seen: set[str] = set()

    def visit(name: str, node: h5py.Group | h5py.Dataset) -> None:
        seen.add(name)
        if not isinstance(node, h5py.Dataset):
            return
        if node.external or node.is_virtual:
            raise ValueError(f"'{name}' is kept in another file, which is not read.")
        if h5py.check_string_dtype(node.dtype) is not None:
            texts[name] = str(node.asstr()[()])
        else:
            arrays[name] = _array(node)

    try:
        with h5py.File(path, "r") as file:
            # h5py 3.16 turns what is raised in this call into a SystemError.
            file.visititems_links(lambda name, link: links.update({name: link}))
            file.visititems(visit)
    except (OSError, RuntimeError, KeyError, TypeError) as error:
        other_files.check_pointer(path)
        raise ValueError(
            f"'{path}' is not a whole HDF5 file ({error}). Save or copy it again."
        ) from error
    # What has two names is visited once, and what is behind a link is not.
    if missed := sorted(links.keys() - seen):
        raise ValueError(
            f"'{path}': '{missed[0]}' is a link, which Keras writes none of, and is "
            "not followed."
        )
    return arrays, texts


def _array(node: h5py.Dataset) -> np.ndarray:
    value = np.asarray(node[()])
    if value.dtype.kind == "V" and _DTYPE in node.attrs:
        value = value.view(jnp.dtype(str(node.attrs[_DTYPE])))
    return value


def write(
    path: pathlib.Path, arrays: Mapping[str, np.ndarray], texts: Mapping[str, str]
) -> None:
    """Write a new file of arrays and texts by their names."""
    with h5py.File(path, "w") as file:
        for name, value in arrays.items():
            node = file.create_dataset(name, data=value)
            if value.dtype.kind == "V":
                node.attrs[_DTYPE] = value.dtype.name
        for name, text in texts.items():
            file.create_dataset(name, data=text, dtype=h5py.string_dtype())
