"""Test the command line on other libraries' trees, names, formats and engines.

Orbax writes the trees in those libraries' forms, and the outputs are read by Orbax and
safetensors. The oracle is NumPy's SVD of the dense updates.
"""

import json
import pathlib
import re

import jax
import numpy as np
import pytest
import safetensors.numpy
from orbax.checkpoint import v1 as ocp

import para_jax as para
from para_jax import cli
from para_jax._engines.registry import ENGINES

pytestmark = [
    pytest.mark.user_defaults,
    pytest.mark.usefixtures("no_trace_of_the_settings"),
]

MINILM = pathlib.Path(__file__).parents[3] / "train/assets/minilm-movie-r16"
R, ALPHA = 3, 6.0  # So the scale is 2.


@pytest.fixture
def call(capsys, monkeypatch, tmp_path):
    """Run a command in this process; return its code, output and error text."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        code = cli.main([str(x) for x in arguments])
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture
def done(call):
    """Run a command that must succeed without error text; return its output."""

    def run(*arguments):
        code, out, err = call(*arguments)
        assert (code, err) == (0, "")
        if "--json" not in arguments:
            assert not [line for line in out.splitlines() if len(line) > 80]
        return out

    return run


@pytest.fixture
def refused(call, tmp_path):
    """Run a command that must refuse and write nothing; return its sentence."""

    def run(*arguments):
        before = sorted(tmp_path.rglob("*"))
        code, out, err = call(*arguments)
        assert (code, out) == (2, "")
        assert err.count("\n") == 1
        assert re.match(r"para( \w+)?: .*\.$", err), err
        assert sorted(tmp_path.rglob("*")) == before
        # The command line must not mention the library's keyword arguments.
        assert not re.search(r"\b[a-z_]+=", re.sub(r"'[^']*'", "", err)), err
        return err

    return run


def array(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype("f4")


def pair(name, a, b, seed):
    return {
        f"{name}_lora_a": array(*a, seed=seed),
        f"{name}_lora_b": array(*b, seed=seed + 10),
    }


def flat(a, b):
    """Return the matrix represented by two factors of any number of axes."""
    a, b = a.astype(float), b.astype(float)
    return a.reshape(-1, a.shape[-1]) @ b.reshape(len(b), -1)


# Of each tree: how it is made, and its updates for a scale of 1.


def qwix():
    fc = {"kernel": array(8, 5), **pair("kernel", (8, R), (R, 5), 1)}
    return {"fc": fc, "head": pair("w", (4, 2, R), (R, 7), 2) | {"w": array(4, 2, 7)}}


def qwix_updates(tree):
    return {
        path: flat(tree[path][f"{name}_lora_a"], tree[path][f"{name}_lora_b"])
        for path, name in (("fc", "kernel"), ("head", "w"))
    }


def tunix():
    return {
        "layers": {
            str(i): {
                "attn": {
                    "q_proj": {"w": array(12, 2, 4)} | pair("w", (12, R), (R, 2, 4), i),
                    "o_proj": {"w": array(2, 4, 12)} | pair("w", (2, 4, R), (R, 12), i),
                },
                "input_layernorm": {"w": array(12)},
            }
            for i in range(2)
        }
    }


def tunix_updates(tree):
    return {
        f"layers/{i}/attn/{name}": flat(module["w_lora_a"], module["w_lora_b"])
        for i, layer in tree["layers"].items()
        for name, module in layer["attn"].items()
    }


def gemma():
    def lora(a, b, seed):
        return {"lora": {"a": array(*a, seed=seed), "b": array(*b, seed=seed + 10)}}

    return {
        f"layer_{i}": {
            "attn": {"kv_einsum": {"_LoRAEinsum_0": lora((9, R), (R, 2, 1, 4), i)}},
            "mlp": {"linear": lora((7, R), (R, 9), i)},
        }
        for i in range(2)
    }


def gemma_updates(tree):
    found = {}
    for name, layer in tree.items():
        kv = layer["attn"]["kv_einsum"]["_LoRAEinsum_0"]["lora"]
        for i, part in enumerate("kv"):
            found[f"{name}/attn/kv_einsum/{part}"] = flat(kv["a"], kv["b"][:, i])
        linear = layer["mlp"]["linear"]["lora"]
        found[f"{name}/mlp/linear"] = flat(linear["a"], linear["b"])
    return found


def nnx():
    return {
        "blocks": {
            str(i): {
                "fc": {
                    "lora_a": {"value": array(8, R, seed=i)},
                    "lora_b": {"value": array(R, 5, seed=i)},
                    "base_module": {"kernel": {"value": array(8, 5)}},
                }
            }
            for i in range(2)
        }
    }


def nnx_updates(tree):
    return {
        f"blocks/{i}/fc": flat(x["fc"]["lora_a"]["value"], x["fc"]["lora_b"]["value"])
        for i, x in tree["blocks"].items()
    }


def maxtext():
    kernel = {"kernel": array(12, 2, 2, 4)}
    query = kernel | pair("kernel", (12, 2, R), (R, 2, 2, 4), 0)
    return {"params": {"decoder": {"layers": {"self_attention": {"query": query}}}}}


def maxtext_updates(tree):
    query = tree["params"]["decoder"]["layers"]["self_attention"]["query"]
    return {
        f"decoder/layers/self_attention/query/{i}": flat(
            query["kernel_lora_a"][:, i], query["kernel_lora_b"][:, i]
        )
        for i in range(2)
    }


def linen():
    return {"lora": {"h": {"up": {"a": array(2, 8, R), "b": array(2, R, 5)}}}}


def linen_updates(tree):
    up = tree["lora"]["h"]["up"]
    return {f"h/up/{i}": flat(up["a"][i], up["b"][i]) for i in range(2)}


TREES = {
    "qwix": (qwix, qwix_updates, ["--alpha", ALPHA], 2.0),
    "tunix": (tunix, tunix_updates, ["--alpha", ALPHA], 2.0),
    "gemma": (gemma, gemma_updates, [], 1.0),
    "nnx": (nnx, nnx_updates, [], 1.0),
    "maxtext-qwix": (maxtext, maxtext_updates, [], 2.0),
    "linen": (linen, linen_updates, ["--scale", 0.5], 0.5),
}


@pytest.fixture
def saved(tmp_path):
    """Save a tree as its library's program does; return its dense updates."""

    def save(name, path="run"):
        make, updates, _, scale = TREES[name]
        lora = {"lora": {"lora_rank": R, "lora_alpha": ALPHA}}
        metadata = lora if name == "maxtext-qwix" else None
        ocp.save(tmp_path / path, make(), custom_metadata=metadata)
        return {key: scale * x for key, x in updates(make()).items()}

    return save


