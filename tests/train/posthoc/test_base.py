import math

import flax
import numpy as np
import pytest

import para_jax as para
from train import posthoc
from train.models import bert
from train.posthoc import activations, base

LAYER_NORMS = {
    "0/attention/self/query": "embeddings/LayerNorm",
    "0/attention/self/key": "embeddings/LayerNorm",
    "0/attention/self/value": "embeddings/LayerNorm",
    "0/intermediate/dense": "encoder/layer/0/attention/output/LayerNorm",
    "1/attention/self/query": "encoder/layer/0/output/LayerNorm",
    "1/attention/self/key": "encoder/layer/0/output/LayerNorm",
    "1/attention/self/value": "encoder/layer/0/output/LayerNorm",
    "1/intermediate/dense": "encoder/layer/1/attention/output/LayerNorm",
}


@pytest.fixture
def values(params):
    leaves = flax.traverse_util.flatten_dict(params, sep="/")
    return {path: np.asarray(x, np.float64) for path, x in leaves.items()}


def gelu(x):
    return x * (1 + np.vectorize(math.erf)(x / math.sqrt(2))) / 2


def drawn(values, norm, generator):
    """Inputs with independent features, as the prediction assumes."""
    gain, bias = values[f"bert/{norm}/scale"], values[f"bert/{norm}/bias"]
    return generator.normal(size=(200_000, len(gain))) * gain + bias


def test_the_norms_are_those_of_the_kernels(params, values):
    got = posthoc.statistics(params)

    assert len(got) == 12
    for path, x in got.items():
        kernel = values[f"{path}/kernel"]
        assert x.frobenius == pytest.approx(np.linalg.norm(kernel))
        assert x.spectral == pytest.approx(np.linalg.norm(kernel, 2))
        assert x.square.shape == x.embedded.shape == kernel.shape[:1]


@pytest.mark.parametrize("path", LAYER_NORMS)
def test_a_kernel_reads_the_layer_norm_that_its_prediction_is_made_of(
    tiny, params, values, tokens, path
):
    module = f"bert/encoder/layer/{path}"
    norm = f"bert/{LAYER_NORMS[path]}"
    gain, bias = values[f"{norm}/scale"], values[f"{norm}/bias"]

    got = posthoc.statistics(params)[module].square

    np.testing.assert_allclose(got, gain**2 + bias**2)
    model = bert.BertClassifier(tiny, 3)
    x = activations.inputs(model, {"params": params}, tokens, [module])[module]
    z = (np.asarray(x, np.float64) - bias) / gain
    np.testing.assert_allclose(z.mean(-1), 0, atol=1e-3)
    np.testing.assert_allclose(z.std(-1), 1, atol=1e-3)


@pytest.mark.parametrize(
    ("block", "norm"), [(0, "embeddings"), (1, "encoder/layer/0/output")]
)
def test_values_are_predicted_as_in_a_simulation(
    params, values, generator, block, norm
):
    at = f"bert/encoder/layer/{block}/attention"

    got = posthoc.statistics(params)[f"{at}/output/dense"].square

    x = drawn(values, f"{norm}/LayerNorm", generator)
    y = x @ values[f"{at}/self/value/kernel"] + values[f"{at}/self/value/bias"]
    np.testing.assert_allclose(got, (y**2).mean(0), rtol=0.02)


@pytest.mark.parametrize("block", [0, 1])
def test_what_passes_the_gelu_is_predicted_as_in_a_simulation(
    params, values, generator, block
):
    at = f"bert/encoder/layer/{block}"

    got = posthoc.statistics(params)[f"{at}/output/dense"].square

    norm = f"encoder/layer/{block}/attention/output/LayerNorm"
    x = drawn(values, norm, generator)
    h = x @ values[f"{at}/intermediate/dense/kernel"]
    h += values[f"{at}/intermediate/dense/bias"]
    np.testing.assert_allclose(got, (gelu(h) ** 2).mean(0), rtol=0.03)


def test_the_quadrature_is_an_integral(generator):
    mean, deviation = np.array([-3.0, -0.2, 0.0, 4.0]), np.array([0.1, 1.0, 2.5, 0.7])

    got = base.gelu_square(base.Features(mean, deviation**2))

    x = np.linspace(-12, 12, 20_001)[:, None]
    density = np.exp(-(x**2) / 2) / math.sqrt(2 * math.pi)
    want = (gelu(mean + deviation * x) ** 2 * density).sum(0) * (24 / 20_000)
    np.testing.assert_allclose(got, want, rtol=1e-3)


