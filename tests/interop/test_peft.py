"""Test files from PEFT, read by its own rules, and files applied by PEFT.

PEFT's updates, truncated by NumPy in float64, are the oracle. Each case below is a
model and a configuration used to train it in practice.
"""

import copy
import dataclasses
import functools
import json
import math
import pathlib
import warnings
from collections.abc import Callable

import ml_dtypes  # noqa: F401  # NumPy reads bfloat16 by it.
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from peft.tuners.lora import Embedding
from torch import nn
from transformers.pytorch_utils import Conv1D

import para_jax as para
from tests.interop.on_peft import PREFIX, loaded, lora_layers

PROFILES = ["ragged", "padded"]
# Configuration fields in which a child differs from its parent.
OURS = {
    "r",
    "lora_alpha",
    "use_rslora",
    "rank_pattern",
    "alpha_pattern",
    "target_modules",
}

# --- Models ----------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.q = nn.Linear(6, 5)
        self.v = nn.Linear(6, 5, bias=False)
        self.out = nn.Linear(5, 6)

    def forward(self, x):
        return x + self.out(torch.tanh(self.q(x)) * self.v(x))


class Text(nn.Module):
    def __init__(self, layers=3):
        super().__init__()
        self.embed = nn.Embedding(11, 6)
        self.layers = nn.ModuleList([Block() for _ in range(layers)])
        self.norm = nn.LayerNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, ids):
        x = self.embed(ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Tower(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(layers)])

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return x


class Twins(nn.Module):
    """Name one tower by suffixes of the other's names."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([Block() for _ in range(2)])
        self.vision = Tower(2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.vision(x)


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.plane = nn.Conv2d(3, 4, (3, 2), stride=2, padding=(1, 0))
        self.line = nn.Conv1d(4, 5, 3)
        self.point = nn.Conv2d(5, 7, 1)

    def forward(self, x):
        x = torch.tanh(self.line(torch.tanh(self.plane(x)).flatten(2)))
        return self.point(x[..., None])


def gpt2():
    return transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=13,
            n_positions=8,
            n_embd=8,
            n_layer=3,
            n_head=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )


def llama():
    return transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=13,
            hidden_size=8,
            intermediate_size=10,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=16,
            tie_word_embeddings=False,
        )
    )


def tokens():
    return torch.tensor([[1, 4, 7, 10], [2, 3, 0, 9]])


def rows():
    return torch.randn(3, 6, generator=torch.Generator().manual_seed(5))


def pixels():
    return torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(5))


# --- Cases -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Case:
    model: Callable[[], nn.Module]
    config: dict
    inputs: Callable[[], torch.Tensor] = tokens
    embeddings: bool = False


# The first match wins, in file order; PEFT sorts the keys on saving.
PATTERNS = {
    "rank_pattern": {
        "^layers.2.q": 5,
        "layers.0.q": 2,
        "layers.1.v": 4,
        r"layers\.\d+\.v": 1,
        "v": 3,
    },
    "alpha_pattern": {r"^layers\.[12]\.v": 0.5, "layers.0.q": 9, "q": 5},
}
CASES = {
    "a list of names": Case(Text, {"target_modules": ["q", "v"], "lora_alpha": 6}),
    "full names": Case(
        Text, {"target_modules": ["layers.0.q", "layers.2.out"], "lora_alpha": 1}
    ),
    "a regular expression": Case(Text, {"target_modules": r".*\.\d\.(q|out)"}),
    "the architecture's default": Case(llama, {"target_modules": None}),
    "all linear layers": Case(llama, {"target_modules": "all-linear"}),
    "fan_in_fan_out": Case(gpt2, {"target_modules": None, "fan_in_fan_out": True}),
    "patterns": Case(Text, {"target_modules": ["q", "v"], "lora_alpha": 6, **PATTERNS}),
    "a pattern for a regular expression": Case(
        Text,
        {
            "target_modules": r".*\.(q|v)",
            "rank_pattern": {r".*\.[02]\.q": 2, "q": 4},
            "alpha_pattern": {r"layers\.0.*": 7},
        },
    ),
    "rslora": Case(
        Text, {"target_modules": ["q", "v"], "lora_alpha": 6, "use_rslora": True}
    ),
    "rslora with patterns": Case(
        Text, {"target_modules": ["q", "v"], "use_rslora": True, **PATTERNS}
    ),
    "lora_bias": Case(
        Text, {"target_modules": ["q", "out"], "lora_alpha": 6, "lora_bias": True}
    ),
    "bias all": Case(Text, {"target_modules": ["q", "v"], "bias": "all"}),
    "bias lora_only": Case(Text, {"target_modules": ["q", "v"], "bias": "lora_only"}),
    "an embedding": Case(Text, {"target_modules": ["embed", "q"], "lora_alpha": 6}),
    "an embedding saved whole": Case(
        llama, {"target_modules": ["embed_tokens", "q_proj"]}, embeddings=True
    ),
    "a small embedding saved whole": Case(
        # The embedding is the first module, so it keeps nothing: see `randomise`.
        llama,
        {"target_modules": ["embed_tokens", "v_proj"], "r": 2},
        embeddings=True,
    ),
    "convolutions": Case(
        Pixels, {"target_modules": ["plane", "line", "point"]}, pixels
    ),
    "modules_to_save": Case(
        Text, {"target_modules": ["q", "v"], "modules_to_save": ["head", "norm"]}
    ),
    "layers_to_transform": Case(
        # Without a pattern, PEFT looks for the index after two names.
        llama,
        {"target_modules": ["q_proj", "v_proj"], "layers_to_transform": 1},
    ),
    "layers_pattern": Case(
        llama,
        {
            "target_modules": ["q_proj", "up_proj"],
            "layers_to_transform": [1],
            "layers_pattern": "layers",
        },
    ),
    "exclude_modules": Case(
        Text, {"target_modules": ["q", "v"], "exclude_modules": ["layers.1.v"]}
    ),
    "exclude_modules as a regular expression": Case(
        Text, {"target_modules": ["q", "v"], "exclude_modules": r"layers\.[01]\.v"}
    ),
    "trainable tokens": Case(
        llama,
        {
            "target_modules": ["q_proj"],
            "trainable_token_indices": {"embed_tokens": [1, 4]},
        },
    ),
    # PEFT shortens lists of twenty names and more.
    "many modules": Case(lambda: Text(8), {"target_modules": ["q", "v", "out"]}),
    "names that end alike": Case(Twins, {"target_modules": ["q", "v"]}, rows),
    "gaussian": Case(
        Text, {"target_modules": ["q", "v"], "init_lora_weights": "gaussian"}
    ),
}
every_case = pytest.mark.parametrize("name", CASES)


def randomise(model):
    """Set all trained tensors; the first module's are too small to keep."""
    generator = torch.Generator().manual_seed(3)
    first = next(iter(lora_layers(model)))
    with torch.no_grad():
        for name, x in model.named_parameters():
            if not x.requires_grad:
                continue
            value = 0.5 * torch.randn(x.shape, generator=generator)
            if name.startswith(f"{PREFIX}{first}.lora_") and "bias" not in name:
                value *= 1e-3
            x.copy_(value)