def read(path):
    tree = ocp.metadata(path).metadata
    return ocp.load(path, jax.tree.map(lambda _: np.ndarray, tree))


def best(updates, kept):
    """Return the updates left by the `kept` largest singular values of all."""
    parts = {path: np.linalg.svd(x, full_matrices=False) for path, x in updates.items()}
    tau = np.sort(np.concatenate([s for _, s, _ in parts.values()]))[-kept]
    return {p: (u * (s * (s >= tau))) @ vt for p, (u, s, vt) in parts.items()}


def same(got, want):
    assert got.keys() == want.keys()
    for path in want:
        np.testing.assert_allclose(got[path], want[path], atol=1e-4, err_msg=path)


def peft_updates(folder):
    """Return `B A alpha / r` transposed, in a JAX kernel's axes, by PEFT's name."""
    config = json.loads((folder / "adapter_config.json").read_text())
    found = safetensors.numpy.load_file(folder / "adapter_model.safetensors")
    updates = {}
    for key, a in found.items():
        name, _, end = key.partition(".lora_A")
        if end:
            b = found[f"{name}.lora_B.weight"]
            name = name.removeprefix("base_model.model.")
            alpha = config["alpha_pattern"].get(name, config["lora_alpha"])
            rank = config["rank_pattern"].get(name, config["r"])
            assert rank == len(a)
            updates[name] = flat(a.T, b.T) * alpha / rank
    return updates


# Trees


@pytest.mark.parametrize("name", TREES)
def test_a_tree_is_recognised_and_its_spectra_are_those_of_its_updates(
    done, saved, name
):
    updates = saved(name)

    found = json.loads(done("inspect", "run", *TREES[name][2], "--json"))

    assert found["layout"] == name
    assert {x["path"] for x in found["modules"]} == updates.keys()
    for module in found["modules"]:
        want = np.linalg.svd(updates[module["path"]], compute_uv=False)[:R]
        np.testing.assert_allclose(module["sigma"], want, rtol=1e-4)
    assert f"layout {name}." in done("inspect", "run", *TREES[name][2])


