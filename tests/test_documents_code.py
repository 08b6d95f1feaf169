"""Test that the Python blocks of README and documentation run as printed.

It runs on shipped adapters. The names a block assumes (an adapter, a measure, a loss)
are defined here, and its results are checked.
"""

import os
import pathlib
import re
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
BLOCKS = [
    pytest.param(block, id=f"{page.relative_to(ROOT).with_suffix('')}-{i}")
    for page in PAGES
    for i, block in enumerate(
        re.findall(r"^```python\n(.*?)^```", page.read_text(), re.M | re.S)
    )
]

BEFORE = """
import functools
import pathlib
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import para_jax as para

shutil.copytree(sys.argv[1], "adapter")
parent = para.load("adapter")
adapters = parent.adapters


def total(tree):
    return sum(x.rank for x in tree.values())
"""

CUT = """
@jax.jit
def cut(adapters):
    spectra = para.decompose(adapters)
    masks = para.masks(spectra, para.Gamma(0.25))
    return para.repack(spectra, masks, adapters, form="masked")
"""

# By words in a block: its setup, and the assertions after it. A block uses every entry
# with words it contains, and must match at least one.
CASES = {
    "import para_jax as para": ("", ""),
    "plot.rank_map(": (
        "",
        'assert pathlib.Path("ranks.png").stat().st_size > 1000',
    ),
    'para.save(child, "adapter-r4/"': (
        "",
        """
        again = para.load("adapter-r4").adapters
        assert total(again) == total(parent.adapters) // 4 == total(child.adapters)
        """,
    ),
    "para.to_params(child": (
        "",
        "assert len(jax.tree.leaves(lora)) == 2 * len(child.adapters)",
    ),
    "para.search(": (
        "accuracy = lambda adapters: 1.0 if total(adapters) > 100 else 0.0",
        "assert found.child is not None",
    ),
    "para.family(": (
        "",
        """
        half, _, least = (x.adapters for x in children)
        assert total(half) == total(parent.adapters) // 2
        assert sum(x.size for x in jax.tree.leaves(para.to_params(least))) <= 100_000
        """,
    ),
    "para.masks(": (
        "",
        """
        with jax.enable_x64(True):
            child = cut(parent.adapters)
        assert {k: x.a.shape for k, x in child.items()} == {
            k: x.a.shape for k, x in parent.adapters.items()
        }
        kept = sum(int(np.any(np.asarray(x.b), axis=-1).sum()) for x in child.values())
        whole = para.compress(parent, para.Epsilon(0.99))
        assert kept == total(whole.adapters)
        """,
    ),
    "layouts.qwix_rules(": (
        """
        one = next(iter(adapters.values()))
        leaves = {"kernel_lora_a": one.a, "kernel_lora_b": one.b}
        leaves = jax.tree.map(jnp.asarray, leaves)
        params = {"up": {"kernel": jnp.zeros((384, 384)), **leaves}}
        """,
        """
        assert params["up"]["kernel_lora_a"].shape == (384, total(child.adapters))
        assert params["up"]["kernel"].shape == (384, 384)
        assert len(rules) == 1
        """,
    ),
    "layouts.keras_tree(": (
        """
        import keras
        layer = keras.layers.Dense(7, use_bias=False)
        model = keras.Sequential([keras.Input((5,)), layer])
        layer.enable_lora(4, lora_alpha=8)
        layer.lora_kernel_b.assign(np.eye(4, 7))
        """,
        """
        assert layer.lora_rank == total(child.adapters) == 1
        assert total(parent.adapters) == 4
        """,
    ),
    "slot=3": (
        """
        from flax import nnx

        one = adapters[sorted(adapters)[0]]
        model = nnx.Module()
        model.up = nnx.Module()
        model.up.lora_A = nnx.Param(jnp.stack([one.a] * 4))
        model.up.lora_B = nnx.Param(jnp.stack([one.b] * 4))
        model.up.lora_ranks = nnx.Variable(jnp.full(4, one.rank))
        model.up.lora_scaling = nnx.Variable(jnp.full(4, 0.5))
        """,
        """
        assert model.up.lora_ranks[...].tolist() == [16, 16, 16, 4]
        assert model.up.lora_scaling[...].tolist() == [0.5, 0.5, 0.5, 1]
        """,
    ),
    "para.squeeze(": (
        """
        optimizer = optax.adamw(1e-3)
        kept = para.to_params(adapters)
        loss = lambda lora, batch: sum(
            jnp.square(x - batch).sum() for x in jax.tree.leaves(lora)
        )
        """,
        """
        state, before = optimizer.init(kept), total(adapters)
        for i in (0, 499):
            lora, new = jax.tree.map(jnp.array, (kept, state))
            lora, new = step(lora, new, para.Gamma(0.25), jnp.array(i), 0.1)
            left = sum(
                int(np.any(np.asarray(x.b), axis=-1).sum())
                for x in para.from_params(lora).values()
            )
            assert left == (before if i == 0 else before // 4), left
        """,
    ),
    "para.shrink(": (
        """
        lora, policy = para.to_params(adapters), para.Gamma(0.05)
        optimizer = optax.adamw(1e-3)
        state = optimizer.init(lora)
        """,
        """
        assert total(para.from_params(lora)) == int(0.05 * total(parent.adapters))
        assert len(adapters) < len(parent.adapters)  # Some modules kept nothing.
        optimizer.update(lora, state, lora)
        """,
    ),
    "jax.vmap(cut)": (
        CUT + "tenants = [adapters, jax.tree.map(lambda x: 2 * x, adapters)]",
        """
        one = cut(adapters)
        for path, x in children.items():
            y = one[path]
            np.testing.assert_allclose((x.a @ x.b)[0], y.a @ y.b, atol=1e-5)
        """,
    ),
    "jax.make_mesh(": (
        """
        rng = np.random.default_rng(0)
        adapters = {
            "up": para.Adapter(
                rng.normal(size=(4, 16, 4)).astype(np.float32),
                rng.normal(size=(4, 4, 8)).astype(np.float32),
                0.5,
            )
        }
        """,
        """
        assert child.adapters["up"].a.sharding.mesh.size == 8
        alone = para.compress(adapters, para.Gamma(0.25), form="padded").adapters["up"]
        np.testing.assert_allclose(
            np.asarray(child.adapters["up"].a) @ np.asarray(child.adapters["up"].b),
            np.asarray(alone.a) @ np.asarray(alone.b),
            atol=1e-5,
        )
        """,
    ),
}


def test_every_case_is_of_a_block():
    text = "".join(x.values[0] for x in BLOCKS)
    assert [word for word in CASES if word not in text] == []


@pytest.mark.slow
@pytest.mark.parametrize("block", BLOCKS)
def test_a_block_runs_and_does_what_it_says(block, tmp_path):
    cases = [CASES[word] for word in CASES if word in block]
    given, then = ("\n".join(map(textwrap.dedent, x)) for x in zip(*cases, strict=True))
    (tmp_path / "block.py").write_text(f"{BEFORE}\n{given}\n{block}\n{then}")
    flags = "--xla_force_host_platform_device_count=8"
    command = [sys.executable, "block.py", str(ROOT / "train/assets/minilm-movie-r16")]

    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": flags},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )

    assert done.returncode == 0, done.stderr[-3000:]
