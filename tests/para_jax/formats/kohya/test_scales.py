"""Test scales outside a single file's tensors: in its header, beside it, or given.

The oracles are formulas: LoRA's `alpha / r`, rsLoRA's `alpha / sqrt(r)`, and mistral's
`scaling` (mistral-inference `src/mistral_inference/lora.py`).
"""

import json
import math

import numpy as np
import pytest

import para_jax as para
from para_jax import cli
from tests.para_jax.formats.kohya import single
from tests.para_jax.formats.kohya.single import NAMES, pair, random, read, write

pytestmark = pytest.mark.user_defaults

UNET = {"r": 4, "lora_alpha": 6, "rank_pattern": {}, "alpha_pattern": {}}
PATTERNS = UNET | {"r": 8, "rank_pattern": {"a.q": 4}, "alpha_pattern": {"a.q": 10}}


def packed(**components):
    """Return the JSON of diffusers' `_pack_dict_with_prefix`."""
    flat = {
        f"{c}.{k}": x for c, config in components.items() for k, x in config.items()
    }
    return json.dumps(flat, indent=2, sort_keys=True)


# Headers, and the scale of 'unet.a.q', whose rank is 4.
HEADERS = {
    "alpha": ({"alpha": "6"}, 1.5),
    "lora_alpha": ({"lora_alpha": "6.0", "rank": "4"}, 1.5),
    "network_alpha": ({"network_alpha": "2", "network_dim": "4"}, 0.5),
    "sd-scripts": ({"ss_network_alpha": "1.0", "ss_network_dim": "4"}, 0.25),
    "sd-scripts' None": ({"ss_network_alpha": "None", "ss_network_dim": "4"}, 1),
    "rank alone": ({"rank": "4", "ss_network_dim": "4"}, 1),
    "twice the same": ({"alpha": "6", "ss_network_alpha": "6.0"}, 1.5),
    "rsLoRA": ({"lora_alpha": "6", "use_rslora": "True"}, 3),
    "LyCORIS' rsLoRA": (
        {"ss_network_alpha": "6", "ss_network_args": '{"rs_lora": "True"}'},
        3,
    ),
    "components": ({"unet.lora_alpha": "6", "unet.r": "4"}, 1.5),
    "diffusers": ({"lora_adapter_metadata": packed(unet=UNET)}, 1.5),
    "diffusers, of several": (
        {"lora_adapter_metadata": packed(unet=UNET, text_encoder=UNET | {"r": 2})},
        1.5,
    ),
    "diffusers, by patterns": ({"lora_adapter_metadata": packed(unet=PATTERNS)}, 2.5),
    "diffusers, rsLoRA": (
        {"lora_adapter_metadata": packed(unet=UNET | {"use_rslora": True})},
        3,
    ),
    "diffusers, of one model": (
        {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 6})},
        1.5,
    ),
    "nested": ({"lora_adapter_metadata": json.dumps({"unet": UNET})}, 1.5),
    "a config": ({"peft_config": json.dumps({"r": 4, "lora_alpha": 6})}, 1.5),
    "notes": ({"note": "lora_alpha 6", "training_info": '{"step": 3}'}, 1),
    "nothing": ({}, 1),
}


def one(tmp_path, metadata, names="peft"):
    tensors = pair("unet.a.q", 8, 6, 4, names=names)
    return write(tmp_path / "x.safetensors", tensors, **metadata)


@pytest.mark.parametrize("word", ["convert", "compress", "peft"])
@pytest.mark.parametrize("names", ["peft", "diffusers", "kohya"])
@pytest.mark.parametrize("name", HEADERS)
def test_a_header_tells_the_scale_and_a_child_needs_none(name, names, word, tmp_path):
    metadata, scale = HEADERS[name]
    source = one(tmp_path, metadata, names)
    found = para.load(source)
    target = tmp_path / "y.safetensors"
    keep = 4 if word == "convert" else 2

    child = found if keep == 4 else para.compress(found, para.Gamma(0.5))
    if word == "peft":
        para.save(child, tmp_path / "z")
        child = para.load(tmp_path / "z")
    para.save(child, target, format="kohya")

    assert found.adapters["unet/a/q"].scale == scale
    want = single.cut({"unet.a.q": scale * single.comfy(source)["unet.a.q"]}, keep)
    single.same(single.comfy(target), want)
    tensors, header = read(target)
    assert not [name for name in tensors if name.endswith("alpha")]
    assert not {"lora_adapter_metadata", "unet.lora_alpha", "unet.r"} & header.keys()
    stated = [x for key, x in header.items() if "alpha" in key and key != "para_jax"]
    assert all(float(x) == keep for x in stated)  # Over the rank: 1.