@pytest.mark.parametrize("name", TREES)
def test_a_child_of_a_tree_is_the_same_tree_with_the_best_updates(
    done, saved, tmp_path, name
):
    updates = saved(name)
    total = R * len(updates)
    arguments = ("compress", "run", "child", *TREES[name][2], "--gamma", 0.5)

    assert f"{total // 2} of {total} ranks kept" in done(*arguments)

    make, of, _, _ = TREES[name]
    child = read(tmp_path / "child")
    assert jax.tree.structure(child) == jax.tree.structure(make())
    same(of(child), best(updates, total // 2))
    # A child holds its own scales, and says so.
    done("inspect", "child")


def test_modules_have_their_own_ranks_and_the_layers_of_a_scan_one(
    done, saved, tmp_path
):
    for name in ("tunix", "maxtext-qwix"):
        saved(name, name)
        done("compress", name, f"{name}-child", *TREES[name][2], "--gamma", 0.5)

    layers = read(tmp_path / "tunix-child")["layers"]
    ranks = [len(m["w_lora_b"]) for x in layers.values() for m in x["attn"].values()]
    assert len(set(ranks)) > 1
    decoder = read(tmp_path / "maxtext-qwix-child")["params"]["decoder"]
    query = decoder["layers"]["self_attention"]["query"]
    rank = query["kernel_lora_a"].shape[-1]
    assert query["kernel_lora_b"].shape == (rank, 2, 2, 4)
    assert rank < R


def test_adapters_only_leaves_the_base_weights_out(done, saved, tmp_path):
    saved("qwix")

    done("compress", "run", "all", "--alpha", 6, "--gamma", 1)
    done("compress", "run", "few", "--alpha", 6, "--gamma", 1, "--adapters-only")

    np.testing.assert_array_equal(read(tmp_path / "all")["fc"]["kernel"], array(8, 5))
    assert read(tmp_path / "few")["fc"].keys() == {"kernel_lora_a", "kernel_lora_b"}


# Names


def llama(updates):
    """Return updates of the tunix tree under Hugging Face's names."""
    return {
        "model." + path.replace("attn", "self_attn").replace("/", "."): x
        for path, x in updates.items()
    }


def test_a_tree_becomes_an_adapter_of_hugging_faces_model(done, saved, tmp_path):
    updates = saved("tunix")
    facts = ("--alpha", 6, "--format", "peft", "--model", "llama3")

    assert "4 adapters written to adapter" in done("convert", "run", "adapter", *facts)
    done("compress", "run", "small", *facts, "--gamma", 0.5)
    out = done("convert", "run", "again", *facts, "--json")

    same(peft_updates(tmp_path / "adapter"), llama(updates))
    small = {path: x for path, x in llama(best(updates, 6)).items() if x.any()}
    same(peft_updates(tmp_path / "small"), small)
    paths = [name.replace(".", "/") for name in llama(updates)]
    assert json.loads(out) == {"again": sorted(paths)}


def test_the_halves_of_a_fused_einsum_are_two_modules_there(done, saved, tmp_path):
    updates = saved("gemma")

    done("convert", "run", "adapter", "--format", "peft", "--model", "gemma3")

    inside = {
        "attn/kv_einsum/k": "self_attn.k_proj",
        "attn/kv_einsum/v": "self_attn.v_proj",
        "mlp/linear": "mlp.down_proj",
    }
    want = {
        f"model.layers.{i}.{theirs}": updates[f"layer_{i}/{ours}"]
        for i in range(2)
        for ours, theirs in inside.items()
    }
    same(peft_updates(tmp_path / "adapter"), want)


def test_names_may_come_from_a_file(done, saved, tmp_path):
    updates = saved("nnx")
    table = '"blocks/{i}/fc" = "encoder.{i}.dense"\n'
    (tmp_path / "names.toml").write_text(table)

    done("convert", "run", "adapter", "--format", "peft", "--model", "names.toml")

    want = {f"encoder.{i}.dense": updates[f"blocks/{i}/fc"] for i in range(2)}
    same(peft_updates(tmp_path / "adapter"), want)


def test_an_adapter_of_hugging_faces_gets_jax_names_in_orbax(done, saved):
    updates = saved("tunix")
    facts = ("--alpha", 6, "--format", "peft", "--model", "llama3")
    done("convert", "run", "adapter", *facts)
    facts = ("--format", "orbax", "--model", "llama3", "--ecosystem", "tunix")

    done("convert", "adapter", "jax", *facts)

    found = json.loads(done("inspect", "jax", "--json"))
    assert {x["path"] for x in found["modules"]} == updates.keys()


@pytest.mark.parametrize(
    ("facts", "match"),
    [
        ([], "maxtext-scanned' and .*, which differ .* --ecosystem 'maxtext-scanned'"),
        (["--ecosystem", "maxtext-scanned"], r"Give --head-dim, from the model's"),
        (["--ecosystem", "flux"], r"ecosystem is 'flux'. Say which, --ecosystem: flax"),
        (
            ["--ecosystem", "maxtext-scanned", "--head-dim", 3],
            "8 outputs, which are not heads of 3",
        ),
    ],
)
def test_a_fact_that_names_depend_on_is_asked_for(refused, saved, facts, match):
    saved("maxtext-qwix")
    to = ("--format", "peft", "--model", "llama3")

    assert re.search(match, refused("convert", "run", "adapter", *to, *facts))


def test_the_size_of_a_head_scales_the_queries(done, saved, tmp_path):
    updates = saved("maxtext-qwix")
    to = ("--format", "peft", "--model", "llama3", "--ecosystem", "maxtext-scanned")

    done("convert", "run", "adapter", *to, "--head-dim", 4)

    got = peft_updates(tmp_path / "adapter")
    assert len(got) == 2
    for i in range(2):  # MaxText divides its query kernel by the root of head_dim.
        want = 2 * updates[f"decoder/layers/self_attention/query/{i}"]
        name = f"model.layers.{i}.self_attn.q_proj"
        np.testing.assert_allclose(got[name], want, atol=1e-4)


# Profiles


def test_a_profile_decides_on_ranks_and_alphas_alone(done, tmp_path):
    compress = ("compress", MINILM, "--gamma", 0.25, "--profile")
    profiles = ("ragged", "padded", "uniform-by-type", "per-tensor-alpha")
    for profile in profiles:
        done(*compress, profile, profile)

    def ranks(profile):
        weights = tmp_path / profile / "adapter_model.safetensors"
        found = safetensors.numpy.load_file(weights)
        return [len(x) for name, x in found.items() if "lora_A" in name]

    counts = [len(set(ranks(x))) for x in profiles]
    assert 1 == counts[1] < counts[2] < counts[0] == counts[3]
    want = peft_updates(tmp_path / "ragged")
    same(peft_updates(tmp_path / "padded"), want)
    same(peft_updates(tmp_path / "uniform-by-type"), want)
    config = json.loads((tmp_path / "per-tensor-alpha/adapter_config.json").read_text())
    assert config["lora_alpha"] == 1


# kohya


def kohya_updates(path):
    """Return ComfyUI's delta of each weight `[in, out]`."""
    found = safetensors.numpy.load_file(path)
    return {
        key.removesuffix(".alpha"): flat(
            found[key.replace("alpha", "lora_down.weight")].T,
            found[key.replace("alpha", "lora_up.weight")].T,
        )
        * float(alpha)
        / len(found[key.replace("alpha", "lora_down.weight")])
        for key, alpha in found.items()
        if key.endswith(".alpha")
    }


@pytest.fixture
def unet(tmp_path):
    """Write a kohya file in sd-scripts' form; return its updates."""
    tensors = {}
    for i in range(3):
        name = f"lora_unet_down_{i}_to_q"
        tensors[f"{name}.lora_down.weight"] = array(R, 8, seed=i)
        tensors[f"{name}.lora_up.weight"] = array(5, R, seed=i)
        tensors[f"{name}.alpha"] = np.asarray(ALPHA, np.float32)
    safetensors.numpy.save_file(tensors, tmp_path / "unet.safetensors")
    return kohya_updates(tmp_path / "unet.safetensors")


def test_a_kohya_file_is_compressed_into_a_kohya_file(done, refused, unet, tmp_path):
    arguments = ("compress", "unet.safetensors", "small.safetensors", "--gamma", 0.67)

    done("inspect", "unet.safetensors")
    assert "6 of 9 ranks kept" in done(*arguments)

    want = {path: x for path, x in best(unet, 6).items() if x.any()}
    same(kohya_updates(tmp_path / "small.safetensors"), want)
    assert "'small.safetensors' exists" in (err := refused(*arguments))
    assert "--overwrite" in err
    done(*arguments[:-1], 1, "--overwrite")
    same(kohya_updates(tmp_path / "small.safetensors"), unet)


def test_a_sweep_of_kohya_writes_one_file_a_child(done, unet, tmp_path):
    sweep = ("sweep", MINILM, "children", "--gamma", 0.5, 0.25, "--format", "kohya")
    names = ["gamma-0.25.safetensors", "gamma-0.5.safetensors"]

    out = done(*sweep)
    assert sorted(x.name for x in (tmp_path / "children").iterdir()) == names
    assert all(name in out for name in names)
    out = done("sweep", "unet.safetensors", "more", "--gamma", 0.5, 0.25, "--json")
    found = json.loads(out)
    assert sorted(found) == [f"more/{x}" for x in names]
    for path, report in found.items():
        got = kohya_updates(tmp_path / path)
        kept = report["kept_rank"]
        same(got, {x: y for x, y in best(unet, kept).items() if y.any()})


def test_a_tree_becomes_a_kohya_file(done, saved, tmp_path):
    updates = saved("nnx")

    done("convert", "run", "x.safetensors", "--format", "kohya")

    want = {path.replace("/", "."): x for path, x in updates.items()}
    same(kohya_updates(tmp_path / "x.safetensors"), want)


# Engines


OTHERS = ("sglang-jax", "diffusers", "comfyui", "sd-scripts")


@pytest.mark.parametrize("engine", OTHERS)
@pytest.mark.slow
def test_an_engine_that_cannot_find_a_module_names_it(refused, done, engine):
    words = ("compress", MINILM, "x", "--gamma", 0.25, "--for", engine)
    one_file = ENGINES[engine].form == "kohya"
    words = (*words[:2], "x.safetensors" if one_file else "x", *words[3:])

    err = refused(*words, "--adapters-only")

    match = rf"{engine} cannot serve this adapter: .*'bert/encoder/layer/0/"
    assert re.search(match, err)
    found = json.loads(done("inspect", MINILM, "--engines", "--json"))
    (row,) = (x for x in found if x["engine"] == engine)
    assert row["refused"]


@pytest.mark.parametrize("target", ["child", "child.safetensors"])
@pytest.mark.parametrize("command", ["compress", "convert", "sweep", "fleet"])
def test_a_kohya_file_for_diffusers_has_its_names(done, tmp_path, command, target):
    block = "mid_block.attentions.0.transformer_blocks.0.attn1"
    name = f"lora_unet_{block.replace('.', '_')}_to_q"
    arrays = {f"{name}.lora_down.weight": np.ones((2, 5), np.float32)}
    arrays |= {f"{name}.lora_up.weight": np.ones((3, 2), np.float32)}
    (tmp_path / "in").mkdir()
    safetensors.numpy.save_file(arrays, tmp_path / "in/x.safetensors")
    many = command in ("sweep", "fleet")
    if many and target != "child":
        return
    source = "in/*.safetensors" if command == "fleet" else "in/x.safetensors"
    budget = () if command == "convert" else ("--gamma", 0.5)

    out = done(command, source, target, *budget, "--for", "diffusers")

    single = target.endswith("safetensors")
    inside = "pipe.load_lora_weights(file)" if single else "prefix='base_model.model'"
    assert inside in " ".join(out.split())
    (file,) = (x for x in tmp_path.rglob("*.safetensors") if "in" not in x.parts)
    prefix = "unet" if single else "base_model.model"
    found = safetensors.numpy.load_file(file)
    assert sorted(found) == [f"{prefix}.{block}.to_q.lora_{x}.weight" for x in "AB"]


@pytest.mark.parametrize("engine", [x for x in ENGINES if x not in OTHERS])
def test_an_engine_gets_what_it_takes_or_the_reason_is_said(
    call, refused, tmp_path, engine
):
    form = ENGINES[engine].form
    child = "child.safetensors" if form == "kohya" else "child"
    arguments = ("compress", MINILM, child, "--gamma", 0.25, "--for", engine)

    if engine not in ("peft", "vllm"):  # The trained head, or the lack of a tree.
        assert f"{engine} cannot serve this adapter" in (err := refused(*arguments))
        assert form == "orbax" or "--adapters-only" in err
    if form == "orbax":
        assert "came from no tree" in refused(*arguments, "--adapters-only")
        return
    code, out, err = call(*arguments, "--adapters-only")
    assert (code, err) == (0, "")
    assert f"Written to {child}" in out
    assert f"\n{engine}: " in out
    assert not [line for line in out.splitlines() if len(line) > 80]
    names = {"peft": "adapter_model.safetensors", "mlx": "adapters.safetensors"}
    found = safetensors.numpy.load_file(tmp_path / child / names.get(form, ""))
    assert not [name for name in found if "classifier" in name]
    by_rank = ("lora_A.weight", "lora_down.weight", "lora_b")  # Rows count ranks.
    ranks = {len(x) for key, x in found.items() if key.endswith(by_rank)}
    assert (len(ranks) == 1) == (ENGINES[engine].profile == "padded")


@pytest.mark.parametrize(
    "words",
    [
        ["--for", "sglang"],
        ["--for", "tunix"],
        ["--format", "orbax", "--profile", "padded"],
        ["--model", "none.toml"],
        ["--model", "mixtral"],
    ],
)
def test_a_refusal_comes_before_the_work(refused, monkeypatch, words):
    monkeypatch.setattr(
        cli.commands, "spectra_of", None
    )  # Would be called to decompose.
    monkeypatch.setattr(para, "compress", None)

    refused("compress", MINILM, "child", "--gamma", 0.5, *words)
    refused("sweep", MINILM, "children", "--gamma", 0.5, *words)


def test_a_place_that_is_no_file_is_refused_before_the_work(refused, monkeypatch):
    monkeypatch.setattr(para, "load", None)

    refused("compress", MINILM, "child", "--gamma", 0.5, "--format", "kohya")


def test_a_tree_for_tunix_has_one_rank(done, saved, tmp_path):
    saved("tunix")

    done("compress", "run", "child", "--alpha", 6, "--gamma", 0.5, "--for", "tunix")

    layers = read(tmp_path / "child")["layers"]
    ranks = {len(m["w_lora_b"]) for x in layers.values() for m in x["attn"].values()}
    assert len(ranks) == 1


def test_the_costs_of_the_engines_are_a_table_and_json(done):
    table = done("inspect", MINILM, "--engines", "--adapters-only")
    found = json.loads(done("inspect", MINILM, "--engines", "--json"))

    for engine in ENGINES:
        assert re.search(rf"^{engine} ", table, re.MULTILINE)
    assert [x["engine"] for x in found] == list(ENGINES)
    refused = {x["engine"]: x["refused"] for x in found}
    assert not refused["peft"]
    assert not refused["vllm"]
    assert "--adapters-only" in refused["sglang"]
    assert "adapters_only" not in done("inspect", MINILM, "--engines")


# Mistakes


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["--for", "vllm", "--profile", "ragged"], "leave out --profile"),
        (["--for", "vllm", "--format", "peft"], "leave out --format"),
        (["--for", "tgi"], "tgi.*vllm"),
        (
            ["--format", "orbax", "--profile", "padded"],
            "--profile padded applies to PEFT only",
        ),
        (
            ["--format", "kohya"],
            r"'child' must be a single file: end it in '.safetensors'",
        ),
        (["--layout", "qwix"], "its own layout: leave out --layout qwix"),
        (["--alpha", 16], "its own scales: leave out --alpha 16"),
        (["--stack-axis", "none"], "its own layout: leave out --stack-axis none"),
        (["--stack-axis", 7], "--stack-axis: '7' is not 0, 1 or none"),
        (["--alpha", "nan"], "--alpha: 'nan' is not a number"),
        (["--alpha", 1, "--scale", 2], "--scale: not allowed with argument --alpha"),
        (["--model", "bert", "--head-dim", "x"], "--head-dim: invalid int value"),
        (["--model", "bertt"], "'bertt' is not known; did you mean 'bert'"),
        (["--model", "none.toml"], "'none.toml': No such file"),
        (["--model", "mixtral"], "Hugging Face's names already, leave out --model"),
        (
            ["--model", "llama3", "--format", "orbax"],
            "ecosystem is not given. Say which, --ecosystem: flax",
        ),
        (["--ecosystem", "flax"], "--ecosystem describes a model: give --model"),
        (["--layers", 12], "--layers describes a model: give --model"),
    ],
)
@pytest.mark.parametrize("command", ["compress", "convert"])
def test_words_that_do_not_fit_a_peft_source_are_refused(
    refused, command, arguments, match
):
    budget = ["--gamma", 0.5] if command == "compress" else []

    assert re.search(match, refused(command, MINILM, "child", *budget, *arguments))