def deltas(model):
    """Return PEFT's delta of each weight, in torch's shape, in float64."""
    return {
        name: module.get_delta_weight("default").detach().double().numpy()
        for name, module in lora_layers(model).items()
    }


def to_flax(layer, delta):
    """Return a delta of torch's shape in Flax's orientation, `[*window, m, n]`."""
    if isinstance(layer, Embedding) or isinstance(layer.get_base_layer(), Conv1D):
        return delta
    return np.moveaxis(delta, (0, 1), (-1, -2))


def truncated(model, kept):
    """Return the deltas of the `kept` largest components, and the ranks."""
    svds = {}
    for name, layer in lora_layers(model).items():
        flax = to_flax(layer, deltas(model)[name])
        m, r = math.prod(flax.shape[:-1]), layer.r["default"]
        u, s, vt = np.linalg.svd(flax.reshape(m, -1), full_matrices=False)
        svds[name] = u[:, :r], s[:r], vt[:r], flax.shape
    pool = np.sort(np.concatenate([s for _, s, _, _ in svds.values()]))[::-1]
    threshold = (pool[kept - 1] + pool[kept]) / 2
    result, ranks = {}, {}
    for name, (u, s, vt, shape) in svds.items():
        ranks[name] = k = int((s > threshold).sum())
        result[name] = ((u[:, :k] * s[:k]) @ vt[:k]).reshape(shape)
    return result, ranks


def with_deltas(model, flax):
    """Return PEFT's model with `flax` in its weights, and adapters without effect."""
    model = copy.deepcopy(model)
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            delta = to_torch(layer, flax[name])
            if isinstance(layer, Embedding):
                layer.lora_embedding_B["default"].zero_()
            else:
                layer.lora_B["default"].weight.zero_()
            layer.get_base_layer().weight += torch.from_numpy(delta)
    return model


