"""Test large adapters: piece by piece in memory, tensor by tensor on disk."""

import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
import safetensors
import safetensors.numpy

import para_jax
from para_jax import Adapter, Gamma, Rank
from para_jax._pruning import batches as groups_module
from para_jax._pruning.batches import batches, groups, pieces
from para_jax.formats import tensor_files

# Seven kernels of one shape, five of them in a stack, and three of another. By path.
SHAPES = {
    "layers": ((5,), 13, 3, 11),
    "one": ((), 13, 3, 11),
    "pairs": ((1, 3), 7, 2, 17),
    "two": ((), 13, 3, 11),
}


def parent():
    rng = np.random.default_rng(0)
    return {
        path: Adapter(
            rng.standard_normal((*stack, m, r)),
            rng.standard_normal((*stack, r, n)),
            1.5,
        )
        for path, (stack, m, r, n) in SHAPES.items()
    }


@pytest.fixture(params=[1, 150, 330])
def limit(request, monkeypatch):
    """Limit batches to one kernel; to two of a shape; to four, or to two shapes."""
    monkeypatch.setattr(groups_module, "_BATCH", request.param)
    return request.param


@pytest.fixture
def small_batches(monkeypatch):
    """Limit batches to two kernels of the first shape, splitting the stack of five."""
    monkeypatch.setattr(groups_module, "_BATCH", 150)


def factors(adapters):
    return {path: (np.asarray(x.a), np.asarray(x.b)) for path, x in adapters.items()}


def assert_equal_bits(one, two):
    assert list(one) == list(two)
    for path, pair in factors(one).items():
        for x, y in zip(pair, factors(two)[path], strict=True):
            np.testing.assert_array_equal(x, y, err_msg=path, strict=True)


def test_the_pieces_of_a_group_are_all_its_rows_once(limit):
    adapters = parent()

    for group in groups(adapters):
        rows = [i for x in pieces(group, adapters) for i in range(group.rows)[x]]

        assert rows == list(range(group.rows))


def test_a_batch_is_never_larger_than_its_limit_or_one_kernel(limit):
    adapters = parent()
    found = groups(adapters)

    for batch in batches(found, adapters):
        sizes = []
        for i, rows in batch:
            _, m, r, n = SHAPES[next(iter(found[i].stacks))]
            sizes += [r * (m + n)] * len(range(found[i].rows)[rows])
        assert sum(sizes) <= limit or len(sizes) == 1


def test_a_small_model_is_one_batch():
    adapters = parent()
    found = groups(adapters)

    assert len(batches(found, adapters)) == 1


def test_rows_of_a_group_are_those_of_its_whole():
    adapters = parent()
    values = {path: x.a for path, x in adapters.items()}
    group, _ = groups(adapters)
    whole = np.concatenate([values["layers"], values["one"][None], values["two"][None]])

    for start in range(7):
        for stop in range(start + 1, 8):
            rows = group.join(values, slice(start, stop))
            np.testing.assert_array_equal(rows, whole[start:stop], strict=True)


@pytest.mark.parametrize("form", ["ragged", "padded"])
def test_a_child_made_in_batches_is_the_child_made_at_once(
    form, small_batches, monkeypatch
):
    batched = para_jax.compress(parent(), Gamma(0.4), form=form)
    monkeypatch.undo()

    whole = para_jax.compress(parent(), Gamma(0.4), form=form)

    assert_equal_bits(batched.adapters, whole.adapters)
    for one, two in zip(batched.report.modules, whole.report.modules, strict=True):
        np.testing.assert_array_equal(one.sigma, two.sigma, strict=True)


def test_spectra_found_in_batches_are_numpys(small_batches):
    adapters = parent()

    child = para_jax.compress(adapters, Gamma(1.0))

    flat = para_jax.unstack(adapters)
    for module in child.report.modules:
        x = flat[module.path]
        s = np.linalg.svd(x.scale * x.a @ x.b, compute_uv=False)
        np.testing.assert_allclose(module.sigma, s[: x.rank], rtol=1e-10)
        kept = child.adapters[module.path]
        np.testing.assert_allclose(kept.a @ kept.b, x.scale * x.a @ x.b, atol=1e-10)


def test_a_child_of_device_arrays_is_that_of_numpy_arrays(small_batches):
    on_device = jax.tree.map(jax.numpy.asarray, parent())

    child = para_jax.compress(on_device, Gamma(0.4))

    assert_equal_bits(child.adapters, para_jax.compress(parent(), Gamma(0.4)).adapters)


def test_a_kernel_of_a_child_keeps_no_larger_array_alive(small_batches):
    child = para_jax.compress(parent(), Gamma(0.4))

    for x in child.adapters.values():
        assert x.a.base is None
        assert x.b.base is None


def test_progress_wraps_the_loops_over_the_batches(small_batches):
    seen = []

    def progress(items):
        done = []
        seen.append((len(items), done))
        for item in items:
            yield item
            done.append(item)

    para_jax.compress(parent(), Rank(1), progress=progress)

    lengths = [length for length, _ in seen]
    assert [len(done) for _, done in seen] == lengths
    assert len(lengths) == 2  # Decomposing, then cutting.
    assert min(lengths) > 2


DTYPES = [
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "uint8",
    "bool",
    "complex64",
    ">f4",
]


