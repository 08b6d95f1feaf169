"""Test 8-bit factors and other safetensors dtypes, with files written byte by byte.

The oracle is NumPy in float64 on the bytes as decoded by `ml_dtypes`, and the bytes of
1 by the definition of each format.
"""

import json
import math

import ml_dtypes
import numpy as np
import pytest
import safetensors

import para_jax as para
from para_jax import cli

pytestmark = pytest.mark.user_defaults

FLOAT8 = {
    "F8_E4M3": (ml_dtypes.float8_e4m3fn, 0x38),
    "F8_E5M2": (ml_dtypes.float8_e5m2, 0x3C),
    "F8_E4M3FNUZ": (ml_dtypes.float8_e4m3fnuz, 0x40),
    "F8_E5M2FNUZ": (ml_dtypes.float8_e5m2fnuz, 0x40),
}
OTHERS = {
    "BOOL": bool,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
    "BF16": ml_dtypes.bfloat16,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
} | {name: dtype for name, (dtype, _) in FLOAT8.items()}


def _is_known(dtype):
    """Return whether the installed safetensors reads a dtype: new ones are added."""
    bits = f'{{"x":{{"dtype":"{dtype}","shape":[0],"data_offsets":[0,0]}}}}'.encode()
    try:
        safetensors.deserialize(len(bits).to_bytes(8, "little") + bits)
    except safetensors.SafetensorError:
        return False
    return True


KNOWN = {name for name in [*OTHERS, "F4", "F6_E2M3"] if _is_known(name)}
FLOAT8, OTHERS = ({k: x for k, x in y.items() if k in KNOWN} for y in (FLOAT8, OTHERS))
NAME = "layers.0.q"
M, R, N = 13, 4, 11


def write(path, entries, metadata=None):
    """Write a safetensors file of `name: (dtype, shape, bytes)`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    header, data = {"__metadata__": metadata or {}}, b""
    for name, (dtype, shape, raw) in entries.items():
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        data += raw
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def entry(dtype, array):
    return dtype, list(array.shape), np.ascontiguousarray(array).tobytes()


def header(path):
    data = path.read_bytes()
    return json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])


def factors(dtype, *, size=1.0):
    """Return Flax's factors `[m, r]`, `[r, n]` in a dtype."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(M, R)) * size, rng.normal(size=(R, N)) * size
    return a.astype(dtype), b.astype(dtype)


def adapter(folder, form, dtype, a, b, *, extra=None):
    """Write an adapter of scale 2 in a format; return its path."""
    entries = dict(extra or {})
    if form == "peft":
        key = f"base_model.model.{NAME}.lora_"
        entries |= {f"{key}A.weight": entry(dtype, a.T)}
        entries |= {f"{key}B.weight": entry(dtype, b.T)}
        config = {"peft_type": "LORA", "r": R, "lora_alpha": 2 * R}
        write(folder / "adapter_model.safetensors", entries)
    elif form == "mlx":
        entries |= {f"{NAME}.lora_a": entry(dtype, a)}
        entries |= {f"{NAME}.lora_b": entry(dtype, b)}
        config = {"rank": R, "scale": 2.0, "dropout": 0.0}
        config = {"num_layers": 1, "lora_parameters": config}
        write(folder / "adapters.safetensors", entries)
    else:
        entries |= {f"{NAME}.lora_down.weight": entry(dtype, a.T)}
        entries |= {f"{NAME}.lora_up.weight": entry(dtype, b.T)}
        alpha = np.asarray(2 * R, np.int64)
        entries |= {f"{NAME}.alpha": entry("I64", alpha)}
        write(folder / "x.safetensors", entries)
        return folder / "x.safetensors"
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def delta(a, b, scale=1.0):
    return scale * (np.asarray(a, np.float64) @ np.asarray(b, np.float64))