def to_torch(layer, delta):
    if isinstance(layer, Embedding) or isinstance(layer.get_base_layer(), Conv1D):
        return delta.copy()
    return np.moveaxis(delta, (-1, -2), (0, 1)).copy()


def train(case, folder, base=None, dtype=torch.float32):
    """Return the base model and PEFT's model of it; its adapter is in `folder`."""
    torch.manual_seed(7)
    base = (base or case.model()).to(dtype).eval()
    config = peft.LoraConfig(**{"r": 3, "lora_dropout": 0.0, **case.config})
    full_precision = dtype == torch.float32
    model = peft.get_peft_model(
        copy.deepcopy(base), config, autocast_adapter_dtype=full_precision
    ).eval()
    randomise(model)
    with warnings.catch_warnings():
        # PEFT 0.21 takes the bias of `lora_bias` for a broken factor.
        warnings.filterwarnings("ignore", ".*LoRA tensor.*invalid shape.*bias")
        model.save_pretrained(folder, save_embedding_layers=case.embeddings)
    return base, model


@dataclasses.dataclass(frozen=True)
class Trained:
    """Hold a case, trained once for all tests; none of them changes it."""

    case: Case
    folder: pathlib.Path
    base: nn.Module
    model: nn.Module

    @functools.cached_property
    def children(self):
        """Return the children with all and with a quarter of the ranks."""
        policies = [para.Epsilon(1.0), para.Gamma(0.25)]
        return para.family(para.load(self.folder), policies)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    @functools.cache
    def get(name):
        folder = tmp_path_factory.mktemp("parent")
        return Trained(CASES[name], folder, *train(CASES[name], folder))

    return get


def apply(model, inputs):
    with torch.no_grad():
        result = model(inputs)
    return getattr(result, "logits", result).float().numpy()


def weights_of(folder):
    return safetensors.torch.load_file(folder / "adapter_model.safetensors")


def config_of(folder):
    return json.loads((folder / "adapter_config.json").read_text())


def budget(model):
    """Return the number of ranks gamma 0.25 keeps, from PEFT's own model."""
    return math.floor(0.25 * sum(x.r["default"] for x in lora_layers(model).values()))


# --- Reading ---------------------------------------------------------------------


@every_case
def test_every_update_is_the_one_that_peft_computes(name, trained):
    parent = trained(name)

    adapter = para.load(parent.folder)

    layers, want = lora_layers(parent.model), deltas(parent.model)
    assert {x.replace("/", ".") for x in adapter.adapters} == layers.keys()
    for path, got in adapter.adapters.items():
        module = path.replace("/", ".")
        flax = to_flax(layers[module], want[module])
        delta = got.scale * got.a.astype(np.float64) @ got.b
        np.testing.assert_allclose(delta, flax.reshape(delta.shape), atol=1e-5)
        assert got.rank == layers[module].r["default"]
        assert got.scale == pytest.approx(layers[module].scaling["default"], rel=1e-12)
        layer = adapter.layers.get(path, para.Layer())
        assert layer.window == (flax.shape[:-1] if flax.ndim > 2 else ())
        assert (layer.kind == "conv") == (flax.ndim > 2)
        assert (layer.kind == "embedding") == isinstance(layers[module], Embedding)
    assert adapter.residual == ""


@every_case
def test_what_is_no_factor_is_read_bit_for_bit(name, trained):
    folder = trained(name).folder

    adapter = para.load(folder)

    want = {k: x for k, x in weights_of(folder).items() if ".lora_" not in k}
    assert adapter.extra.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(adapter.extra[key], value.numpy(), strict=True)
    assert adapter.config == config_of(folder)


def test_the_bias_of_an_update_carries_its_scale(trained):
    parent = trained("lora_bias")

    adapter = para.load(parent.folder)

    layers = lora_layers(parent.model)
    assert len(adapter.biases) == len(layers)
    for path, got in adapter.biases.items():
        layer = layers[path.replace("/", ".")]
        want = layer.lora_B["default"].bias * layer.scaling["default"]
        np.testing.assert_allclose(got, want.detach().numpy(), rtol=1e-6)


@pytest.mark.parametrize("name", ["patterns", "bias all", "an embedding", "lora_bias"])
def test_keys_without_the_prefix_mean_the_same(name, trained, tmp_path):
    parent, bare = trained(name), tmp_path / "bare"
    bare.mkdir()
    weights = {k.removeprefix(PREFIX): x for k, x in weights_of(parent.folder).items()}
    safetensors.torch.save_file(weights, bare / "adapter_model.safetensors")
    (bare / "adapter_config.json").write_text(json.dumps(config_of(parent.folder)))

    para.save(para.load(bare), tmp_path / "saved")

    got = loaded(parent.base, tmp_path / "saved")
    want = apply(parent.model, tokens())
    np.testing.assert_allclose(apply(got, tokens()), want, atol=1e-5)