def stored(dtype):
    x = np.arange(-3, 4).astype(dtype)
    return {
        "transposed": np.stack([x, x[::-1]]).T,
        "every.second": x[::2],
        "scalar": x[2],
        "none": x[:0].reshape(0, 5),
        "é": np.stack([x, x]).reshape(1, 2, 7),
    }


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_library_reads_what_was_written(tmp_path, dtype):
    dtype = np.dtype(jax.numpy.bfloat16 if dtype == "bfloat16" else dtype)
    wanted = {name: np.asarray(x) for name, x in stored(dtype).items()}

    tensor_files.write(tmp_path / "x", wanted, {"say": "“hello”\n"})

    with safetensors.safe_open(tmp_path / "x", framework="numpy") as file:
        assert file.metadata() == {"say": "“hello”\n"}
        assert set(file.keys()) == set(wanted)
        for name, x in wanted.items():
            got = file.get_tensor(name)
            np.testing.assert_array_equal(got, x)
            assert (got.shape, got.dtype) == (x.shape, dtype.newbyteorder("="))


def test_every_tensor_starts_at_a_multiple_of_its_items_size(tmp_path):
    mixed = {
        f"{n}.{dtype}": np.ones(n, dtype)
        for dtype in ("int8", "float64", "float16", "float32")
        for n in (1, 3)
    }

    tensor_files.write(tmp_path / "x", mixed, {})

    data = (tmp_path / "x").read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    assert length % 8 == 0
    for name, x in mixed.items():
        assert header[name]["data_offsets"][0] % x.itemsize == 0


def test_many_tensors_of_the_library_are_read(tmp_path):
    rng = np.random.default_rng(0)
    wanted = {f"x{i}": rng.standard_normal((i % 5, 3)) for i in range(100)}
    safetensors.numpy.save_file(wanted, tmp_path / "x", metadata={"a": "b"})

    got, metadata = tensor_files.read(tmp_path / "x")

    assert metadata == {"a": "b"}
    assert got.keys() == wanted.keys()
    for name, x in wanted.items():
        np.testing.assert_array_equal(got[name], x, strict=True)


def test_what_is_in_memory_is_not_read_a_second_time(tmp_path):
    x = np.arange(6.0).reshape(2, 3)
    x[1, 2] = np.nan
    wanted = {"same": x, "other": x + 1, "shape": x.T, "dtype": x.view(np.int64)}
    safetensors.numpy.save_file(wanted | {"other": x, "dtype": x}, tmp_path / "x")
    known = wanted | {"shape": x.T.copy().T.reshape(3, 2)}

    got, _ = tensor_files.read(tmp_path / "x", known)

    assert got["same"] is known["same"]
    np.testing.assert_array_equal(got["other"], x, strict=True)
    np.testing.assert_array_equal(got["dtype"], x, strict=True)


def test_a_file_that_is_replaced_while_it_is_read_is_refused(tmp_path, monkeypatch):
    old = {f"x{i}": np.zeros(3) for i in range(100)}
    safetensors.numpy.save_file(old, tmp_path / "x")
    real = safetensors.safe_open

    def replaced(path, **options):
        new = {name: value + 1 for name, value in old.items()}
        safetensors.numpy.save_file(new, tmp_path / "new")
        (tmp_path / "new").rename(tmp_path / "x")
        return real(path, **options)

    monkeypatch.setattr(safetensors, "safe_open", replaced)

    with pytest.raises(ValueError, match="replaced while it was read"):
        tensor_files.read(tmp_path / "x")


def test_a_dtype_that_the_file_cannot_hold_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"'wide' is of complex128"):
        tensor_files.write(tmp_path / "x", {"wide": np.ones(3, complex)}, {})


# An adapter of 336 MB whose modules are large and cheap to decompose.
MODULES, WIDTH, RANK = 160, 32768, 8
SIZE = MODULES * 2 * WIDTH * RANK * 4
ALONE = 200e6  # Python, JAX and its devices take 165 MB with no adapter at all.

MAKE = f"""
import json, pathlib, sys
import numpy as np, safetensors.numpy
rng, folder = np.random.default_rng(0), pathlib.Path(sys.argv[1])
tensors = {{}}
for i in range({MODULES}):
    a = rng.standard_normal(({RANK}, {WIDTH}), np.float32)
    tensors[f"base_model.model.layers.{{i}}.up.lora_A.weight"] = a
    tensors[f"base_model.model.layers.{{i}}.up.lora_B.weight"] = a.T * (1 + i)
folder.mkdir()
tensors = {{name: np.ascontiguousarray(x) for name, x in tensors.items()}}
safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
config = dict(peft_type="LORA", r={RANK}, lora_alpha={2 * RANK}, target_modules=["up"])
(folder / "adapter_config.json").write_text(json.dumps(config))
"""

COMMAND = """
import sys
from para_jax import cli
code = cli.main(sys.argv[1:])
with open("/proc/self/status") as file:
    peak = next(line for line in file if line.startswith("VmHWM"))
print(int(peak.split()[1]) * 1024)
sys.exit(code)
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large") / "parent"
    subprocess.run([sys.executable, "-c", MAKE, str(folder)], check=True)
    return folder


def peak(*words):
    """Return the peak memory of `para`, in bytes."""
    path = [str(pathlib.Path.cwd()), *filter(None, sys.path)]
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, *map(str, words)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return int(done.stdout.split()[-1])


@pytest.mark.slow
@pytest.mark.skipif(not pathlib.Path("/proc/self/status").exists(), reason="Linux")
@pytest.mark.parametrize(
    "words",
    [
        ("compress", "--gamma", "0.25"),
        ("convert", "--format", "peft"),
        ("convert", "--format", "orbax"),
    ],
    ids=" ".join,
)
def test_memory_stays_below_two_and_a_half_adapters(large, tmp_path, words):
    command, *options = words

    most = peak(command, large, tmp_path / "child", *options)

    assert most < ALONE + 2.5 * SIZE, f"{most / 1e6:.0f} MB"