@pytest.mark.parametrize(
    ("name", "arguments", "match"),
    [
        (
            "qwix",
            [],
            r"'run'.*'fc': the layout qwix .* Give --alpha: alpha of the qwix",
        ),
        ("linen", [], r"Give --scale: alpha / r of the run"),
        ("gemma", ["--alpha", 3], "gemma has no alpha"),
        ("nnx", ["--layout", "gemma"], "not of the layout gemma"),
        ("nnx", ["--layout", "flax"], "--layout: invalid choice: 'flax'.*'nnx'"),
        ("nnx", ["--model", "llama3"], "has JAX's names, .*--model, or give --format"),
        (
            "nnx",
            ["--format", "peft", "--model", "llama3"],
            "'blocks/0/fc'.*a .toml file",
        ),
        ("nnx", ["--for", "gemma"], "gemma cannot serve .* came from a tree of nnx"),
    ],
)
def test_words_that_do_not_fit_a_tree_are_refused(
    refused, saved, name, arguments, match
):
    saved(name)

    command = ("compress", "run", "child", "--gamma", 0.5)
    assert re.search(match, refused(*command, *arguments))


def test_an_axis_that_shapes_do_not_tell_is_asked_for(refused, done, tmp_path):
    factors = {"lora_a.kernel": array(8, 2, R), "lora_b.kernel": array(R, 2, 5, 1)}
    ocp.save(tmp_path / "run", {"decoder": {"layers": {"mlp": {"wi": factors}}}})

    err = refused("inspect", "run", "--alpha", 6)
    assert "--stack-axis: 1 or none" in err
    out = done("inspect", "run", "--alpha", 6, "--stack-axis", 1)
    assert "2 modules, 6 ranks" in out