def test_embeddings_are_those_that_the_first_block_reads(tiny, params):
    """One position: the mean over positions is then the one added to every word."""
    embeddings = dict(params["bert"]["embeddings"])
    table = embeddings["position_embeddings"]["embedding"]
    embeddings["position_embeddings"] = {"embedding": table[:1].repeat(8, 0)}
    params = {**params, "bert": {**params["bert"], "embeddings": embeddings}}
    ids = np.arange(11, dtype=np.int32)[:, None]
    words = bert.Tokens(ids, np.ones_like(ids, bool))
    path = "bert/encoder/layer/0/attention/self/query"
    model = bert.BertClassifier(tiny, 3)

    got = posthoc.statistics(params)

    x = activations.inputs(model, {"params": params}, words, [path])[path]
    want = np.square(np.asarray(x, np.float64)).mean((0, 1))
    np.testing.assert_allclose(got[path].embedded, want, rtol=1e-4)
    later = "bert/encoder/layer/1/attention/self/query"
    np.testing.assert_array_equal(got[later].embedded, got[later].square)


def test_each_score_is_its_formula(params, adapters):
    statistics = posthoc.statistics(params)
    path = "bert/encoder/layer/0/output/dense"
    x, known = posthoc.decompose(adapters)[path], statistics[path]
    kernel = params["bert"]["encoder"]["layer"]["0"]["output"]["dense"]["kernel"]
    delta = adapters[path].scale * np.float64(adapters[path].a) @ adapters[path].b
    u, s, vt = np.linalg.svd(delta, full_matrices=False)
    u, s, vt = u[:, :3], s[:3], vt[:3]
    outputs = [
        np.sqrt(known.square)[:, None] * np.outer(u[:, j], vt[j]) for j in range(3)
    ]
    want = {
        "sigma": s,
        "per-parameter": s**2 / 16,
        "by-frobenius": s / np.linalg.norm(kernel),
        "by-spectral": s / np.linalg.norm(kernel, 2),
        "by-update": s / np.linalg.norm(delta),
        "by-update-0.25": s / np.linalg.norm(delta) ** 0.25,
        "by-update-0.5": s / np.linalg.norm(delta) ** 0.5,
        "by-update-0.75": s / np.linalg.norm(delta) ** 0.75,
        # The square of it is a share of the update's energy a parameter.
        "by-update-per-parameter": np.sqrt(s**2 / np.sum(delta**2) / 16),
        "by-tail": [
            np.linalg.norm(delta - (u[:, :j] * s[:j]) @ vt[:j]) / np.linalg.norm(delta)
            for j in range(3)
        ],
        "at-inputs": s * [np.linalg.norm(y) for y in outputs],
        # The best one before all others of any module.
        "sigma-floor": s * [1e30, 1, 1],
        "by-update-floor": s / np.linalg.norm(delta) * [1e30, 1, 1],
    }

    got = {name: score(x, known) for name, score in posthoc.SCORES.items()}

    assert got.keys() == want.keys() | {"at-embeddings"}
    for name, values in want.items():
        np.testing.assert_allclose(got[name], values, rtol=1e-6)
    first = "bert/encoder/layer/0/attention/self/key"
    y, known = posthoc.decompose(adapters)[first], statistics[first]
    as_inputs = known._replace(square=known.embedded)
    np.testing.assert_allclose(
        posthoc.SCORES["at-embeddings"](y, known),
        posthoc.SCORES["at-inputs"](y, as_inputs),
    )
    assert not np.allclose(known.square, known.embedded)


def test_scores_change_which_components_are_kept(parent):
    def kept(name):
        child = posthoc.prune(posthoc.PRUNERS[name](parent), para.Rank(1))
        return tuple((path, x.rank) for path, x in sorted(child.items()))

    names = ["sigma", "by-frobenius", "by-update", "at-inputs"]
    assert len({kept(name) for name in names}) > 1


def test_kernels_of_any_model_have_the_norms_that_numpy_finds():
    from train import posthoc

    generator = np.random.default_rng(0)
    kernels = {f"a/{n}": generator.normal(size=(5, n)).astype("f4") for n in (3, 7)}

    got = posthoc.of_kernels(kernels)

    for path, kernel in kernels.items():
        s = np.linalg.svd(kernel.astype("f8"), compute_uv=False)
        assert got[path].spectral == pytest.approx(s[0], rel=1e-10)
        assert got[path].frobenius == pytest.approx(np.sqrt(np.sum(s**2)), rel=1e-10)
        assert got[path].square is None


def test_scores_at_layer_norms_want_a_bert(parent):
    import dataclasses

    from train import posthoc

    kernels = {
        path: np.ones(x.a.shape[:1] + x.b.shape[1:])
        for path, x in parent.adapters.items()
    }
    other = dataclasses.replace(parent, statistics=posthoc.of_kernels(kernels))

    with pytest.raises(ValueError, match="known of BERT alone"):
        posthoc.PRUNERS["at-inputs"](other)
