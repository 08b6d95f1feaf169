#!/bin/sh
# orbax-checkpoint 0.12.8 with jax 0.10.2, Python 3.11, 1 December 2026.
#
# Expected: Orbax (v1) gives back every leaf of a tree that it saved, or refuses the tree.
# Observed: a key with a dot, "a.b", and a nested pair of keys, "a" and "b", are one place
# on disk. Both leaves come back with the values of one of them, without a word. Each
# alone comes back right, and a slash in a key is no trouble.
#
#   saved:  {'a.b': [1.0, 1.0], 'a': {'b': [2.0, 2.0]}}
#   loaded: {'a': {'b': [2.0, 2.0]}, 'a.b': [2.0, 2.0]}
#
# Exits 1 if that changes.
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
  orbax-checkpoint==0.12.8 jax==0.10.2 jaxlib==0.10.2
cd "$folder"
"$folder/venv/bin/python" -W ignore - 2>errors.txt <<'END' || { cat errors.txt; exit 1; }
import pathlib
import sys

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp


def loaded(tree, name):
    path = pathlib.Path.cwd() / name
    ocp.save(path, jax.tree.map(jnp.asarray, tree, is_leaf=lambda x: type(x) is list))
    return jax.tree.map(lambda x: x.tolist(), ocp.load(path))


dotted, nested = {"a.b": [1.0, 1.0]}, {"a": {"b": [2.0, 2.0]}}
found = loaded(dotted | nested, "both")
print(f"saved:  {dotted | nested}\nloaded: {found}")
alone = [loaded(dotted, "dotted"), loaded(nested, "nested")] == [dotted, nested]
sys.exit(not alone or found != {"a.b": [2.0, 2.0], "a": {"b": [2.0, 2.0]}})
END
