"""Check trees of MaxText, made here: it is not an installable package.

Names, axes and einsums are those of MaxText's source (AI-Hypercomputer/maxtext,
August 2026):

- `get_lora_param_shape` in src/maxtext/utils/lora_utils.py: from a kernel's shape, `a`
  is `[:-2] + (r,)` and `b` is `(r,) + [1:]` for query, key and value; for `out`, `a` is
  `[:-1] + (r,)`, and `b` is `(r, D)`, or `(r, L, D)` of a scanned kernel. So layers lie
  on axis 1, or apart. Modules without LoRA are None.
- `apply_lora_on_base_params`, there: to the kernel of a layer it adds
  `einsum("br,rnd->bnd", a, b)`, times `lora_alpha / r` of the whole adapter.
- `apply_lora_to_model`, there: qwix on the decoder's dense layers, which flattens both
  sides, `x @ a @ b`. Layers lie on `param_scan_axis`, 0 or 1, or apart; one rule gives
  one rank and one alpha to the modules of configs/post_train/lora_module_path.yml.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import para_jax

L, D, N, K, H, F, R = 5, 6, 4, 2, 3, 7, 3  # Layers, model, heads, kv heads, head, MLP.
ALPHA = 2.0
NATIVE, QWIX = "MaxText", "MaxText (qwix)"

# The axes of each kernel, without layers: how many of them are inputs.
KERNELS = {
    "self_attention/query": ((D, N, H), 1),
    "self_attention/value": ((D, K, H), 1),
    "self_attention/out": ((N, H, D), 2),
    "mlp/wi_0": ((D, F), 1),
    "mlp/wo": ((F, D), 1),
}
ATTENTION = [path for path in KERNELS if "attention" in path]
# The form, and the axis of the layers: None if they are apart.
CASES = {
    "native, scanned": ("maxtext", 1),
    "native, layers apart": ("maxtext", None),
    "qwix, scan axis 0": ("maxtext-qwix", 0),
    "qwix, scan axis 1": ("maxtext-qwix", 1),
    "qwix, layers apart": ("maxtext-qwix", None),
}
MARKS = {"maxtext": NATIVE, "maxtext-qwix": QWIX}


def layers(axis):
    return ["layers"] if axis is not None else [f"layers_{i}" for i in range(L)]


def with_layers(shape, axis):
    return shape if axis is None else (*shape[:axis], L, *shape[axis:])


def factor_shapes(form, axis, path, rank):
    """Return the shapes of `a` and `b`."""
    kernel, inputs = KERNELS[path]
    if form == "maxtext-qwix":
        flat = int(np.prod(kernel[:inputs])), int(np.prod(kernel[inputs:]))
        return with_layers((flat[0], rank), axis), with_layers((rank, flat[1]), axis)
    kernel = with_layers(kernel, axis)
    if path.endswith("out"):
        lead = (rank, L) if axis == 1 else (rank,)
        return (*kernel[:-1], rank), (*lead, D)
    return (*kernel[:-2], rank), (rank, *kernel[1:])


def names(form):
    return (
        ("lora_a.kernel", "lora_b.kernel")
        if form == "maxtext"
        else ("kernel_lora_a", "kernel_lora_b")
    )


def random_trees(form, axis):
    """Return the tree of LoRA factors, and the kernels by path."""
    rng = np.random.default_rng(0)
    tree, kernels = {}, {}
    for layer in layers(axis):
        for path, (shape, _) in KERNELS.items():
            outer, inner = path.split("/")
            kernel = rng.normal(size=with_layers(shape, axis))
            node = tree.setdefault(layer, {}).setdefault(outer, {})
            if form == "maxtext" and path not in ATTENTION:
                node[inner] = {"kernel": None}
                continue
            kernels[f"decoder/{layer}/{path}"] = kernel
            shapes_ = factor_shapes(form, axis, path, R)
            node[inner] = {
                name: jnp.asarray(rng.normal(size=x))
                for name, x in zip(names(form), shapes_, strict=True)
            }
    return {"params": {"decoder": tree}}, kernels


def at(tree, path):
    node = tree["params"]
    for name in path.split("/"):
        node = node[name]
    return node


def with_kernels(tree, kernels):
    """Return the factors with the base weights beside them."""
    tree = jax.tree.map(lambda x: x, tree)
    for path, kernel in kernels.items():
        at(tree, path)["kernel"] = jnp.asarray(kernel)
    return tree


def layer_of(x, axis, i):
    return x if axis is None else np.take(x, i, axis)


def forward(form, axis, tree, path, kernel, i, scale):
    """Return a layer's output, as MaxText computes it with LoRA; None is the base."""
    module = path.removeprefix("decoder/").partition("/")[2]
    _, inputs = KERNELS[module]
    kernel = layer_of(kernel, axis, i)
    size = int(np.prod(kernel.shape[:inputs]))
    x = np.random.default_rng(1).normal(size=(2, size))
    matrix = kernel.reshape(size, -1)
    if tree is None:
        return x @ matrix
    a, b = (layer_of(np.asarray(at(tree, path)[n]), axis, i) for n in names(form))
    if form == "maxtext-qwix":
        return x @ matrix + (x @ a) @ b * scale
    if module == "self_attention/out":
        delta = np.einsum("nhr,rd->nhd", a, b)
    else:
        delta = np.einsum("br,rnd->bnd", a, b)
    return x @ (kernel + delta * scale).reshape(size, -1)


