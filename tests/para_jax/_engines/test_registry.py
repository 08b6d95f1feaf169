"""Test the adapter `engine=` writes, and its cost in each engine.

The engines themselves are not run here. `para_jax/_engines/registry.py` gives the
evidence for the limits.
"""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

import para_jax as para
from para_jax._engines import prepare, registry

pytestmark = pytest.mark.user_defaults

SIZES = {"q_proj": (8, 6), "k_proj": (8, 4), "v_proj": (8, 4)}
SIZES |= {"gate_proj": (8, 11), "up_proj": (8, 11), "down_proj": (11, 8)}
TREES = {name: x.layouts[-1] for name, x in registry.ENGINES.items() if x.layouts}
# Engines of image models: they find modules only by such names.
IMAGES = ("diffusers", "comfyui", "sd-scripts")
every_engine = pytest.mark.parametrize(
    "engine", [name for name in registry.ENGINES if name not in TREES]
)


def adapter(m, n, r, *, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(m, r)), rng.normal(size=(r, n))
    return para.Adapter(a.astype(np.float32), b.astype(np.float32), scale)


def checkpoint(ranks, **fields):
    """Return modules by `layer/name` with these ranks; 0 is absent."""
    adapters, absent = {}, {}
    for seed, (path, rank) in enumerate(ranks.items()):
        m, n = SIZES.get(path.rpartition("/")[2], (8, 6))
        if rank:
            adapters[path] = adapter(m, n, rank, seed=seed, scale=1.5)
        else:
            absent[path] = m, n
    return para.Checkpoint(adapters=adapters, absent=absent, **fields)


def small():
    return checkpoint(
        {
            "layers/0/q_proj": 5,
            "layers/0/k_proj": 0,
            "layers/0/v_proj": 2,
            "layers/1/q_proj": 1,
            "layers/1/k_proj": 2,
            "layers/1/v_proj": 0,
        }
    )


def named(engine):
    """Return an engine-readable name of a linear or a convolutional layer."""
    if engine == "diffusers":
        return "down_blocks/0/resnets/0/conv1"
    if engine in IMAGES:
        return "lora_unet_down_blocks_0_resnets_0_conv1"
    return "layers/0/o_proj"


def image(engine):
    """Return a child of an image model; a part of it keeps nothing."""
    block = "down_blocks/0/attentions/0/transformer_blocks/0/attn1"
    ranks = {f"{block}/to_q": 5, f"{block}/to_k": 0, f"{block}/to_v": 2}
    if engine != "diffusers":
        ranks = {f"lora_unet_{x.replace('/', '_')}": r for x, r in ranks.items()}
    return checkpoint(ranks)


def served(engine):
    return image(engine) if engine in IMAGES else small()


def delta(x):
    return x.scale * np.asarray(x.a, np.float64) @ np.asarray(x.b, np.float64)


def target(folder, engine):
    one_file = registry.ENGINES[engine].form == "kohya"
    return folder / ("x.safetensors" if one_file else engine)


def shapes_of(folder):
    found = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    names = sorted(x for x in found if "lora_A" in x)
    return {
        x.split("model.")[-1].removesuffix(".lora_A.weight").replace(".", "/"): (
            found[x].shape[1],
            found[x].shape[0],
            found[x.replace("lora_A", "lora_B")].shape[0],
        )
        for x in names
    }


@every_engine
def test_every_update_is_in_what_is_saved(engine, tmp_path):
    parent = served(engine)

    para.save(parent, target(tmp_path, engine), engine=engine)

    got = para.load(target(tmp_path, engine)).adapters
    for path, x in parent.adapters.items():
        np.testing.assert_allclose(delta(got[path]), delta(x), rtol=1e-5, atol=1e-6)
    for path in got.keys() - parent.adapters.keys():
        assert not delta(got[path]).any()


@every_engine
def test_the_table_says_what_the_file_has(engine, tmp_path):
    para.save(served(engine), target(tmp_path, engine), engine=engine)

    (cost,) = (x for x in prepare.costs(served(engine)) if x.engine == engine)

    got = para.load(target(tmp_path, engine)).adapters.values()
    assert cost.bytes == 4 * sum(x.rank * (x.inputs + x.outputs) for x in got)
    assert cost.rank == max(x.rank for x in got)
    assert not cost.refused