def test_attention_that_hides_an_adapter_in_another_is_refused(tmp_path):
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(6, 2)

    train(Case(Attention, {"target_modules": ["attention"]}), tmp_path)

    with pytest.raises(
        ValueError, match=r"'attention\.base_layer\.out_proj'.*not supp"
    ):
        para.load(tmp_path)


def test_a_grouped_convolution_is_refused(tmp_path):
    class Grouped(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 6, 3, groups=2)

    with pytest.warns(UserWarning, match="groups > 1"):
        train(Case(Grouped, {"target_modules": ["conv"], "r": 4}), tmp_path)

    with pytest.raises(ValueError, match="'conv' is a grouped convolution"):
        para.load(tmp_path)


# --- Children ----------------------------------------------------------------------


@every_case
@pytest.mark.parametrize("profile", PROFILES)
def test_a_child_that_keeps_all_is_its_parent_to_peft(name, profile, trained, tmp_path):
    parent = trained(name)

    para.save(parent.children[0], tmp_path / "child", profile=profile)

    model = loaded(parent.base, tmp_path / "child")
    got, want = (apply(x, parent.case.inputs()) for x in (model, parent.model))
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert lora_layers(model).keys() == lora_layers(parent.model).keys()
    check_scales(model)


@every_case
@pytest.mark.parametrize("profile", PROFILES)
def test_a_child_is_the_truncation_of_what_peft_computes(
    name, profile, trained, tmp_path
):
    parent = trained(name)
    child, inputs = parent.children[1], parent.case.inputs()

    para.save(child, tmp_path / "child", profile=profile)

    kept, ranks = truncated(parent.model, budget(parent.model))
    assert {x.path.replace("/", "."): x.kept for x in child.report.modules} == ranks
    assert 0 in ranks.values()
    want = with_deltas(parent.model, kept)
    model = loaded(parent.base, tmp_path / "child")
    np.testing.assert_allclose(apply(model, inputs), apply(want, inputs), atol=1e-5)
    check_scales(model)
    check_modules(model, ranks, profile, parent.case.config.get("lora_bias", False))
    check_passed_on(parent.folder, tmp_path / "child", ranks, profile)
    check_merged(model, want)


def check_scales(model):
    assert {x.scaling["default"] for x in lora_layers(model).values()} == {1.0}


def check_modules(model, ranks, profile, lora_bias):
    layers = lora_layers(model)
    if profile == "ragged" and not lora_bias:
        got = {name: layer.r["default"] for name, layer in layers.items()}
        assert got == {name: k for name, k in ranks.items() if k}
        return
    assert layers.keys() == ranks.keys()
    for name, delta in deltas(model).items():
        assert delta.any() == bool(ranks[name])
    if profile == "padded":
        assert {x.r["default"] for x in layers.values()} == {max(ranks.values())}


def check_merged(model, want):
    got, want = (x.merge_and_unload().state_dict() for x in (model, want))
    assert got.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_allclose(got[key], value, atol=1e-5, err_msg=key)


def check_passed_on(parent, child, ranks, profile):
    """Check that the other tensors and fields are unchanged, bit for bit."""
    want = {}
    for key, value in weights_of(parent).items():
        module, inside, leaf = key.removeprefix(PREFIX).rpartition(".base_layer.")
        if inside and profile == "ragged" and not ranks[module]:
            key = f"{PREFIX}{module}.{leaf}"
        if ".lora_" not in key:
            want[key] = value
    got = {k: x for k, x in weights_of(child).items() if ".lora_" not in k}
    assert got.keys() == want.keys()
    for key, value in want.items():
        assert got[key].dtype == value.dtype
        assert torch.equal(got[key], value)
    before, after = config_of(parent), config_of(child)
    assert before.keys() == after.keys()
    alike = profile == "ragged" or isinstance(before["target_modules"], str)
    if alike and before["exclude_modules"] is None:
        after.pop("exclude_modules")  # A name that ends alike may need it.
    if before["target_modules"] != after["target_modules"]:
        for key in ("layers_to_transform", "layers_pattern"):
            assert after.pop(key) is None  # They are about short names.
    for key in after.keys() - OURS:
        assert after[key] == before[key], key