def outputs(form, axis, tree, kernels, scale=1.0):
    return {
        (path, i): forward(form, axis, tree, path, kernel, i, scale)
        for path, kernel in kernels.items()
        for i in range(1 if axis is None else L)
    }


def with_deltas(axis, kernels, child):
    kernels = {path: kernel.copy() for path, kernel in kernels.items()}
    for path, x in child.adapters.items():
        kernel = kernels.get(path)
        if axis is not None:  # A view of one layer.
            name, _, i = path.rpartition("/")
            kernel = np.moveaxis(kernels[name], axis, 0)[int(i)]
        kernel += (np.asarray(x.a) @ np.asarray(x.b)).reshape(kernel.shape)
    return kernels


def agree(got, want):
    assert got.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(
            got[key], value, atol=1e-10 * np.abs(value).max(), err_msg=str(key)
        )


def shapes(tree):
    found, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {tuple(x.key for x in path): value.shape for path, value in found}


def cases(column):
    """Parametrise over all forms, each a cell of the table of layouts."""
    return pytest.mark.parametrize(
        ("form", "axis"),
        [
            pytest.param(*x, id=name, marks=pytest.mark.layout(MARKS[x[0]], column))
            for name, x in CASES.items()
        ],
    )


def found_in(form, axis, tree):
    return para_jax.from_tree(tree, alpha=ALPHA, stack_axis=axis)


@cases("found")
@pytest.mark.parametrize("kernels_beside", [False, True], ids=["alone", "with kernels"])
def test_the_adapters_are_found(form, axis, kernels_beside):
    tree, kernels = random_trees(form, axis)

    if kernels_beside:  # Then the shapes tell the axis.
        parent = para_jax.from_tree(with_kernels(tree, kernels), alpha=ALPHA)
    else:
        parent = found_in(form, axis, tree)

    stack = () if axis is None else (L,)
    want = {}
    for path in kernels:
        shape, inputs = KERNELS["/".join(path.split("/")[2:])]
        m, n = int(np.prod(shape[:inputs])), int(np.prod(shape[inputs:]))
        want[path] = ((*stack, m, R), (*stack, R, n), ALPHA / R)
    assert parent.tree.layout == form
    assert {
        p: (x.a.shape, x.b.shape, x.scale) for p, x in parent.adapters.items()
    } == want


@cases("compressed")
def test_a_child_of_the_full_budget_is_the_same_model(form, axis):
    tree, kernels = random_trees(form, axis)
    parent = found_in(form, axis, tree)
    child = para_jax.compress(parent, para_jax.Gamma(1.0))

    got = para_jax.to_tree(child)

    assert shapes(got) == shapes(tree)
    agree(
        outputs(form, axis, got, kernels),
        outputs(form, axis, tree, kernels, ALPHA / R),
    )


@cases("forward")
def test_maxtexts_einsums_run_a_child_as_the_base_with_our_updates(form, axis):
    tree, kernels = random_trees(form, axis)
    child = para_jax.compress(found_in(form, axis, tree), para_jax.Gamma(0.25))

    got = outputs(form, axis, para_jax.to_tree(child), kernels)

    merged = with_deltas(axis, kernels, child)
    agree(got, outputs(form, axis, None, merged))