def test_the_table_counts_what_an_engine_allocates():
    """Compare with two layers of q 8x6, k and v 8x4, computed by hand."""
    table = {x.engine: x for x in prepare.costs(small())}

    one = 2 * (14 + 12 + 12)
    ragged = 5 * 14 + 2 * 12 + 1 * 14 + 2 * 12
    assert {x.ragged for x in table.values()} == {4 * ragged}
    assert {name for name, x in table.items() if x.refused} == {*TREES, *IMAGES}
    assert table["peft"].memory == table["llamacpp"].memory == 4 * ragged
    assert table["vllm"].bytes == 4 * ragged
    assert (table["vllm"].rank, table["vllm"].allocated) == (5, 8)
    assert table["vllm"].memory == 4 * 8 * one
    assert table["sglang"].bytes == table["sglang"].memory == 4 * 5 * one
    assert (table["lorax"].rank, table["lorax"].bytes) == (8, 4 * 8 * one)


@pytest.mark.parametrize(
    ("rank", "allocated"),
    [(1, 1), (2, 8), (8, 8), (9, 16), (65, 128), (257, 320), (321, 512)],
)
def test_vllm_allocates_one_of_its_ranks(rank, allocated):
    cost = prepare.costs(checkpoint({"layers/0/o": rank}))[1]

    assert (cost.engine, cost.rank, cost.allocated) == ("vllm", rank, allocated)


@pytest.mark.parametrize(
    ("engine", "most"), [("vllm", 512), ("lorax", 128), ("lmdeploy", 256)]
)
def test_a_rank_that_no_buffer_holds_is_refused(engine, most, tmp_path):
    match = rf"{engine} cannot serve.*'layers/0/o' has rank {most + 1}.*max_rank={most}"

    with pytest.raises(ValueError, match=match):
        para.save(checkpoint({"layers/0/o": most + 1}), tmp_path / "x", engine=engine)
    assert not list(tmp_path.iterdir())


# --- Modules that an engine reads together -------------------------------------------


def test_sglang_finds_all_it_fuses_at_one_rank(tmp_path):
    ranks = {"layers/0/q_proj": 3, "layers/0/v_proj": 1, "layers/0/gate_proj": 2}
    ranks |= {"layers/1/up_proj": 2, "layers/1/down_proj": 1}

    para.save(checkpoint(ranks), tmp_path / "x", engine="sglang")

    added = {"layers/0/k_proj", "layers/0/up_proj", "layers/1/gate_proj"}
    assert shapes_of(tmp_path / "x") == {
        path: (m, 3, n)
        for path in ranks.keys() | added
        for m, n in [SIZES[path.rpartition("/")[2]]]
    }


@pytest.mark.parametrize("names", [("k_proj", "v_proj"), ("q_proj",)])
def test_a_sibling_of_unknown_shape_is_asked_for(names, tmp_path):
    parent = checkpoint({f"layers/0/{name}": 2 for name in names})

    with pytest.raises(
        ValueError,
        match=r"sglang cannot serve.*only beside 'layers/0/.*Adapt q_proj, k_proj, "
        r"v_proj together, or use an engine that reads each by itself, such as vllm",
    ):
        para.save(parent, tmp_path / "x", engine="sglang")
    para.save(parent, tmp_path / "y", engine="vllm")


def test_a_sibling_has_the_shape_that_it_has_in_another_layer(tmp_path):
    ranks = {f"layers/0/{x}": 2 for x in ("q_proj", "k_proj", "v_proj")}

    para.save(
        checkpoint(ranks | {"layers/1/q_proj": 1}), tmp_path / "x", engine="sglang"
    )

    assert shapes_of(tmp_path / "x")["layers/1/k_proj"] == (8, 2, 4)


def test_a_sibling_that_kept_nothing_is_filled_in(tmp_path):
    parent = checkpoint(
        {"layers/0/q_proj": 0, "layers/0/k_proj": 2, "layers/0/v_proj": 1}
    )

    para.save(parent, tmp_path / "x", engine="sglang")

    assert shapes_of(tmp_path / "x")["layers/0/q_proj"] == (8, 2, 6)


