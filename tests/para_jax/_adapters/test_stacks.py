"""Test the kernels of stacks: their order, paths and indices."""

import numpy as np

from para_jax import Adapter
from para_jax._adapters.stacks import by_member, kernels, member


def test_kernels_come_in_the_order_of_the_paths_then_of_the_stack():
    found = list(kernels({"mlp": (2, 3), "head": (), "experts": (2,)}))

    assert [x.name for x in found] == [
        *(f"mlp/{i}/{j}" for i in range(2) for j in range(3)),
        "head",
        "experts/0",
        "experts/1",
    ]
    assert found[4] == ("mlp", (1, 1))
    assert all(x.name == member(x.path, x.index) for x in found)


def test_an_empty_stack_has_no_kernels():
    assert list(kernels({"mlp": (0,), "head": ()})) == [("head", ())]


def test_values_of_a_stack_become_values_of_its_kernels():
    mlp = Adapter(np.ones((2, 5, 3)), np.ones((2, 3, 7)))
    adapters = {"mlp": mlp, "head": Adapter(np.ones((5, 3)), np.ones((3, 7)))}
    values = {"mlp": np.arange(10).reshape(2, 5), "head": "dense", "other": 3}

    assert {
        path: x.tolist() if isinstance(x, np.ndarray) else x
        for path, x in by_member(values, adapters).items()
    } == {
        "mlp/0": [0, 1, 2, 3, 4],
        "mlp/1": [5, 6, 7, 8, 9],
        "head": "dense",
        "other": 3,
    }