UNCLEAR = {
    "another rank": ({"lora_alpha": "6", "rank": "8"}, "for the rank 8"),
    "two alphas": ({"alpha": "6", "network_alpha": "2"}, "disagrees with itself"),
    "two ranks": (
        {"alpha": "6", "rank": "4", "ss_network_dim": "2"},
        "disagrees with itself",
    ),
    "Dynamic": (
        {"ss_network_alpha": "Dynamic"},
        "'Dynamic' in the header.*not a number",
    ),
    "another component": (
        {"lora_adapter_metadata": packed(text_encoder=UNET)},
        "does not cover it",
    ),
    "another rank of diffusers": (
        {"lora_adapter_metadata": packed(unet=UNET | {"r": 2})},
        "it says 2 for its rank",
    ),
    "two places": (
        {"alpha": "2", "lora_adapter_metadata": packed(unet=UNET)},
        r"several scales: 0\.5 by 'alpha' in the header, 1\.5 by 'unet",
    ),
    "a scale": ({"lora_scale": "2"}, "'lora_scale' is 2 in the header"),
    "no update": ({"alpha": "0"}, "has the scale 0 by"),
}
# An alpha without its rank, in every place.
UNCLEAR |= {
    f"no rank, {name}": (metadata, "no rank with it")
    for name, metadata in {
        "flat": {"unet.lora_alpha": "6"},
        "flat, two words": {"unet.alpha": "6", "unet.rank": "4"},
        "diffusers": {"lora_adapter_metadata": '{"unet.lora_alpha": 6}'},
        "JSON": {"adapter_config": '{"lora_alpha": 6}'},
        "nested": {"lora_adapter_metadata": '{"unet": {"lora_alpha": 6}}'},
        "patterns": {"x": '{"r": 4, "alpha_pattern": {"q": 6}}'},
    }.items()
}


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_is_not_clear_is_refused_until_it_is_said(name, tmp_path):
    metadata, match = UNCLEAR[name]
    source = one(tmp_path, metadata)

    with pytest.raises(
        ValueError, match=rf"x.safetensors'.*'unet\.a\.q'.*{match}.*Say"
    ):
        para.load(source)

    assert para.load(source, alpha=6).adapters["unet/a/q"].scale == 1.5
    assert para.load(source, scale=0.5).adapters["unet/a/q"].scale == 0.5


def test_one_alpha_without_a_rank_does_not_fit_two(tmp_path):
    tensors = pair("q", 8, 6, 4) | pair("k", 8, 6, 3)

    with pytest.raises(ValueError, match="for which of 2 ranks"):
        para.load(write(tmp_path / "x.safetensors", tensors, alpha="6"))


def test_a_tensors_own_alpha_comes_first(tmp_path):
    tensors = pair("unet.q", 8, 6, 4, alpha=2) | pair("unet.k", 8, 6, 4)
    mark = {"lora_adapter_metadata": packed(unet=UNET)}

    found = para.load(write(tmp_path / "x.safetensors", tensors, **mark)).adapters

    assert (found["unet/q"].scale, found["unet/k"].scale) == (0.5, 1.5)


def test_convolutions_may_have_an_alpha_of_their_own(tmp_path):
    """`conv_dim` is for kernels larger than 1 x 1 (sd-scripts `networks/lora.py`)."""
    tensors = pair("q", 8, 6, 4) | {
        "c.lora_down.weight": random(2, 5, 3, 3),
        "c.lora_up.weight": random(7, 2, 1, 1),
        "p.lora_down.weight": random(4, 5, 1, 1),
        "p.lora_up.weight": random(7, 4, 1, 1),
    }
    mark = {
        "ss_network_alpha": "2",
        "ss_network_dim": "4",
        "ss_network_args": json.dumps(
            {"conv_dim": "2", "conv_alpha": "3", "dropout": 0}
        ),
    }
    found = para.load(write(tmp_path / "x.safetensors", tensors, **mark))

    assert {p: x.scale for p, x in found.adapters.items()} == {
        "q": 0.5,
        "p": 0.5,
        "c": 1.5,
    }
    para.save(found, tmp_path / "y.safetensors", format="kohya")
    _, header = read(tmp_path / "y.safetensors")
    assert json.loads(header["ss_network_args"]) == {"dropout": 0}


CONV = {"conv_dim": "2", "conv_alpha": "3"}


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        (CONV, 1.5),
        ({"network_args": json.dumps(CONV)}, 1.5),
        ({"ss_network_args": '{"conv_dim": "2"}'}, 0.5),  # sd-scripts takes 1.
    ],
)
def test_where_the_alpha_of_convolutions_stands(said, scale, tmp_path):
    tensors = {
        "c.lora_down.weight": random(2, 5, 3, 3),
        "c.lora_up.weight": random(7, 2, 1, 1),
    }
    mark = {"network_alpha": "2", "network_dim": "4"} | said

    found = para.load(write(tmp_path / "x.safetensors", tensors, **mark))

    assert found.adapters["c"].scale == scale