@pytest.mark.parametrize(("engine", "rank"), [("lorax", 8), ("lmdeploy", 5)])
def test_each_type_is_in_every_layer_at_one_rank(engine, rank, tmp_path):
    para.save(small(), tmp_path / "x", engine=engine)

    assert {r for _, r, _ in shapes_of(tmp_path / "x").values()} == {rank}
    assert len(shapes_of(tmp_path / "x")) == 6
    uneven = checkpoint({"layers/0/q_proj": 2, "layers/1/q_proj": 1, "layers/0/up": 1})
    with pytest.raises(ValueError, match="'layers/up' is in 1 of 2 layers"):
        para.save(uneven, tmp_path / "y", engine=engine)


@pytest.mark.parametrize("layers", [0, [0], [0, 1]])
@pytest.mark.parametrize("engine", ["lorax", "lmdeploy"])
def test_a_parent_in_some_layers_alone_is_refused(engine, layers, tmp_path):
    """The file does not record the number of layers in the base."""
    config = {"peft_type": "LORA", "layers_to_transform": layers}
    parent = checkpoint({"layers/0/q_proj": 2, "layers/1/q_proj": 1}, config=config)

    with pytest.raises(
        ValueError, match=rf"{engine} cannot.*layers_to_transform.*null"
    ):
        para.save(parent, tmp_path / "x", engine=engine)
    for nothing in (None, []):
        config["layers_to_transform"] = nothing
        para.save(parent, tmp_path / f"{nothing}", engine=engine)


@pytest.mark.parametrize(
    ("rank", "written"),
    [(1, 1), (3, 3), (16, 16), (17, 32), (32, 32), (65, 128), (129, 256)],
)
def test_lmdeploy_has_ranks_that_its_kernel_is_compiled_for(rank, written, tmp_path):
    """Above 16, only powers of two: Triton has no other ranges."""
    parent = checkpoint({"layers/0/q_proj": rank, "layers/1/q_proj": 1})

    para.save(parent, tmp_path / "x", engine="lmdeploy")

    assert {r for _, r, _ in shapes_of(tmp_path / "x").values()} == {written}
    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == written


@pytest.mark.filterwarnings("ignore:.*one module for each expert")
@pytest.mark.parametrize("engine", ["vllm", "tensorrt-llm"])
def test_the_experts_of_a_layer_have_one_rank(engine, tmp_path):
    ranks = {"layers/0/experts/0/w1": 3, "layers/0/experts/1/w1": 1}
    ranks |= {"layers/0/experts/2/w1": 0, "layers/1/experts/0/w1": 2, "layers/1/q": 5}
    experts = [x for x in ranks if "experts" in x]

    para.save(checkpoint(ranks), tmp_path / "x", engine=engine)

    got = {path: r for path, (_, r, _) in shapes_of(tmp_path / "x").items()}
    assert got == {
        **{x[:-2] + name: 3 for x in experts[:3] for name in ("w1", "w3")},
        **{experts[3][:-2] + name: 2 for name in ("w1", "w3")},
        **{x[:-2] + "w2": 1 for x in experts},  # Gate and up are read beside down.
        "layers/1/q": 5,
    }


EXPERTS = {"w1": (8, 11), "w2": (11, 8), "w3": (8, 11)}
# The same three projections by their other names.
LONG = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}