def truncated(update, rank):
    u, s, vt = np.linalg.svd(update, full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def distance(got, want):
    return np.linalg.norm(got - want) / np.linalg.norm(want)


every_dtype = pytest.mark.parametrize("dtype", FLOAT8)
every_form = pytest.mark.parametrize("form", ["peft", "kohya", "mlx"])
ending = {"peft": "y", "mlx": "y", "kohya": "y.safetensors"}


@every_dtype
def test_one_is_the_byte_that_the_format_says(dtype, tmp_path):
    _, one = FLOAT8[dtype]
    raw = {"x": (dtype, [2, 1], bytes([one, 0]))}
    a, b = factors(np.float32)
    path = adapter(tmp_path, "peft", "F32", a, b, extra=raw)

    got = para.load(path).extra["x"]

    np.testing.assert_array_equal(got.astype(np.float64), [[1], [0]])


@every_form
@every_dtype
def test_factors_are_read_as_they_are(dtype, form, tmp_path):
    kind, _ = FLOAT8[dtype]
    a, b = factors(kind)

    (got,) = para.load(adapter(tmp_path, form, dtype, a, b)).adapters.values()

    assert got.a.dtype == got.b.dtype == kind
    assert got.scale == 2
    np.testing.assert_array_equal(delta(got.a, got.b), delta(a, b))


@every_form
@every_dtype
def test_a_child_is_cut_in_float64_and_stored_as_asked(dtype, form, tmp_path):
    a, b = factors(FLOAT8[dtype][0])
    parent = para.load(adapter(tmp_path / "x", form, dtype, a, b))

    child = para.compress(parent, para.Rank(2), dtype="bfloat16")
    para.save(child, tmp_path / ending[form], format=form)

    (got,) = para.load(tmp_path / ending[form]).adapters.values()
    assert got.a.dtype == ml_dtypes.bfloat16
    want = truncated(delta(a, b, 2), 2)
    assert distance(delta(got.a, got.b, got.scale), want) < 6e-3


@pytest.mark.parametrize("form", ["peft", "kohya", "orbax"])
@every_dtype
def test_a_child_stays_in_its_dtype_and_says_what_that_costs(dtype, form, tmp_path):
    kind, _ = FLOAT8[dtype]
    a, b = factors(kind)
    parent = para.Checkpoint(adapters={"q": para.Adapter(a, b, 2.0)})
    name = np.dtype(kind).name

    with pytest.warns(UserWarning, match=rf"{name} moves the child by") as caught:
        child = para.compress(parent, para.Rank(2))
    para.save(child, tmp_path / ending.get(form, "y"), format=form)

    (got,) = para.load(tmp_path / ending.get(form, "y")).adapters.values()
    assert got.a.dtype == kind
    moved = distance(delta(got.a, got.b, got.scale), truncated(delta(a, b, 2), 2))
    assert f"{moved:.1%}" in str(caught[0].message)
    assert 0.01 < moved < ml_dtypes.finfo(kind).eps


@pytest.mark.parametrize("size", [100.0, 1e-3])
@every_dtype
def test_a_child_beyond_its_dtypes_range_is_refused(dtype, size):
    name = np.dtype(FLOAT8[dtype][0]).name
    # Balanced factors of a component have one size, its root: 100 fits if both do.
    a, b = factors(np.float32, size=size * (100 if "E5M2" in dtype else 1))
    a, b = (a / 1e4, b / 1e4) if "E5M2" in dtype and size < 1 else (a, b)
    parent = {"q": para.Adapter(a, b, 100.0 if size > 1 else 1.0)}

    with pytest.raises(ValueError, match=rf"'q'.*the range of {name}.*bfloat16"):
        para.compress(parent, para.Gamma(1.0), dtype=name)


@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("scale", [1e3, 1e-4])
def test_a_scale_that_does_not_fit_into_the_factors_is_refused(form, scale, tmp_path):
    a, b = factors(ml_dtypes.float8_e4m3fn)
    parent = para.Checkpoint(adapters={"q": para.Adapter(a, b, scale)})

    with pytest.raises(ValueError, match="'q'"):
        para.save(parent, tmp_path / ending[form], format=form)
    assert list(tmp_path.iterdir()) == []


def test_a_scale_that_rounds_the_factors_is_said(tmp_path):
    a, b = factors(ml_dtypes.float8_e4m3fn)
    parent = para.Checkpoint(adapters={"q": para.Adapter(a, b, 1.5)})

    with pytest.warns(UserWarning, match="Folding its scales") as caught:
        para.save(parent, tmp_path / "x")

    got = para.load(tmp_path / "x").adapters["q"]
    error = got.scale * np.asarray(got.b, np.float64) - 1.5 * b.astype(np.float64)
    share = np.linalg.norm(error) / np.linalg.norm(1.5 * b.astype(np.float64))
    assert share > 0.01
    assert f"{share:.1%}" in str(caught[0].message)


def test_stacks_of_unequal_ranks_are_stored_in_8_bits(tmp_path):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(3, M, R)), rng.normal(size=(3, R, N))
    a[1] /= 8
    stack = para.Adapter(a.astype(np.float32), b.astype(np.float32))
    other = para.Adapter(*factors(np.float32))
    parent = {"mlp": stack, "q": other}

    for form in ("ragged", "padded"):
        with pytest.warns(UserWarning, match="float8_e4m3fn"):
            child = para.compress(
                parent, para.Gamma(0.4), form=form, dtype="float8_e4m3fn"
            )
        exact = para.compress(parent, para.Gamma(0.4), form=form)
        assert child.adapters.keys() == exact.adapters.keys()
        for path, x in exact.adapters.items():
            got = child.adapters[path]
            assert got.a.dtype == ml_dtypes.float8_e4m3fn
            assert distance(delta(got.a, got.b), delta(x.a, x.b)) < 0.1


