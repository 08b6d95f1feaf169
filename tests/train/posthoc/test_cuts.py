import numpy as np
import pytest

import para_jax as para
from train import subjects
from train.data import arrays, tokens as data
from train.evaluation import evaluate
from train.models import bert, pretrained
from train.posthoc import cuts

PATHS = {
    "bert/encoder/layer/0/attention/self/query": (6, 6),
    "bert/encoder/layer/1/intermediate/dense": (6, 10),
    "bert/encoder/layer/1/output/dense": (10, 6),
}


@pytest.fixture
def subject(tiny, params):
    generator = np.random.default_rng(1)
    ids = generator.integers(1, 11, size=(7, 5), dtype=np.int32)
    labels = generator.integers(0, 3, size=7, dtype=np.int32)
    batch = data.Batch(bert.Tokens(ids, ids > 0), labels)
    zeros = np.zeros((1, 1), np.int32)
    train = arrays.Sentences(zeros, zeros[0], zeros[0])
    return subjects.Subject(
        model=bert.BertClassifier(tiny, 3),
        base={"bert": params["bert"]},
        data=arrays.Data(train, 1),
        validation=evaluate.Part([batch]),
        tests={},
        peft={},
    )


@pytest.fixture
def parent():
    """An adapter of rank 4 with a classifier; the second module is the largest."""
    generator = np.random.default_rng(2)
    adapters = {
        path: para.Adapter(
            a=generator.normal(size=(m, 4)).astype(np.float32),
            b=(1 + i % 2) * generator.normal(size=(4, n)).astype(np.float32),
            scale=2.0,
        )
        for i, (path, (m, n)) in enumerate(PATHS.items())
    }
    head = {"kernel": generator.normal(size=(6, 3)), "bias": np.zeros(3)}
    return para.Checkpoint(adapters=adapters, extra=pretrained.stored(head))


def values(parent):
    """Return the singular values of each module, by NumPy."""
    return {
        path: np.linalg.svd(2.0 * x.a.astype(float) @ x.b, compute_uv=False)[:4]
        for path, x in parent.adapters.items()
    }


def ranks(child):
    return [child.adapters[x].rank if x in child.adapters else 0 for x in PATHS]


def update(child, path):
    x = child.adapters[path]
    return x.scale * x.a @ x.b


def test_para_keeps_the_largest_values_of_the_model(parent, subject):
    cut = cuts.Para(gammas=(0.5, 0.25), epsilons=(0.9,))

    half, quarter, energy = cut.children(parent, subject)

    pool = np.sort(np.concatenate([*values(parent).values()]))[::-1]
    for child, count in ((half, 6), (quarter, 3)):
        want = [(x >= pool[count - 1]).sum() for x in values(parent).values()]
        assert ranks(child) == want
    kept = np.cumsum(pool**2) / (pool**2).sum()
    assert sum(ranks(energy)) == np.searchsorted(kept, 0.9) + 1
    assert cut.names() == ["gamma-0.5", "gamma-0.25", "epsilon-0.9"]


def test_local_keeps_as_many_of_each_module_and_the_same_total(parent, subject):
    cut = cuts.Local(gammas=(0.5, 0.4))

    half, less = cut.children(parent, subject)

    assert ranks(half) == [2, 2, 2]
    # 4 of 12: one each, and one more where the second value is the largest.
    assert ranks(less) == [1, 2, 1]
    assert cut.names() == ["gamma-0.5", "gamma-0.4"]


def test_drop_top_keeps_what_para_drops(parent, subject):
    (rest,) = cuts.DropTop(counts=(3,)).children(parent, subject)
    (top,) = cuts.Para(gammas=(0.25,)).children(parent, subject)

    assert [x + y for x, y in zip(ranks(rest), ranks(top), strict=True)] == [4, 4, 4]
    for path, x in parent.adapters.items():
        parts = [update(y, path) for y in (rest, top) if path in y.adapters]
        np.testing.assert_allclose(sum(parts), 2.0 * x.a @ x.b, atol=1e-4)
    assert cuts.DropTop(counts=(3, 8)).names() == ["drop-3", "drop-8"]


def test_fisher_para_keeps_the_same_total_by_what_the_loss_says(parent, subject):
    cut = cuts.FisherPara(gammas=(0.5, 0.25), batches=2, batch=4)

    half, quarter = cut.children(parent, subject)

    assert [sum(ranks(half)), sum(ranks(quarter))] == [6, 3]
    assert cut.names() == ["gamma-0.5-2x4", "gamma-0.25-2x4"]


@pytest.mark.parametrize("name", cuts.CUTS)
def test_a_child_has_the_classifier_of_its_parent_and_can_be_saved(
    parent, subject, tmp_path, name
):
    (child,) = cuts.CUTS[name].children(parent, subject)

    para.save(child, tmp_path / "child")
    got = para.load(tmp_path / "child")

    assert got.extra.keys() == parent.extra.keys()
    for key, value in parent.extra.items():
        np.testing.assert_array_equal(got.extra[key], value)
    assert ranks(got) == ranks(child)
    assert len(cuts.CUTS[name].names()) == 1


@pytest.mark.parametrize("kind", [cuts.Para, cuts.Local, cuts.FisherPara])
def test_an_impossible_share_is_refused_before_any_training(kind):
    with pytest.raises(ValueError, match=r"gamma must be in \(0, 1\], got 2"):
        kind(gammas=(2.0,)).names()