@pytest.mark.parametrize("kept", [("w1",), ("w2",), ("w3", "w2"), ("w1", "w2", "w3")])
@pytest.mark.parametrize("names", [{x: x for x in EXPERTS}, LONG])
def test_llamacpp_finds_all_experts_of_a_layer_or_none(kept, names, tmp_path):
    adapters = {
        f"layers/1/experts/0/{names[x]}": adapter(*EXPERTS[x], 2, seed=i)
        for i, x in enumerate(kept)
    }
    absent = {
        f"layers/{layer}/experts/{i}/{names[x]}": EXPERTS[x]
        for layer in range(2)
        for i in range(3)
        for x in kept
        if f"layers/{layer}/experts/{i}/{names[x]}" not in adapters
    }
    parent = para.Checkpoint(adapters=adapters, absent=absent)

    para.save(parent, tmp_path / "x", engine="llamacpp")

    got = {path: (m, n) for path, (m, _, n) in shapes_of(tmp_path / "x").items()}
    assert got == {
        f"layers/{layer}/experts/{i}/{names[x]}": shape
        for layer in range(2)  # PEFT needs all layers of the parent.
        for i in range(3)
        for x, shape in EXPERTS.items()
    }
    back = para.load(tmp_path / "x").adapters
    for path in got:
        path = path.replace(".", "/")
        want = delta(adapters[path]) if path in adapters else 0
        np.testing.assert_allclose(delta(back[path]), want, rtol=1e-5, atol=1e-6)


# --- Adapters an engine cannot serve --------------------------------------------------

KINDS = {
    "embedding": {"peft", "vllm", "tpu-inference", "sglang", "llamacpp", "mlx"},
    "conv": {"peft", *IMAGES},
    "experts": {"peft", "vllm", "mlx"},
}


def stacked():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, 8, 2)), rng.normal(size=(3, 2, 6))
    return para.Adapter(a.astype(np.float32), b.astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
@every_engine
def test_a_kind_of_layer_is_served_or_refused(engine, kind, tmp_path):
    window = (2, 4) if kind == "conv" else ()
    paths = [named(engine)]
    if kind == "experts" and engine == "vllm":  # The only names that it knows.
        paths = [f"layers/0/mlp/experts/{x}" for x in ("gate_up_proj", "down_proj")]
    layers = dict.fromkeys(paths, para.Layer(kind=kind, window=window))
    one = stacked() if kind == "experts" else adapter(8, 6, 2)
    parent = para.Checkpoint(adapters=dict.fromkeys(paths, one), layers=layers)

    if engine in KINDS[kind]:
        para.save(parent, target(tmp_path, engine), engine=engine)
        return
    with pytest.raises(
        ValueError, match=rf"{engine} cannot serve.*of the kind '{kind}'"
    ):
        para.save(parent, target(tmp_path, engine), engine=engine)
    assert not list(tmp_path.iterdir())


FIELDS = {
    "biases": (lambda path: {"biases": {path: np.ones(6, np.float32)}}, "has a bias"),
    "extra": (
        lambda path: {"extra": {"head.weight": np.ones((3, 2), np.float32)}},
        r"'head.weight' is not a LoRA factor.*modules_to_save",
    ),
}


@pytest.mark.parametrize("field", FIELDS)
@every_engine
def test_what_is_no_factor_is_served_or_refused(engine, field, tmp_path):
    fields, match = FIELDS[field]
    parent = checkpoint({named(engine): 2}, **fields(named(engine)))

    (cost,) = (x for x in prepare.costs(parent) if x.engine == engine)
    assert (not cost.refused) == (engine == "peft")
    if engine == "peft":
        para.save(parent, tmp_path / "x", engine=engine)
    else:
        assert re.search(match, cost.refused)
        with pytest.raises(ValueError, match=match):
            para.save(parent, target(tmp_path, engine), engine=engine)


HEADS = {
    "score.weight": ["score", "classifier"],
    "classifier.weight": ["classifier"],
    "classifier.bias": ["classifier"],
}


@pytest.mark.parametrize("name", HEADS)
def test_a_head_that_modules_to_save_names_is_written_for_vllm(name, tmp_path):
    head = {f"base_model.model.{name}": np.ones((3, 8), np.float32)}
    config = {"peft_type": "LORA", "modules_to_save": HEADS[name]}
    parent = checkpoint({"layers/0/q_proj": 2}, extra=head, config=config)

    para.save(parent, tmp_path / "x", engine="vllm")

    tensors = safetensors.numpy.load_file(tmp_path / "x/adapter_model.safetensors")
    np.testing.assert_array_equal(tensors[f"base_model.model.{name}"], 1)
    written = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert written["modules_to_save"] == [name.partition(".")[0]]


@pytest.mark.parametrize(
    ("name", "saved"),
    [
        ("score.weight", []),
        ("score.weight", ["model.score"]),
        ("score.scale", ["score"]),
        ("classifier.out_proj.weight", ["classifier"]),
        ("lm_head.weight", ["lm_head"]),
    ],
)
def test_other_heads_are_refused_for_vllm(name, saved, tmp_path):
    head = {f"base_model.model.{name}": np.ones((3, 8), np.float32)}
    config = {"peft_type": "LORA", "modules_to_save": saved}
    parent = checkpoint({"layers/0/q_proj": 2}, extra=head, config=config)

    with pytest.raises(ValueError, match=rf"'.*{name}' is not a LoRA factor"):
        para.save(parent, tmp_path / "x", engine="vllm")
    assert not list(tmp_path.iterdir())


LANGUAGE = [x for x in registry.ENGINES if x not in TREES and x not in IMAGES]


@pytest.mark.parametrize("engine", LANGUAGE)
def test_replicated_layers_are_served_by_peft_alone(engine, tmp_path):
    config = {"peft_type": "LORA", "layer_replication": [[0, 2], [1, 3]]}
    parent = checkpoint({"layers/0/q_proj": 2, "layers/3/q_proj": 1}, config=config)
    if engine == "sglang":  # It needs its siblings too.
        parent = dataclasses.replace(small(), config=config)

    if engine == "peft":
        para.save(parent, tmp_path / "x", engine=engine)
        written = json.loads((tmp_path / "x/adapter_config.json").read_text())
        assert written["layer_replication"] == [[0, 2], [1, 3]]
        return
    with pytest.raises(ValueError, match=rf"{engine} cannot.*has layer_replication"):
        para.save(parent, tmp_path / "x", engine=engine)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("engine", "path"),
    [
        ("tensorrt-llm", "lm_head"),
        ("tensorrt-llm", "model/embed_tokens"),
        ("sglang-jax", "lm_head"),
        ("sglang-jax", "layers/0/self_attn/dense"),
    ],
)
def test_what_an_engine_passes_over_is_refused(engine, path, tmp_path):
    with pytest.raises(ValueError, match=f"passes over '{path}' without a word"):
        para.save(checkpoint({path: 2}), tmp_path / "x", engine=engine)