@pytest.mark.parametrize(
    ("dtype", "epsilon"),
    [(torch.bfloat16, 2**-8), (torch.float16, 2**-11)],
    ids=["bfloat16", "float16"],
)
@pytest.mark.parametrize("profile", PROFILES)
def test_half_precision_stays_half_and_costs_one_rounding(
    dtype, epsilon, profile, tmp_path
):
    base, parent = train(CASES["a list of names"], tmp_path / "parent", dtype=dtype)

    child = para.compress(para.load(tmp_path / "parent"), para.Gamma(0.5))
    para.save(child, tmp_path / "child", profile=profile)

    assert {x.dtype for x in weights_of(tmp_path / "child").values()} == {dtype}
    # In float32, where PEFT computes from the stored factors without rounding them.
    base = base.float()
    exact = loaded(base, tmp_path / "parent")
    kept, _ = truncated(exact, 3 * len(lora_layers(parent)) // 2)
    model = loaded(base, tmp_path / "child")
    got = deltas(model)
    for name, layer in lora_layers(exact).items():
        want = to_torch(layer, kept[name])
        # The children's factors are rounded: each entry by one part in 1 / epsilon,
        # which moves the product, of rank 3 at most, by less than this.
        bound = 2.1 * epsilon * math.sqrt(3) * np.linalg.norm(want, 2)
        error = np.linalg.norm(got.get(name, np.zeros_like(want)) - want, 2)
        assert error <= bound, name
    merged = model.merge_and_unload()
    np.testing.assert_allclose(
        apply(merged, tokens()), apply(with_deltas(exact, kept), tokens()), atol=0.1
    )


def test_a_half_precision_model_takes_its_child(tmp_path):
    base, _ = train(CASES["a list of names"], tmp_path / "parent", dtype=torch.bfloat16)
    child = para.compress(para.load(tmp_path / "parent"), para.Gamma(0.5))
    para.save(child, tmp_path / "child")

    model = peft.PeftModel.from_pretrained(
        copy.deepcopy(base), tmp_path / "child", autocast_adapter_dtype=False
    )

    stored = weights_of(tmp_path / "child")
    for name, layer in lora_layers(model).items():
        got = layer.lora_B["default"].weight
        assert torch.equal(got, stored[f"{PREFIX}{name}.lora_B.weight"])


# --- Other consumers' rules, applied to the files --------------------------------


def factors_of(folder):
    """Yield each linear layer's name and stored factors."""
    weights = weights_of(folder)
    for key in weights:
        if key.endswith(".lora_A.weight"):
            name = key.removesuffix(".lora_A.weight")
            pair = (weights[f"{name}.lora_{x}.weight"].double().numpy() for x in "AB")
            yield name.removeprefix(PREFIX), *pair


RULES = {
    "vLLM, which scales all alike": (
        lambda config, r: config["lora_alpha"] / config["r"]
    ),
    "llama.cpp, which divides by the tensor's rank": (
        lambda config, r: config["lora_alpha"] / r
    ),
}


@pytest.mark.parametrize(
    ("profile", "rule"),
    [("padded", x) for x in RULES] + [("ragged", "vLLM, which scales all alike")],
)
@pytest.mark.parametrize("name", ["patterns", "rslora with patterns", "many modules"])
def test_engines_that_read_no_patterns_agree(name, profile, rule, trained, tmp_path):
    parent = trained(name)
    para.save(parent.children[1], tmp_path / "child", profile=profile)

    config = config_of(tmp_path / "child")
    got = {
        module: RULES[rule](config, a.shape[0]) * b @ a
        for module, a, b in factors_of(tmp_path / "child")
    }

    want, _ = truncated(parent.model, budget(parent.model))
    if profile == "padded":
        assert got.keys() == want.keys()
    for module, delta in want.items():
        np.testing.assert_allclose(got.get(module, 0 * delta.T), delta.T, atol=1e-5)


def test_a_padded_child_has_one_rank_and_lists_its_modules(trained, tmp_path):
    child = trained("a regular expression").children[1]

    para.save(child, tmp_path / "child", profile="padded")

    config = config_of(tmp_path / "child")
    assert config["rank_pattern"] == config["alpha_pattern"] == {}
    assert config["lora_alpha"] == config["r"]
    assert not config["use_rslora"]
    names = {name for name, _, _ in factors_of(tmp_path / "child")}
    assert set(config["target_modules"]) == names  # SGLang takes no expression.
    for _, a, b in factors_of(tmp_path / "child"):
        assert a.shape[0] == b.shape[1] == config["r"]  # Its buffers' one shape.


# --- Names ------------------------------------------------------------------------


def graded(model, sizes):
    """Give each module's update the requested size, by name."""
    with torch.no_grad():
        for name, layer in lora_layers(model).items():
            for i, x in enumerate(sizes[name]):
                layer.lora_A["default"].weight[i] *= x


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(("long", "short"), [(3, 1), (1, 3), (0, 2), (2, 0), (3, 3)])
def test_a_name_that_ends_with_another_keeps_its_own_rank(
    long, short, profile, tmp_path
):
    case = Case(Twins, {"target_modules": r"(vision\.)?layers\.1\.q"}, rows)
    base, model = train(case, tmp_path / "unused")
    kept = {"vision.layers.1.q": long, "layers.1.q": short}
    randomise_alike(model)
    graded(model, {n: [1.0] * k + [1e-3] * (3 - k) for n, k in kept.items()})
    model.save_pretrained(tmp_path / "parent")

    child = para.compress(para.load(tmp_path / "parent"), para.Rank((long + short) / 2))
    para.save(child, tmp_path / "child", profile=profile)

    got = loaded(base, tmp_path / "child")
    want, ranks = truncated(model, long + short) if long + short < 6 else (None, kept)
    assert ranks == kept
    reference = model if want is None else with_deltas(model, want)
    np.testing.assert_allclose(apply(got, rows()), apply(reference, rows()), atol=1e-5)
    check_modules(got, ranks, profile, lora_bias=False)


def randomise_alike(model):
    """Give all modules orthogonal factors: all components have the same size."""
    with torch.no_grad():
        for layer in lora_layers(model).values():
            for x in (layer.lora_A["default"].weight, layer.lora_B["default"].weight):
                nn.init.orthogonal_(x)


def test_a_like_name_that_was_never_adapted_stays_so(tmp_path):
    # The parent's expression matches whole names; a list would match their ends.
    case = Case(Twins, {"target_modules": r"layers\.\d\.q"}, rows)
    base, parent = train(case, tmp_path / "parent")
    assert lora_layers(parent).keys() == {"layers.0.q", "layers.1.q"}

    child = para.compress(para.load(tmp_path / "parent"), para.Epsilon(1.0))
    para.save(child, tmp_path / "child")

    model = loaded(base, tmp_path / "child")
    assert lora_layers(model).keys() == lora_layers(parent).keys()


@pytest.mark.parametrize(
    "excluded", [["vision.layers.1.q"], r"vision\.layers\.1\.q"], ids=["list", "regex"]
)
def test_what_the_parent_excluded_stays_excluded_beside_a_dropped_module(
    excluded, tmp_path
):
    class Triplets(Twins):
        def __init__(self):
            super().__init__()
            self.audio = Tower(2)

        def forward(self, x):
            return self.audio(super().forward(x))

    case = Case(
        Triplets, {"target_modules": ["1.q"], "exclude_modules": excluded}, rows
    )
    base, model = train(case, tmp_path / "unused")
    randomise_alike(model)
    graded(model, {"layers.1.q": [1.0] * 3, "audio.layers.1.q": [1e-3] * 3})
    model.save_pretrained(tmp_path / "parent")

    child = para.compress(para.load(tmp_path / "parent"), para.Gamma(0.5))
    para.save(child, tmp_path / "child")

    assert lora_layers(loaded(base, tmp_path / "child")).keys() == {"layers.1.q"}


class Named(nn.Module):
    """Chain layers of any names."""

    def __init__(self, *names):
        super().__init__()
        self.inner = nn.ModuleDict({name: nn.Linear(6, 6) for name in names})

    def forward(self, x):
        for layer in self.inner.values():
            x = torch.tanh(layer(x))
        return x


@pytest.mark.parametrize(
    "names",
    [["q+", "q"], ["q(1", "q"], ["qü", "q 2"], ["lora_A", "q"], ["weight", "q"]],
    ids=" ".join,
)
@pytest.mark.parametrize("profile", PROFILES)
def test_modules_of_odd_names_keep_their_ranks(names, profile, tmp_path):
    targets = [f"inner.{name}" for name in names]
    case = Case(lambda: Named(*names), {"target_modules": targets}, rows)
    base, parent = train(case, tmp_path / "parent")
    kept, ranks = truncated(parent, 2)

    child = para.compress(para.load(tmp_path / "parent"), para.Rank(1))
    para.save(child, tmp_path / "child", profile=profile)

    model = loaded(base, tmp_path / "child")
    check_modules(model, ranks, profile, lora_bias=False)
    want = with_deltas(parent, kept)
    np.testing.assert_allclose(apply(model, rows()), apply(want, rows()), atol=1e-5)


def test_a_name_with_a_slash_is_kept_or_refused(tmp_path):
    case = Case(lambda: Named("a/b", "q"), {"target_modules": ["a/b", "q"]}, rows)
    base, parent = train(case, tmp_path / "parent")

    try:
        para.save(para.load(tmp_path / "parent"), tmp_path / "child")
    except ValueError as error:
        assert "a/b" in str(error)  # noqa: PT017
        return

    model = loaded(base, tmp_path / "child")
    np.testing.assert_allclose(apply(model, rows()), apply(parent, rows()), atol=1e-5)


# --- A way back, from one profile to the other ------------------------------------


@pytest.mark.parametrize(
    "name", ["bias all", "lora_bias", "an embedding saved whole", "convolutions"]
)
@pytest.mark.parametrize(
    "ways",
    [
        [("peft", "ragged"), ("peft", "padded")],
        [("orbax", "ragged"), ("peft", "padded")],
        [("peft", "padded"), ("peft", "ragged")],
        [("peft", "ragged"), ("orbax", "ragged"), ("peft", "padded")],
    ],
    ids=lambda ways: " to ".join("-".join(x) for x in ways),
)
def test_a_child_can_be_saved_again_in_another_form(name, ways, trained, tmp_path):
    parent = trained(name)
    child, inputs = parent.children[1], parent.case.inputs()

    for i, (form, profile) in enumerate(ways):
        para.save(child, tmp_path / f"{i}", format=form, profile=profile)
        child = para.load(tmp_path / f"{i}")

    kept, _ = truncated(parent.model, budget(parent.model))
    model = loaded(parent.base, tmp_path / f"{len(ways) - 1}")
    want = apply(with_deltas(parent.model, kept), inputs)
    np.testing.assert_allclose(apply(model, inputs), want, atol=1e-5)


# --- Golden facts of the method ----------------------------------------------------


def of_spectrum(s, m=8, n=7):
    """Return factors of torch's shapes for a product with these singular values."""
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(d, len(s))))[0] for d in (n, m))
    return torch.from_numpy(v.T).float(), torch.from_numpy(u * np.asarray(s)).float()