@cases("put back")
def test_the_childs_tree_has_one_rank(form, axis):
    """MaxText has one number each for the rank and alpha of the whole adapter."""
    tree, _ = random_trees(form, axis)
    child = para_jax.compress(
        found_in(form, axis, tree), para_jax.Gamma(0.5, max_rank=2)
    )
    assert {x.rank for x in child.adapters.values()} == {1, 2}

    got = para_jax.to_tree(child)

    assert jax.tree.structure(got) == jax.tree.structure(tree)
    want = {}
    for layer in layers(axis):
        for path in ATTENTION if form == "maxtext" else KERNELS:
            for name, shape in zip(
                names(form), factor_shapes(form, axis, path, 2), strict=True
            ):
                want["params", "decoder", layer, *path.split("/"), name] = shape
    assert shapes(got) == want
    assert set(para_jax.layouts.module_ranks(child).values()) == {2}


def test_a_masked_child_made_inside_jit_keeps_the_shapes():
    form, axis = CASES["native, scanned"]
    tree, kernels = random_trees(form, axis)

    @jax.jit
    def cut(tree):
        parent = found_in(form, axis, tree)
        spectra = para_jax.decompose(parent.adapters)
        kept = para_jax.masks(spectra, para_jax.Gamma(0.25))
        adapters = para_jax.repack(spectra, kept, parent.adapters, form="masked")
        return para_jax.to_tree(
            para_jax.Checkpoint(adapters=adapters, tree=parent.tree)
        )

    got = cut(tree)

    child = para_jax.compress(found_in(form, axis, tree), para_jax.Gamma(0.25))
    merged = with_deltas(axis, kernels, child)
    assert shapes(got) == shapes(tree)
    agree(outputs(form, axis, got, kernels), outputs(form, axis, None, merged))


def test_the_scan_axis_is_asked_for():
    """`a [6, 5, 3]`, `b [3, 5, 4, 3]`: five layers, or an einsum of two inputs."""
    tree, _ = random_trees("maxtext", 1)

    with pytest.raises(ValueError, match=r"'decoder/layers/.*stack_axis=: 1 or none"):
        para_jax.from_tree(tree, alpha=ALPHA)


@pytest.mark.parametrize(
    ("form", "where"),
    [("maxtext", "adapter_config.json"), ("maxtext-qwix", "lora.lora_alpha")],
)
def test_alpha_is_asked_for(form, where):
    tree, _ = random_trees(form, None)

    with pytest.raises(ValueError, match=rf"'decoder/layers_0/.*{where}"):
        para_jax.from_tree(tree)


@pytest.mark.parametrize(
    "path",
    [
        "decoder/layers/0/self_attention/query",
        "decoder/layers/attention/out",
        "decoder/layers/self_attention_global/value",
        "decoder/layers/mlp_local/wi_0",
        "decoder/layers/self_attention/qkv_proj",
        "decoder/moe_stack/shared_experts/wo",
        "decoder/dense_layers/self_attention/wkv_a",
        "decoder/scanned_blocks/layers_3/mlp/MoeBlock_0/wi_1",
    ],
)
def test_maxtexts_own_module_paths_are_known(path):
    """Cover one of each form in configs/post_train/lora_module_path.yml."""
    tree = {"kernel_lora_a": np.ones((4, 2)), "kernel_lora_b": np.ones((2, 3))}
    for name in reversed(path.split("/")):
        tree = {name: tree}

    parent = para_jax.from_tree(tree, alpha=1)

    assert parent.tree.layout == "maxtext-qwix"
    assert list(parent.adapters) == [path]


def test_a_decoder_of_another_library_keeps_its_ranks():
    """Only MaxText's modules are padded to one rank, not every module of qwix."""
    rng = np.random.default_rng(0)
    tree = {
        "decoder": {
            f"block_{i}": {
                "kernel_lora_a": rng.normal(size=(4, 2)),
                "kernel_lora_b": rng.normal(size=(2, 3)),
            }
            for i in range(2)
        }
    }

    assert para_jax.from_tree(tree, alpha=1).tree.layout == "qwix"
