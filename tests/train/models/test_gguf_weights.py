"""Models from GGUF files; tests/interop compares their logits with transformers."""

import hashlib

import gguf
import numpy as np
import pytest
import safetensors.numpy

from tests.train.models import tiny_gguf
from train.models import checkpoint, gguf_weights, repository

LAYERS = 12  # More than one digit.


@pytest.fixture(scope="module")
def shapes():
    """The shapes of tiny models' tensors, by their names in transformers."""
    from tests.train.models import tiny_gemma3, tiny_llama
    from train.models import gemma3, llama

    def of(leaves):
        return {
            name: leaf.part
            if len(leaf.part) == 1 or not leaf.stacked
            else leaf.part[::-1]
            for leaf in leaves.values()
            for name in leaf.names
        }

    return {
        "llama": (tiny_llama.TIED, of(llama.leaves(tiny_llama.TIED))),
        "gemma3": (tiny_gemma3.CONFIG, of(gemma3.leaves(tiny_gemma3.CONFIG))),
    }


@pytest.fixture
def tensors(shapes):
    def draw(architecture):
        generator = np.random.default_rng(0)
        config, found = shapes[architecture]
        return config, {
            name: generator.normal(size=shape).astype(np.float32)
            for name, shape in found.items()
        }

    return draw


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_tensors_are_those_that_were_converted(tensors, tmp_path, architecture):
    config, want = tensors(architecture)
    file = tiny_gguf.model(tmp_path / "x.gguf", architecture, config, want)

    got = gguf_weights.tensors(file)

    assert set(got) == set(want)
    for name, x in want.items():
        assert got[name].shape == x.shape
        # Gemma's norms are 1 larger in the file, which costs them a digit.
        np.testing.assert_allclose(got[name].read(), x, rtol=0, atol=3e-7)


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_names_are_those_of_the_package(tmp_path, architecture):
    names = gguf.get_tensor_name_map(tiny_gguf.ARCHITECTURES[architecture], LAYERS)
    known = {*gguf_weights._WHOLE.values(), "lm_head"}
    blocks = gguf_weights._BLOCKS[architecture].values()
    known |= {f"model.layers.11.{x}" for x in blocks}
    found = {names.get_name(name): name for name in known}

    file = tiny_gguf.write(
        tmp_path / "x.gguf",
        architecture,
        tensors={f"{x}.weight": np.zeros(2) for x in found},
    )

    assert None not in found
    assert set(gguf_weights.tensors(file)) == {f"{x}.weight" for x in found.values()}


@pytest.mark.parametrize("architecture", ["llama", "gemma3"])
def test_params_equal_those_of_safetensors(tensors, tmp_path, architecture):
    from train.models import gemma3, llama

    load = {"llama": llama.load, "gemma3": gemma3.load}[architecture]
    config, found = tensors(architecture)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    tiny_gguf.model(tmp_path / "a" / "x.gguf", architecture, config, found)
    safetensors.numpy.save_file(found, tmp_path / "b" / checkpoint.WEIGHTS)

    got, want = (load(tmp_path / x, config, np.float16) for x in "ab")

    import jax

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-3), got, want)
    assert {x.dtype for x in jax.tree.leaves(got)} == {np.dtype(np.float16)}


def test_safetensors_are_taken_where_there_are_both(tensors, tmp_path):
    from train.models import llama

    config, found = tensors("llama")
    (tmp_path / "x.gguf").write_bytes(b"anything")
    safetensors.numpy.save_file(found, tmp_path / checkpoint.WEIGHTS)

    got = llama.load(tmp_path, config)

    table = got["model"]["embed_tokens"]["embedding"]
    np.testing.assert_array_equal(table, found["model.embed_tokens.weight"])


def test_what_does_not_fit_is_listed(tmp_path):
    from tests.train.models import tiny_llama
    from train.models import llama

    # Bias is no part of the form here; divisors of angles are not asked for.
    more = {"blk.0.attn_q.bias": np.zeros(3), "rope_freqs.weight": np.ones(2)}
    tiny_gguf.write(tmp_path / "x.gguf", tensors=more)

    message = (
        r"model.norm.weight.*Unexpected: \['model.layers.0.self_attn.q_proj.bias'\]"
    )
    with pytest.raises(ValueError, match=message):
        llama.load(tmp_path, tiny_llama.TIED)


def test_another_architecture_is_refused(tmp_path):
    tiny_gguf.write(tmp_path / "x.gguf", "qwen2")

    with pytest.raises(
        ValueError, match=r"is 'qwen2', expected one of \['gemma3', 'll"
    ):
        checkpoint.load(tmp_path, {})


def test_the_hash_of_a_model_is_that_of_its_file(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"anything")

    got = repository.sha256(tmp_path)

    assert got == hashlib.sha256(b"anything").hexdigest()


def test_a_folder_without_a_model_says_what_is_expected(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"neither \*.safetensors nor \*.gguf"):
        repository.sha256(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"index.json, or a file \*.gguf"):
        checkpoint.load(tmp_path, {})