@pytest.mark.parametrize(
    ("epsilon", "rank"),
    [(0.5, 1), (0.9, 2), (0.92, 2), (0.95, 3), (0.98, 3), (0.99, 4), (0.995, 4)],
)
def test_on_one_layer_epsilon_is_the_energy_rule_of_peft(epsilon, rank, tmp_path):
    model = peft.get_peft_model(
        nn.ModuleDict({"q": nn.Linear(8, 7)}),
        peft.LoraConfig(r=6, lora_alpha=6, target_modules=["q"]),
    )
    layer = lora_layers(model)["q"]
    a, b = of_spectrum([6, 5, 2, 1, 0.5, 0])
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    model.save_pretrained(tmp_path)

    with pytest.warns(UserWarning, match="already a LoRA adapter"):
        config, weights = peft.convert_to_lora(model, rank=epsilon)
    child = para.compress(para.load(tmp_path), para.Epsilon(epsilon))

    assert config.rank_pattern.get("q", config.r) == rank
    assert child.adapters["q"].rank == rank
    want = weights[f"{PREFIX}q.lora_B.weight"] @ weights[f"{PREFIX}q.lora_A.weight"]
    got = child.adapters["q"].a @ child.adapters["q"].b
    np.testing.assert_allclose(got, want.T.numpy(), atol=1e-5)