COPIES = ("vllm", "tpu-inference", "sglang", "llamacpp")


@pytest.mark.parametrize("name", ["embed_tokens", "lm_head"])
@pytest.mark.parametrize("engine", [*COPIES, "lorax", "tensorrt-llm"])
def test_a_copy_of_an_adapted_embedding_is_passed_over_or_refused(
    engine, name, tmp_path
):
    """PEFT saves the base's own tensor beside an adapter of a resized embedding."""
    kinds = {name: para.Layer(kind="embedding")} if name == "embed_tokens" else {}
    extra = {f"base_model.model.{name}.base_layer.weight": np.ones((8, 6), np.float32)}
    parent = checkpoint({name: 2}, layers=kinds, extra=extra)

    if engine in COPIES:
        para.save(parent, tmp_path / "x", engine=engine)
    else:
        with pytest.raises(ValueError, match=f"{engine} cannot serve"):
            para.save(parent, tmp_path / "x", engine=engine)
    # Without an adapter it is the module's own tensor, and engines do not accept it.
    gone = checkpoint({name: 0, "layers/0/q_proj": 2}, layers=kinds, extra=extra)
    with pytest.raises(ValueError, match="is not a LoRA factor"):
        para.save(gone, tmp_path / "y", engine="vllm")


@every_engine
def test_nothing_left_to_serve_is_refused(engine, tmp_path):
    with pytest.raises(ValueError, match="no module has an adapter left"):
        para.save(
            checkpoint({named(engine): 0}), target(tmp_path, engine), engine=engine
        )


# --- Trees ----------------------------------------------------------------------------


def in_tree(layout):
    """Return a tree of two layers; the second matters little."""
    factors = [adapter(8, 6, 3, seed=0), adapter(8, 6, 3, seed=1)]
    pairs = [{"a": x.a * 0.01**i, "b": x.b} for i, x in enumerate(factors)]
    if layout == "gemma":
        return {f"layer_{i}": {"mlp": {"lora": x}} for i, x in enumerate(pairs)}
    names = {"a": "kernel_lora_a", "b": "kernel_lora_b"}
    return {
        "layers": {
            str(i): {"q": {names[k]: y for k, y in x.items()}}
            for i, x in enumerate(pairs)
        }
    }