@pytest.mark.parametrize(
    ("kind", "target", "match"),
    [
        ("kohya", "there.safetensors", "is a directory, expected a file"),
        ("peft", "new.safetensors", "must be a folder of peft.*--format kohya"),
    ],
)
def test_a_place_of_the_wrong_kind_is_refused(refused, tmp_path, kind, target, match):
    (tmp_path / "there.safetensors").mkdir()
    words = ("convert", MINILM, target, "--format", kind, "--overwrite")

    assert re.search(match, refused(*words))


def test_what_a_user_called_a_folder_is_not_reworded(refused, tmp_path):
    ocp.save(tmp_path / "alpha=16", nnx())

    assert "'alpha=16'" in refused("inspect", "alpha=16", "--alpha", 16)


# Progress


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["inspect", MINILM], ["Decomposing 36 modules"]),
        (
            ["compress", MINILM, "child", "--gamma", 0.5],
            ["Compressing 36 modules", "Writing child"],
        ),
        (
            ["sweep", MINILM, "children", "--gamma", 0.5, 0.25],
            ["Decomposing 36 modules", "Writing 2 children"],
        ),
        (["convert", MINILM, "copy"], ["Reading", "Writing copy"]),
    ],
)
def test_a_terminal_shows_how_far_the_work_is(call, monkeypatch, arguments, shown):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")  # Rich then takes it for a terminal.

    code, _, err = call(*arguments)

    assert code == 0
    for what in shown:
        assert what in err


def test_an_engine_caps_the_rank_at_what_it_has_buffers_for(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((200, 130)), rng.standard_normal((130, 200))
    x = para.Adapter(a=a.astype("f4"), b=b.astype("f4"))
    para.save({"q": x}, tmp_path / "src")
    words = [str(tmp_path / "src"), str(tmp_path / "dst"), "--gamma", "1"]

    assert cli.main(["compress", *words, "--for", "lorax"]) == 0

    assert para.load(tmp_path / "dst").adapters["q"].rank == 128