def test_peft_loads_unequal_ranks_and_leaves_a_dropped_layer_alone(tmp_path):
    spectra = {"layers.0.q": [3, 2.5, 2], "layers.1.q": [0.3, 0.2, 0.1]}
    spectra["layers.2.q"] = [2.2, 0.4, 0.05]
    base, model = train(
        Case(Text, {"target_modules": ["q"], "lora_alpha": 12}), tmp_path
    )
    for name, layer in lora_layers(model).items():
        a, b = of_spectrum(spectra[name], 6, 5)
        layer.lora_A["default"].weight.data = a
        layer.lora_B["default"].weight.data = b / 4
    model.save_pretrained(tmp_path / "parent")

    child = para.compress(para.load(tmp_path / "parent"), para.Threshold(1.0))
    para.save(child, tmp_path / "child")

    config = config_of(tmp_path / "child")
    assert config["rank_pattern"] == config["alpha_pattern"] == {"layers.2.q": 1}
    assert config["r"] == config["lora_alpha"] == 3
    assert config["target_modules"] == ["layers.0.q", "layers.2.q"]
    got = loaded(base, tmp_path / "child")
    want = {"layers.0.q": spectra["layers.0.q"], "layers.2.q": [2.2]}
    for name, layer in lora_layers(got).items():
        assert layer.scaling["default"] == 1.0
        s = np.linalg.svd(deltas(got)[name], compute_uv=False)
        np.testing.assert_allclose(s[: len(want[name])], want[name], rtol=4e-6)
        np.testing.assert_allclose(s[len(want[name]) :], 0, atol=4e-6)
    assert lora_layers(got).keys() == want.keys()
    kept, _ = truncated(model, 4)
    np.testing.assert_allclose(
        apply(got, tokens()), apply(with_deltas(model, kept), tokens()), atol=4e-6
    )