@pytest.mark.parametrize("engine", TREES)
def test_a_tree_has_one_rank_for_all_modules(engine, tmp_path):
    alpha = None if engine == "gemma" else 6.0
    tree = in_tree(TREES[engine])
    parent = para.from_tree(tree, layout=TREES[engine], alpha=alpha)
    child = para.compress(parent, para.Gamma(0.34))
    assert child.absent

    para.save(child, tmp_path / "x", engine=engine)

    shapes = [x.shape for x in jax.tree.leaves(ocp.metadata(tmp_path / "x").metadata)]
    assert sorted(shapes) == [(2, 6), (2, 6), (8, 2), (8, 2)]
    got = para.load(tmp_path / "x")
    assert got.adapters.keys() == child.adapters.keys()
    for path, x in got.adapters.items():
        np.testing.assert_allclose(delta(x), delta(child.adapters[path]), atol=1e-5)
        assert x.scale == 1
    (cost,) = (x for x in prepare.costs(child) if x.engine == engine)
    assert (cost.rank, cost.memory) == (2, 4 * 2 * 2 * (8 + 6))


@pytest.mark.parametrize("engine", TREES)
def test_an_adapter_from_no_tree_has_none_to_run_in(engine, tmp_path):
    with pytest.raises(ValueError, match=f"{engine} cannot serve.*came from no tree"):
        para.save(small(), tmp_path / "x", engine=engine)


LAYERS = {f"model/layers/{i}/self_attn/{x}_proj": 1 + i for i in (0, 1) for x in "qv"}


def test_lmdeploy_compares_the_types_of_modules(tmp_path):
    """It looks for a name from one adapter's list in the lists of the others."""
    para.save(checkpoint(LAYERS), tmp_path / "x", engine="lmdeploy")

    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert config["r"] == config["lora_alpha"] == 2


def test_sglang_jax_pads_to_its_buffers_itself(tmp_path):
    para.save(checkpoint(LAYERS), tmp_path / "x", engine="sglang-jax")

    got = {f"model/{x}": r for x, (_, r, _) in shapes_of(tmp_path / "x").items()}
    assert got == LAYERS
    config = json.loads((tmp_path / "x/adapter_config.json").read_text())
    assert config["r"] == config["lora_alpha"] == 2  # It divides one by the other.
    (cost,) = (x for x in prepare.costs(checkpoint(LAYERS)) if x.engine == "sglang-jax")
    assert cost.memory == 4 * 2 * 2 * (14 + 12)


# --- Names ----------------------------------------------------------------------------