@every_form
@pytest.mark.parametrize(
    "dtype", sorted(KNOWN & {"I8", "U8", "I32", "BOOL", "F8_E8M0", "F4", "F6_E2M3"})
)
def test_quantised_factors_are_refused_by_dtype_and_key(dtype, form, tmp_path):
    bits = {"F4": 4, "F6_E2M3": 6}.get(
        dtype, 8 * np.dtype(OTHERS.get(dtype, "u1")).itemsize
    )
    path = adapter(tmp_path, form, "F32", *factors(np.float32))
    file = next(x for x in [path, *tmp_path.iterdir()] if x.suffix == ".safetensors")
    found = {k: x for k, x in header(file).items() if k != "__metadata__"}
    key = next(x for x in found if "lora" in x and not x.endswith("alpha"))
    shapes = {k: x["shape"] for k, x in found.items()}
    write(
        file,
        {
            k: (dtype, shape, bytes(math.prod(shape) * bits // 8))
            for k, shape in shapes.items()
            if math.prod(shape) > 1
        },
    )

    with pytest.raises(ValueError, match=rf"'{key[:5]}.*' .*bfloat16") as caught:
        para.load(path)
    name = np.dtype(OTHERS[dtype]).name if dtype in OTHERS else dtype
    assert name in str(caught.value)


@pytest.mark.parametrize(
    ("end", "shape"),
    [
        ("absmax", [4]),
        ("quant_state.bitsandbytes__nf4", [81]),
        ("weight_scale", [11, 1]),
        ("scale_weight", [2]),
    ],
)
@every_form
def test_what_quantised_factors_are_scaled_by_is_refused(end, shape, form, tmp_path):
    key = f"{NAME}.lora_B.weight.{end}"
    more = {key: ("U8", shape, bytes(math.prod(shape)))}
    path = adapter(tmp_path, form, "F32", *factors(np.float32), extra=more)

    with pytest.raises(ValueError, match=rf"{end}.*quantised"):
        para.load(path)


def test_a_packed_factor_of_4_bits_is_called_quantised(tmp_path):
    """bitsandbytes packs it into `[n / 2, 1]`: no rank could be right."""
    packed = np.zeros((M * R // 2, 1), np.uint8)
    path = adapter(tmp_path, "peft", "U8", packed.T, packed.T)

    with pytest.raises(ValueError, match=r"lora_A.*uint8.*bitsandbytes"):
        para.load(path)


def test_a_dtype_that_safetensors_does_not_know_is_named(tmp_path):
    write(tmp_path / "y.safetensors", {"x": ("F9", [2], b"ab")})

    with pytest.raises(ValueError, match=r"y\.safetensors' .*F9.*newer safetensors"):
        para.load(tmp_path / "y.safetensors")


@pytest.mark.parametrize("form", ["peft", "kohya", "mlx"])
@pytest.mark.parametrize("dtype", OTHERS)
def test_other_tensors_of_any_dtype_pass_bit_for_bit(dtype, form, tmp_path):
    raw = np.random.default_rng(0).bytes(6 * np.dtype(OTHERS[dtype]).itemsize)
    raw = bytes(x % 2 for x in raw) if dtype == "BOOL" else raw
    key = "base_model.model.score" if form == "peft" else "score"
    extra = {key: (dtype, [2, 3], raw)}
    path = adapter(tmp_path / "x", form, "F32", *factors(np.float32), extra=extra)

    child = para.compress(para.load(path), para.Gamma(0.5))
    para.save(child, tmp_path / ending[form], format=form)

    written = tmp_path / ending[form]
    if written.is_dir():
        (written,) = written.glob("*.safetensors")
    found = header(written)
    start, end = found[key]["data_offsets"]
    assert (found[key]["dtype"], found[key]["shape"]) == (dtype, [2, 3])
    data = written.read_bytes()
    begin = 8 + int.from_bytes(data[:8], "little")
    assert data[begin + start : begin + end] == raw


@pytest.mark.parametrize("dtype", ["F4", "F6_E2M3", "F6_E3M2"])
def test_a_tensor_that_numpy_cannot_hold_is_named(dtype, tmp_path):
    size = 4 if dtype == "F4" else 6
    extra = {"score": (dtype, [8], bytes(size))}
    path = adapter(tmp_path, "peft", "F32", *factors(np.float32), extra=extra)

    with pytest.raises(ValueError, match=rf"'score' is of {dtype}"):
        para.load(path)


COMMANDS = {
    "inspect": [],
    "convert": ["DST"],
    "compress": ["DST", "--gamma", "0.5", "--dtype", "bfloat16"],
    "sweep": ["DST", "--gamma", "0.5", "0.25", "--dtype", "bfloat16"],
    "fleet": ["DST", "--gamma", "0.5", "--dtype", "bfloat16"],
}


@pytest.mark.parametrize("form", ["peft", "kohya"])
@pytest.mark.parametrize("dtype", ["F8_E4M3", "F8_E5M2"])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_takes_float8(command, dtype, form, tmp_path, capsys):
    a, b = factors(FLOAT8[dtype][0])
    source = adapter(tmp_path / "x", form, dtype, a, b)
    name = "y" if command in ("sweep", "fleet") else ending[form]
    words = [str(tmp_path / name) if x == "DST" else x for x in COMMANDS[command]]

    assert cli.main([command, str(source), *words]) == 0, capsys.readouterr().err


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_a_command_writes_float8_and_says_what_it_costs(dtype, tmp_path, capsys):
    source = adapter(tmp_path / "x", "peft", "F32", *factors(np.float32))
    words = ["--gamma", "0.5", "--dtype", dtype]

    assert cli.main(["compress", str(source), str(tmp_path / "y"), *words]) == 0

    said = capsys.readouterr().err
    assert f"para: note: Rounding to {dtype} moves the child by" in said
    assert "with --dtype bfloat16" in said
    found = header(tmp_path / "y/adapter_model.safetensors")
    kinds = {x["dtype"] for name, x in found.items() if "lora" in name}
    assert kinds == {"F8_E4M3" if dtype == "float8_e4m3fn" else "F8_E5M2"}