# --- Initialisations that change the base weights ----------------------------------


def train_from(init, folder):
    """Return the base and the trained model; the adapters are in `folder`."""
    torch.manual_seed(7)
    base = Text().eval()
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["q", "v"], init_lora_weights=init
    )
    model = peft.get_peft_model(copy.deepcopy(base), config).eval()
    config = model.peft_config["default"]
    config.init_lora_weights = True  # As PEFT's guide has it for the initial ones.
    model.save_pretrained(folder / "initial")
    config.init_lora_weights = init
    with torch.no_grad():
        for name, x in model.named_parameters():
            if "lora_" in name:
                x += 0.1 * torch.randn_like(x)
    model.save_pretrained(folder / "trained")
    return base, model


@pytest.mark.parametrize(("init", "called"), [("pissa", "PiSSA"), ("olora", "OLoRA")])
def test_an_adapter_of_changed_weights_is_not_cut(init, called, tmp_path):
    train_from(init, tmp_path)

    parent = para.load(tmp_path / "trained")

    assert parent.residual == called
    with pytest.raises(ValueError, match=called):
        para.compress(parent, para.Gamma(0.5))


@pytest.mark.parametrize("init", ["pissa", "pissa_niter_4", "olora"])
@pytest.mark.parametrize("profile", PROFILES)
def test_made_plain_it_fits_the_original_weights(init, profile, tmp_path):
    base, trained = train_from(init, tmp_path)
    adapters = [para.load(tmp_path / x) for x in ("trained", "initial")]

    plain = para.plain(adapters[0], adapters[1].adapters)
    child = para.compress(plain, para.Epsilon(1.0))
    para.save(child, tmp_path / "child", profile=profile)

    got = loaded(base, tmp_path / "child")
    np.testing.assert_allclose(
        apply(got, tokens()), apply(trained, tokens()), atol=1e-5
    )
    assert para.load(tmp_path / "child").residual == ""


def test_what_peft_makes_plain_by_itself_is_read_as_it_is(tmp_path):
    base, trained = train_from("pissa", tmp_path)
    want = apply(trained, tokens())
    with pytest.warns(UserWarning, match="PiSSA changes the base weights"):
        trained.save_pretrained(
            tmp_path / "plain",
            path_initial_model_for_weight_conversion=str(tmp_path / "initial"),
        )

    parent = para.load(tmp_path / "plain")
    child = para.compress(parent, para.Epsilon(1.0))
    para.save(child, tmp_path / "child")

    assert parent.residual == ""
    assert {x.rank for x in parent.adapters.values()} == {6}
    got = loaded(base, tmp_path / "child")
    np.testing.assert_allclose(apply(got, tokens()), want, atol=1e-5)


@pytest.mark.parametrize("profile", PROFILES)
def test_a_child_of_odd_ranks_of_an_orthogonal_start_loads(profile, tmp_path):
    # PEFT would start it anew before it reads the file, and takes even ranks only.
    config = {"target_modules": ["q"], "r": 4, "init_lora_weights": "orthogonal"}
    base, parent = train(Case(Text, config), tmp_path / "unused")
    ranks = {"layers.0.q": 3, "layers.1.q": 1, "layers.2.q": 1}
    randomise_alike(parent)
    graded(parent, {name: [1.0] * k + [1e-3] * (4 - k) for name, k in ranks.items()})
    parent.save_pretrained(tmp_path / "parent")
    kept, _ = truncated(parent, 5)

    child = para.compress(para.load(tmp_path / "parent"), para.Rank(5 / 3))
    para.save(child, tmp_path / "child", profile=profile)

    got = loaded(base, tmp_path / "child")
    check_modules(got, ranks, profile, lora_bias=False)
    want = apply(with_deltas(parent, kept), tokens())
    np.testing.assert_allclose(apply(got, tokens()), want, atol=1e-5)