SCHEMES = {
    "hf": "model/layers/0/self_attn/o_proj",
    "gpt2": "transformer/h/0/attn/c_attn",
    "module": "transformer_blocks/0/attn/to_q",
    "unet": "unet/mid_block/attentions/0/transformer_blocks/0/attn1/to_q",
    "diffusers": "transformer/transformer_blocks/0/attn/to_q",
    "original": "double_blocks/0/img_attn/proj",
    "comfyui": "diffusion_model/double_blocks/0/img_attn/proj",
    "kohya": "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q",
    "unknown": "lora_unet_some_model_0_attn",
}
TEXT = {"hf", "gpt2"}
SERVED = {
    "peft": SCHEMES.keys() - {"unknown"},
    "diffusers": SCHEMES.keys() - TEXT - {"unknown"},
    "comfyui": SCHEMES.keys() - TEXT,  # It has a name for each module of any model.
    "sd-scripts": SCHEMES.keys() - TEXT - {"module", "diffusers", "unet"},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@every_engine
def test_a_name_is_read_or_converted_or_refused(engine, scheme, tmp_path):
    parent = checkpoint({SCHEMES[scheme]: 2})
    wanted = SERVED.get(engine, {"hf"} if engine == "sglang-jax" else TEXT)

    (cost,) = (x for x in prepare.costs(parent) if x.engine == engine)

    assert (not cost.refused) == (scheme in wanted)
    if scheme in wanted:
        para.save(parent, target(tmp_path, engine), engine=engine)
        return
    with pytest.raises(ValueError, match=f"{engine} cannot serve this adapter: "):
        para.save(parent, target(tmp_path, engine), engine=engine)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("engine", ["vllm", "sglang", "llamacpp", "mlx"])
def test_names_that_are_in_no_language_model_are_told(engine, tmp_path):
    for name in (SCHEMES["hf"], SCHEMES["gpt2"], "lm_head"):
        folder = tmp_path / name.replace("/", ".")
        para.save(checkpoint({name: 2}), folder, engine=engine)

    with pytest.warns(UserWarning, match=f"not names of layers.*If {engine} finds no"):
        para.save(checkpoint({"foo/bar": 2}), tmp_path / "x", engine=engine)


def keys(path):
    return sorted(safetensors.numpy.load_file(path))


def test_a_single_file_for_diffusers_has_its_names(tmp_path):
    para.save(checkpoint({SCHEMES["kohya"]: 2}), tmp_path / "x", engine="diffusers")
    file = tmp_path / "x.safetensors"
    para.save(checkpoint({SCHEMES["kohya"]: 2}), file, engine="diffusers")

    inside = "mid_block.attentions.0.transformer_blocks.0.attn1.to_q"
    assert keys(tmp_path / "x/adapter_model.safetensors") == [
        f"base_model.model.{inside}.lora_A.weight",
        f"base_model.model.{inside}.lora_B.weight",
    ]
    assert keys(file) == [f"unet.{inside}.lora_{x}.weight" for x in "AB"]


def test_comfyui_gets_the_whole_differences_of_a_file(tmp_path):
    norm = "lora_unet_mid_block_attentions_0_norm"
    extra = {f"{norm}.{end}": np.ones(8, np.float32) for end in ("diff", "diff_b")}
    parent = dataclasses.replace(checkpoint({SCHEMES["kohya"]: 2}), extra=extra)

    para.save(parent, tmp_path / "x.safetensors", engine="comfyui")
    with pytest.raises(ValueError, match="is not a LoRA factor"):
        para.save(parent, tmp_path / "y.safetensors", engine="sd-scripts")

    got = safetensors.numpy.load_file(tmp_path / "x.safetensors")
    assert all(np.array_equal(got[name], x) for name, x in extra.items())
    assert len(got) > len(extra)


def test_a_folder_holds_one_component_and_a_file_holds_all(tmp_path):
    text = "lora_te_text_model_encoder_layers_0_mlp_fc1"
    parent = checkpoint({SCHEMES["kohya"]: 2, text: 1})

    with pytest.raises(ValueError, match=r"text_encoder, unet.*ends in '.safetensors'"):
        para.save(parent, tmp_path / "x", engine="diffusers")
    with pytest.raises(ValueError, match=r"of a text encoder.*ends in '.safetensors'"):
        para.save(checkpoint({text: 1}), tmp_path / "x", engine="diffusers")
    para.save(parent, tmp_path / "x.safetensors", engine="diffusers")
    (cost,) = (x for x in prepare.costs(parent) if x.engine == "diffusers")
    assert (cost.format, cost.refused) == ("kohya", "")


# --- The call -------------------------------------------------------------------------


def test_an_engine_decides_on_the_format(tmp_path):
    with pytest.raises(ValueError, match="decides on format and profile"):
        para.save(small(), tmp_path / "x", engine="vllm", profile="padded")
    with pytest.raises(ValueError, match=r"Unknown engine 'llama': expected .*'peft'"):
        para.save(small(), tmp_path / "x", engine="llama")


def test_the_configuration_is_one_that_vllm_reads(tmp_path):
    para.save(small(), tmp_path / "x", engine="vllm")

    config = json.loads((tmp_path / "x/adapter_config.json").read_text())

    assert config["r"] == config["lora_alpha"] == 5
    assert isinstance(config["target_modules"], list)
    assert not config.get("modules_to_save")
    assert not config["lora_bias"]
    assert not config["use_rslora"]
