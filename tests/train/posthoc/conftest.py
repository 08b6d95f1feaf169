"""A parent on the tiny encoder, and the real one shipped with the experiments."""

import pathlib

import numpy as np
import pytest

SHAPES = {
    "attention/self/query": (6, 6),
    "attention/self/key": (6, 6),
    "attention/self/value": (6, 6),
    "attention/output/dense": (6, 6),
    "intermediate/dense": (6, 10),
    "output/dense": (10, 6),
}


@pytest.fixture
def generator():
    return np.random.default_rng(7)


@pytest.fixture
def adapters(generator):
    """Rank 3 on all kernels of both blocks of the tiny encoder, of scale 0.5."""
    from para_jax._adapters.adapter import Adapter

    def draw(*shape):
        return generator.normal(size=shape).astype(np.float32)

    return {
        f"bert/encoder/layer/{i}/{name}": Adapter(draw(m, 3), draw(3, n), 0.5)
        for i in range(2)
        for name, (m, n) in SHAPES.items()
    }


@pytest.fixture
def examples(generator):
    """Seven labelled sentences of 3 to 5 tokens."""
    from train.models.bert import Tokens
    from train.posthoc import Examples

    ids = generator.integers(1, 11, (7, 5)).astype(np.int32)
    mask = np.arange(5) < generator.integers(3, 6, (7, 1))
    labels = generator.integers(0, 3, 7).astype(np.int32)
    return Examples(Tokens(np.where(mask, ids, 0).astype(np.int32), mask), labels)


@pytest.fixture
def parent(tiny, params, adapters, examples):
    from train import posthoc
    from train.models import bert

    return posthoc.Parent(
        adapters=adapters,
        model=bert.BertClassifier(tiny, 3),
        params=params,
        statistics=posthoc.statistics(params),
        validation=examples,
        batch=3,
        fisher_batches=2,
        moment_batches=2,
    )


@pytest.fixture(scope="session")
def real():
    """The adapters of a real parent: 36 modules of rank 16."""
    import para_jax as para
    import train

    folder = pathlib.Path(train.__file__).parent / "assets" / "minilm-movie-r16"
    return para.load(folder).adapters
