"""Make the small but real jax-lorax trees for `test_lorax.py`.

jax-lorax 0.3.1 (with qax 0.4.1 and plum-dispatch 2.5.8) runs on jax 0.4.25 and earlier,
para_jax on jax 0.10 and later, so they exchange files between two environments.

    lorax$ pip install "jax[cpu]==0.4.25" "numpy<2" "scipy<1.13" \
               "jax-lorax==0.3.1" "plum-dispatch<2.6"
    lorax$ python tests/interop/layouts/make_lorax_tree.py parent
    para$  python tests/interop/layouts/make_lorax_tree.py child
    lorax$ python tests/interop/layouts/make_lorax_tree.py run

`parent` writes `data/lorax_parent.npz`: random weights, and lorax's outputs with them.
`child` compresses these with para_jax into `data/lorax_child.npz`. `run` gives the
child back to lorax, and adds lorax's outputs with it to the same file.

The arrays of a tree are stored by their JAX paths, such as `tree/up/kernel/a`: the
fields of a `LoraWeight` are keys, but alpha is not a leaf. `tokens`, `base` and
`outputs` are the model's.
"""

import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

DATA = pathlib.Path(__file__).parent / "data"
PARENT, CHILD = DATA / "lorax_parent.npz", DATA / "lorax_child.npz"
ALPHA = 5.0
GAMMA = 0.25

# The rank of each weight: lorax takes one a leaf. 8 x 8 says nothing by its shape.
WEIGHTS = {
    "embed/embedding": ((11, 5), 4),
    "conv/kernel": ((3, 5, 6), 5),
    "up/kernel": ((6, 8), 4),
    "square/kernel": ((8, 8), 7),
}


def model(params, tokens):
    """Return `[B, T, 8]`: a gather, a convolution and two matrix products."""
    x = params["embed"]["embedding"][tokens]
    numbers = ("NWC", "WIO", "NWC")
    x = jax.lax.conv_general_dilated(
        x, params["conv"]["kernel"], (1,), "SAME", dimension_numbers=numbers
    )
    x = jnp.tanh(x + params["conv"]["bias"][None, None])
    x = jnp.tanh(x @ params["up"]["kernel"])
    return x @ params["square"]["kernel"]


def random_tree() -> dict:
    """Return base weights and factors, in the shapes lorax gives them."""
    rng = np.random.default_rng(7)
    found = {"tree/conv/bias": rng.normal(size=6)}
    for path, ((*window, m, n), rank) in WEIGHTS.items():
        found[f"tree/{path}/w"] = rng.normal(size=(*window, m, n))
        found[f"tree/{path}/a"] = rng.normal(size=(*(1 for _ in window), rank, n))
        found[f"tree/{path}/b"] = rng.normal(size=(*window, m, rank))
    return {path: (0.5 * x).astype(np.float32) for path, x in found.items()}


def nested(arrays) -> dict:
    """Return the tree of a file's arrays."""
    tree: dict = {}
    for path, value in arrays.items():
        *parents, name = path.removeprefix("tree/").split("/")
        if path.startswith("tree/"):
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = value
    return tree


def with_weights(node, alpha):
    """Return the tree with a `lorax.LoraWeight` for each weight, as users have it."""
    import lorax

    if "w" in node:
        scaled = node["b"].shape[-1] if alpha is None else alpha
        arrays = {name: jnp.asarray(node[name]) for name in "wab"}
        return lorax.LoraWeight(**arrays, alpha=float(scaled))
    return {
        name: with_weights(x, alpha) if isinstance(x, dict) else jnp.asarray(x)
        for name, x in node.items()
    }


def flat(tree) -> dict:
    """Return the leaves of a pytree, keyed by their JAX paths."""
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {
        "/".join(["tree", *(getattr(x, "key", None) or x.name for x in path)]): value
        for path, value in found
    }


def lorax_outputs(weights, tokens):
    import lorax

    return np.asarray(lorax.lora(model)(weights, jnp.asarray(tokens)))


def parent() -> None:
    arrays = random_tree()
    tokens = np.array([[3, 0, 7, 10, 2], [1, 1, 9, 4, 6]], np.int32)
    base = {x: y for x, y in arrays.items() if x[-2:] not in ("/a", "/b")}
    plain = {x.removesuffix("/w"): y for x, y in base.items()}
    weights = with_weights(nested(arrays), ALPHA)
    np.savez(
        PARENT,
        **flat(weights),
        tokens=tokens,
        base=np.asarray(model(nested(plain), tokens)),
        outputs=lorax_outputs(weights, tokens),
    )


def child() -> None:
    import para_jax

    found = para_jax.from_tree(nested(np.load(PARENT)), alpha=ALPHA)
    tree = para_jax.to_tree(para_jax.compress(found, para_jax.Gamma(GAMMA)))
    np.savez(CHILD, **{x: y for x, y in flat(tree).items() if x[-2:] in ("/a", "/b")})


def run() -> None:
    whole, made = dict(np.load(PARENT)), dict(np.load(CHILD))
    weights = with_weights(nested(whole | made), None)
    made["outputs"] = lorax_outputs(weights, whole["tokens"])
    np.savez(CHILD, **made)


if __name__ == "__main__":
    DATA.mkdir(exist_ok=True)
    {"parent": parent, "child": child, "run": run}[sys.argv[1]]()