def test_kohyas_names_belong_to_components(tmp_path):
    tensors = pair("lora_unet_q", 8, 6, 4) | pair("lora_te1_q", 8, 6, 4)
    tensors |= pair("lora_te2_q", 8, 6, 4)
    two = {"text_encoder": UNET | {"lora_alpha": 2}, "text_encoder_2": UNET}
    mark = {"lora_adapter_metadata": packed(unet=UNET | {"lora_alpha": 8}, **two)}

    found = para.load(write(tmp_path / "x.safetensors", tensors, **mark)).adapters

    scales = {path: x.scale for path, x in found.items()}
    assert scales == {"lora_unet_q": 2, "lora_te1_q": 0.5, "lora_te2_q": 1.5}


@pytest.mark.parametrize("prefix", ["", "base_model.model."])
def test_a_config_of_peft_beside_the_file(prefix, tmp_path):
    source = write(
        tmp_path / "lora.safetensors", pair(f"{prefix}a.q", 8, 6, 4, names="peft")
    )
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_rslora": True}
    config |= {"rank_pattern": {"q": 4}, "target_modules": ["q"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))

    found = para.load(source)

    assert found.adapters["a/q"].scale == 16 / math.sqrt(4)
    with pytest.raises(ValueError, match=r"adapter_config.json' beside it.*another"):
        para.save(found, tmp_path / "y.safetensors", format="kohya")
    assert not (tmp_path / "y.safetensors").exists()
    para.save(found, tmp_path / "new" / "y.safetensors", format="kohya")
    again, _ = read(tmp_path / "new" / "y.safetensors")
    assert again.keys() == read(source)[0].keys()
    assert para.load(tmp_path / "new" / "y.safetensors").adapters["a/q"].scale == 1


def test_a_config_belongs_to_the_weights_of_peft_where_they_are(tmp_path):
    source = one(tmp_path, {})
    para.save({"q": para.Adapter(random(8, 3), random(3, 6))}, tmp_path / "peft")
    for path in (tmp_path / "peft").iterdir():
        path.rename(tmp_path / path.name)

    assert para.load(source).adapters["unet/a/q"].scale == 1


@pytest.mark.parametrize("lora", [{"rank": 4, "scaling": 2.0}, None])
def test_mistrals_parameters_beside_the_file(lora, tmp_path):
    name = "layers.0.attention.wq"
    source = write(tmp_path / "lora.safetensors", pair(name, 8, 6, 4, names="peft"))
    (tmp_path / "params.json").write_text(json.dumps({"dim": 8} | {"lora": lora}))

    found = para.load(source)

    assert found.adapters[name.replace(".", "/")].scale == (2 if lora else 1)


