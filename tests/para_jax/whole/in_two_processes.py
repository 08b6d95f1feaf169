"""Compress and save one model as one of two processes: see `test_processes.py`.

python in_two_processes.py PROCESS PORT FOLDER [SHORT]

With SHORT, only `main_in_short` runs.
"""

import pathlib
import sys

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec as P
from orbax.checkpoint import v1 as ocp

import para_jax
from para_jax import Adapter, Gamma

M, N = 8, 12
PLACES = {
    "layers": ((4,), 3, P("x"), P("x")),
    "both": ((4,), 3, P("x", "y"), P("x", None, "y")),
    "outputs": ((), 5, P(), P(None, ("x", "y"))),
}


def adapters():
    rng = np.random.default_rng(0)

    def adapter(stack, r):
        a, b = rng.normal(size=(*stack, M, r)), rng.normal(size=(*stack, r, N))
        return Adapter(a.astype(np.float32), b.astype(np.float32), scale=2.0)

    return {path: adapter(stack, r) for path, (stack, r, _, _) in PLACES.items()}


def over_both(mesh):
    """Return adapters distributed over both processes."""

    def put(x, spec):
        place = NamedSharding(mesh, spec)
        return jax.make_array_from_callback(x.shape, place, lambda part: x[part])

    return {
        path: Adapter(put(x.a, PLACES[path][2]), put(x.b, PLACES[path][3]), x.scale)
        for path, x in adapters().items()
    }


def check_chosen_as_by_numpy(child):
    """Apply the threshold to the singular values of the whole model."""
    svds = {
        path: np.linalg.svd(x.scale * x.a.astype(float) @ x.b, compute_uv=False)
        for path, x in adapters().items()
    }
    s = {path: x[..., : adapters()[path].rank].ravel() for path, x in svds.items()}
    pooled = np.sort(np.concatenate(list(s.values())))[::-1]
    tau = pooled[pooled.size // 2 - 1 :][:2].mean()  # Between kept and dropped.
    assert child.report.kept_rank == pooled.size // 2
    for x in child.report.modules:
        path, *index = x.path.split("/")
        want = svds[path][tuple(map(int, index))][: x.rank]
        np.testing.assert_allclose(x.sigma, want, rtol=1e-6)
        assert x.kept == (want >= tau).sum()


def check_saved_and_restored(child, folder):
    para_jax.save(child, folder, format="orbax")
    whole = para_jax.load(folder).adapters
    wanted = para_jax.to_params(child.adapters)
    form = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted
    )
    divided = ocp.load(folder, {"lora": form, "bias": {}, "extra": {}})["lora"]
    leaves = map(jax.tree.leaves, (wanted, para_jax.to_params(whole), divided))
    for one, two, three in zip(*leaves, strict=True):
        assert one.sharding == three.sharding
        pairs = zip(one.addressable_shards, three.addressable_shards, strict=True)
        for x, y in pairs:
            np.testing.assert_array_equal(x.data, two[x.index])
            np.testing.assert_array_equal(x.data, y.data)


def check_leaves_that_are_no_arrays(folder):
    """Read, compress and save, in both processes, a tree saved by one program."""
    x = adapters()["outputs"]
    tree = {"q": {"lora_a": x.a, "lora_b": x.b}, "key": jax.random.key(7)}
    tree |= {"flag": True, "name": "run", "scale": np.float32(2)}
    child = para_jax.compress(para_jax.from_tree(tree), Gamma(0.5))
    para_jax.save(child, folder / "first", format="orbax")
    child = para_jax.compress(para_jax.load(folder / "first"), Gamma(0.5))
    para_jax.save(child, folder / "second", format="orbax")
    leaves = para_jax.load(folder / "second").tree.leaves
    assert (leaves["flag",], leaves["name",]) == (True, "run")
    assert leaves["scale",].dtype == np.float32
    assert jax.random.key_data(leaves["key",]).tolist() == [0, 7]


def message_of_failure(child, folder, form="orbax"):
    try:
        para_jax.save(child, folder, format=form)
    except (OSError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    raise AssertionError("It was saved.")


def parents(kind):
    types = (getattr(jax.sharding.AxisType, kind),) * 2
    parent = over_both(jax.make_mesh((2, 2), ("x", "y"), axis_types=types))
    assert not parent["layers"].a.is_fully_addressable
    return parent


def main_in_short(process, folder):
    """Compress one module and save it; a second save fails in both."""
    parent = {"layers": parents("Auto")["layers"]}
    child = para_jax.compress(parent, Gamma(1.0), form="padded")
    para_jax.save(child, folder / "short", format="orbax")
    print(message_of_failure(child, folder / "short"))


def main(process, folder):
    for kind, form in (("Auto", "padded"), ("Explicit", "ragged")):
        parent = parents(kind)
        child = para_jax.compress(parent, Gamma(0.5), form=form)
        check_chosen_as_by_numpy(child)
        check_saved_and_restored(child, folder / form)
        alone = para_jax.compress(adapters(), Gamma(0.5), form=form)
        para_jax.save(alone, folder / f"{form}-of-numpy", format="orbax")
    check_leaves_that_are_no_arrays(folder / "leaves")
    print(message_of_failure(child, folder / "peft", "peft"))
    print(message_of_failure(child, folder / "padded"))
    if process == 1:  # A name with two uses makes its tree unwritable.
        some = adapters()["outputs"]
        child = {"outputs": some, "outputs/a": some}
    print(message_of_failure(child, folder / "new"))


def start(process, port):
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    assert (jax.device_count(), jax.local_device_count()) == (4, 2)


if __name__ == "__main__":
    number, port, where, *short = sys.argv[1:]
    start(int(number), port)
    (main_in_short if short else main)(int(number), pathlib.Path(where))
    print("returned")