BROKEN = {
    "mistral's scaling": ("params.json", {"lora": {"rank": 4}}, "scaling is None"),
    "mistral's rank": ("params.json", {"lora": {"rank": 8, "scaling": 2}}, "says 8"),
    "PEFT's rank": ("adapter_config.json", {"r": 8, "lora_alpha": 16}, "says 8"),
    "DoRA": (
        "adapter_config.json",
        {"r": 4, "lora_alpha": 16, "use_dora": True},
        "DoRA adapter",
    ),
    "no JSON": ("params.json", "{", "not valid JSON"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_lies_beside_and_does_not_fit_is_refused(name, tmp_path):
    file, content, match = BROKEN[name]
    source = one(tmp_path, {})
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / file).write_text(text)

    with pytest.raises(ValueError, match=rf"{file}'.*{match}"):
        para.load(source)


def test_what_lies_beside_is_nothing_to_a_file_with_alphas(tmp_path):
    source = write(tmp_path / "x.safetensors", pair("q", 8, 6, 4, alpha=6))
    (tmp_path / "adapter_config.json").write_text('{"peft_type": "LOHA"}')

    assert para.load(source).adapters["q"].scale == 1.5


def test_a_dora_in_the_header_is_refused(tmp_path):
    mark = {"lora_adapter_metadata": packed(unet=UNET | {"use_dora": True})}

    with pytest.raises(ValueError, match=r"lora_adapter_metadata'.*DoRA"):
        para.load(one(tmp_path, mark))


def test_what_belongs_to_changed_weights_is_not_cut(tmp_path):
    mark = {"lora_adapter_metadata": packed(unet=UNET | {"init_lora_weights": "pissa"})}
    found = para.load(one(tmp_path, mark))

    with pytest.raises(ValueError, match="initialised by PiSSA"):
        para.compress(found, para.Rank(1))
    with pytest.raises(ValueError, match="initialised by PiSSA"):
        para.save(found, tmp_path / "y.safetensors", format="kohya")


# --- Scales given by the user -------------------------------------------------------


@pytest.mark.parametrize("names", NAMES)
def test_a_scale_may_be_said_where_the_file_holds_none(names, tmp_path):
    tensors = pair("a.b_q", 8, 6, 4, names=names) | pair("a.b_k", 8, 6, 2, names=names)
    source = write(tmp_path / "x.safetensors", tensors)

    def scales(**words):
        found = para.load(source, **words).adapters
        return [found["a/b_q"].scale, found["a/b_k"].scale]

    assert scales() == [1, 1]
    assert scales(scale=3) == [3, 3]
    assert scales(alpha=8) == [2, 4]
    assert scales(alpha={"a/b_q": 8, "a/b_k": 1}) == [2, 0.5]


SAID = {
    "both": ({"alpha": 1, "scale": 1}, "not both"),
    "no number": ({"alpha": math.nan}, "alpha=nan: expected a finite number"),
    "zero": ({"scale": 0}, "scale=0: expected"),
    "no such": ({"alpha": {"x": 1, "unet/a/q": 1}}, "names 'x', expected one of"),
    "too few": ({"alpha": {}}, "'unet.a.q' has no alpha. Name it in alpha="),
    "a layout": ({"layout": "linen"}, "holds its own layout: leave out layout=linen"),
}


@pytest.mark.parametrize("name", SAID)
def test_what_is_said_wrongly_is_refused(name, tmp_path):
    words, match = SAID[name]

    with pytest.raises(ValueError, match=match):
        para.load(one(tmp_path, {}), **words)


OWN = {
    "a tensor": ({"alpha": 6}, {}),
    "a header": ({}, {"lora_alpha": "6", "rank": "4"}),
}


@pytest.mark.parametrize("words", [{"alpha": 4}, {"scale": 1}, {"alpha": {"q": 4}}])
@pytest.mark.parametrize("name", OWN)
def test_what_the_file_holds_is_not_said_again(name, words, tmp_path):
    options, metadata = OWN[name]
    source = write(
        tmp_path / "x.safetensors", pair("q", 8, 6, 4, **options), **metadata
    )

    with pytest.raises(ValueError, match="holds its own scales: leave out"):
        para.load(source, **words)


def test_what_is_said_is_of_the_modules_that_hold_none(tmp_path):
    tensors = pair("q", 8, 6, 4, alpha=6) | pair("k", 8, 6, 4)

    found = para.load(write(tmp_path / "x.safetensors", tensors), alpha=2).adapters

    assert (found["q"].scale, found["k"].scale) == (1.5, 0.5)


@pytest.mark.parametrize("name", ["lora", "adapter_model"])
def test_names_of_peft_without_a_config_need_a_word(name, tmp_path):
    module = "base_model.model.layers.0.q"
    source = write(
        tmp_path / f"{name}.safetensors", pair(module, 8, 6, 4, names="peft")
    )

    with pytest.raises(
        ValueError, match=r"adapter_config.json its scales are not.*alpha="
    ):
        para.load(source)

    found = para.load(source, alpha=8)
    assert found.adapters["layers/0/q"].scale == 2
    para.save(found, tmp_path / "z" / f"{name}.safetensors", format="kohya")
    again = para.load(tmp_path / "z" / f"{name}.safetensors")
    np.testing.assert_allclose(
        single.comfy(tmp_path / "z" / f"{name}.safetensors")[module],
        2 * single.comfy(source)[module],
        rtol=1e-5,
    )
    assert again.adapters["layers/0/q"].scale == 1
    para.save(found, tmp_path / "peft")
    assert para.load(tmp_path / "peft").adapters.keys() == {"layers/0/q"}


def test_the_command_line_says_it_too(tmp_path, capsys):
    source = one(tmp_path, {"alpha": "6", "rank": "8"})
    words = ["compress", str(source), str(tmp_path / "y.safetensors"), "--gamma", "0.5"]

    assert cli.main(words) == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "'unet.a.q'" in text
    assert "Say it with --alpha or --scale." in text
    assert not (tmp_path / "y.safetensors").exists()
    assert cli.main([*words, "--alpha", "8"]) == 0

    want = single.cut({"unet.a.q": 2 * single.comfy(source)["unet.a.q"]}, 2)
    single.same(single.comfy(tmp_path / "y.safetensors"), want)
