"""Test that broken input is refused by a full message, and leaves no partial files."""

import gc
import json
import os
import pathlib
import pickle
import re
import struct
import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

import para_jax as para

# The entry points take any adapter, whatever the precision and promotion of the caller.
pytestmark = pytest.mark.user_defaults

CONFIG = {
    "peft_type": "LORA",
    "r": 3,
    "lora_alpha": 6,
    "target_modules": ["q", "down"],
    "rank_pattern": {},
    "alpha_pattern": {},
}
PREFIX = "base_model.model."
Q_A = f"{PREFIX}layer.0.q.lora_A.weight"
Q_B = f"{PREFIX}layer.0.q.lora_B.weight"
PATHS = ["layer/0/q", "layer/0/mlp/down"]


def weights(dtype=np.float32, seed=0):
    """Return the tensors of two modules, of shapes 8 x 6 and 5 x 9, rank 3."""
    rng = np.random.default_rng(seed)
    shapes = {
        Q_A: (3, 8),
        Q_B: (6, 3),
        f"{PREFIX}layer.0.mlp.down.lora_A.weight": (3, 5),
        f"{PREFIX}layer.0.mlp.down.lora_B.weight": (9, 3),
        f"{PREFIX}classifier.weight": (2, 6),
    }
    return {
        name: rng.normal(size=shape).astype(dtype) for name, shape in shapes.items()
    }


def write(folder, config=None, tensors=None):
    """Write an adapter as PEFT does; `...` leaves a file out."""
    folder.mkdir(parents=True, exist_ok=True)
    config = CONFIG if config is None else config
    if config is not ...:
        (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = weights() if tensors is None else tensors
    if tensors is not ...:
        safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def without(mapping, *names):
    return {key: value for key, value in mapping.items() if key not in names}


def listing(folder):
    """Return every file below a folder with its bytes, and every link's target."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if path.is_symlink():
            found[name] = str(path.readlink())
        else:
            found[name] = path.read_bytes() if path.is_file() else None
    return found


def refused(folder, match):
    """Return `load`'s error message for a folder; it must name the folder."""
    before = listing(folder)
    with pytest.raises(ValueError, match=match) as caught:
        para.load(folder)
    assert str(folder) in str(caught.value)
    assert listing(folder) == before
    return str(caught.value)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "adapter"


def test_the_adapter_that_all_cases_break_is_good_by_itself(folder):
    assert sorted(para.load(write(folder)).adapters) == sorted(PATHS)


# JSON


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"r": 3,}', "not valid JSON"),
        (b"[1, 2]", "holds a list, expected an object"),
        (b'"LORA"', "holds a str, expected an object"),
        (b"null", "expected an object"),
        (b'{"peft_type": "L\xd6RA"}', "not valid JSON.*utf-8"),
        (json.dumps(CONFIG).encode("utf-16"), "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
    ],
)
def test_a_broken_configuration_is_named(folder, text, match):
    write(folder)
    (folder / "adapter_config.json").write_bytes(text)

    assert "adapter_config.json" in refused(folder, match)


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(folder, name):
    write(folder)
    (folder / name).unlink()

    with pytest.raises(
        FileNotFoundError, match=f"{name}' is missing.*has adapter_conf"
    ):
        para.load(folder)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rank_pattern", ["q"]),
        ("alpha_pattern", "q"),
        ("rank_pattern", {"(": 3}),
    ],
)
def test_a_pattern_that_is_none_is_named(folder, field, value):
    refused(write(folder, CONFIG | {field: value}), field)


# safetensors


def header_of(data):
    (length,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def lying(change):
    """Return a good file with a changed header and its original data."""
    header, body = header_of(safetensors.numpy.save(weights()))
    change(header)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


def beyond_the_file(header):
    header[Q_A]["data_offsets"] = [x + 10_000 for x in header[Q_A]["data_offsets"]]


def overlapping(header):
    header[Q_A]["data_offsets"] = header[Q_A]["data_offsets"][:]
    header[f"{PREFIX}classifier.weight"]["data_offsets"] = header[Q_A]["data_offsets"]


def another_dtype(header):
    header[Q_A]["dtype"] = "F64"


def unknown_dtype(header):
    header[Q_A]["dtype"] = "F31"


def another_shape(header):
    header[Q_A]["shape"] = [3, 80]


def negative_shape(header):
    header[Q_A]["shape"] = [-3, -8]


def no_offsets(header):
    del header[Q_A]["data_offsets"]


def one_tensor_less(header):
    del header[Q_A]


@pytest.mark.parametrize(
    "change",
    [
        beyond_the_file,
        overlapping,
        another_dtype,
        another_shape,
        negative_shape,
        no_offsets,
        one_tensor_less,
    ],
)
def test_a_lying_header_is_refused(folder, change):
    write(folder)
    (folder / "adapter_model.safetensors").write_bytes(lying(change))

    message = refused(folder, "not a whole safetensors file.*Download or save it again")
    assert "adapter_model.safetensors" in message


def test_a_dtype_that_safetensors_does_not_know_is_named(folder):
    write(folder)
    (folder / "adapter_model.safetensors").write_bytes(lying(unknown_dtype))

    message = refused(folder, "a dtype unknown to safetensors.*Install a newer")
    assert "adapter_model.safetensors" in message


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 60, -300, -1])
def test_a_truncated_file_is_refused(folder, kept):
    path = write(folder) / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:kept])

    refused(folder, "not a whole safetensors file.*Download or save it again")


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 100_000, 0])
def test_a_header_of_a_false_length_is_refused(folder, length):
    path = write(folder) / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])

    refused(folder, "not a whole safetensors file")


@pytest.mark.parametrize("body", [b"{]", b"[]", b"\xff\xfe", b"x" * 64, b"null"])
def test_a_header_that_is_no_object_is_refused(folder, body):
    write(folder)
    path = folder / "adapter_model.safetensors"
    path.write_bytes(struct.pack("<Q", len(body)) + body)

    refused(folder, "not a whole safetensors file|holds no LoRA factors")


@pytest.mark.parametrize("text", ["{", "[1]", '{"absent": {"q": 5}}', '"x"'])
def test_our_own_metadata_that_is_broken_is_refused(folder, text):
    write(folder, tensors=...)
    path = folder / "adapter_model.safetensors"
    safetensors.numpy.save_file(weights(), path, metadata={"para_jax": text})

    refused(folder, "para_jax")


def test_a_page_that_was_downloaded_instead_is_refused(folder):
    write(folder)
    page = b"<!DOCTYPE html><html><body>401: sign in to continue</body></html>"
    (folder / "adapter_model.safetensors").write_bytes(page)

    refused(folder, "not a whole safetensors file")


# Pickles


class Poison:
    """Make a file when unpickled, as evidence of unpickling."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return pathlib.Path.touch, (pathlib.Path(self.marker),)


def test_the_poison_works(tmp_path):
    pickle.loads(pickle.dumps(Poison(tmp_path / "opened")))

    assert (tmp_path / "opened").exists()


def test_a_pickle_is_refused_and_never_unpickled(folder, tmp_path):
    write(folder, tensors=...)
    poison = pickle.dumps(Poison(tmp_path / "opened"))
    (folder / "adapter_model.bin").write_bytes(poison)

    refused(
        folder, r"adapter_model\.bin' is a pickle.*never opened.*adapter_model\.safe"
    )
    assert not (tmp_path / "opened").exists()


@pytest.mark.timeout(120)
def test_a_pickle_is_not_even_opened(folder):
    write(folder, tensors=...)
    os.mkfifo(folder / "adapter_model.bin")  # Whoever opens this waits for ever.

    with pytest.raises(ValueError, match="is a pickle"):
        para.load(folder)


def test_a_pickle_under_the_name_of_the_weights_is_never_unpickled(folder, tmp_path):
    write(folder, tensors=...)
    poison = pickle.dumps(Poison(tmp_path / "opened"))
    (folder / "adapter_model.safetensors").write_bytes(poison)

    refused(folder, "not a whole safetensors file")
    assert not (tmp_path / "opened").exists()


@pytest.mark.timeout(120)
def test_a_pickle_that_is_given_itself_is_called_one(folder):
    write(folder, tensors=...)
    os.mkfifo(folder / "adapter_model.bin")

    with pytest.raises((ValueError, OSError), match="is a pickle"):
        para.load(folder / "adapter_model.bin")


@pytest.mark.timeout(120)
def test_a_pickle_beside_the_weights_is_left_alone(folder):
    write(folder)
    os.mkfifo(folder / "adapter_model.bin")

    assert sorted(para.load(folder).adapters) == sorted(PATHS)


# Pairs, ranks, values


@pytest.mark.parametrize(
    ("gone", "match"),
    [
        (Q_B, r"'layer\.0\.q' has lora_A but no lora_B"),
        (Q_A, r"'layer\.0\.q' has lora_B but no lora_A"),
    ],
)
def test_a_factor_without_the_other_is_named(folder, gone, match):
    refused(write(folder, tensors=without(weights(), gone)), match)


@pytest.mark.parametrize(
    ("config", "tensors", "match"),
    [
        (
            {},
            {Q_B: np.ones((6, 4))},
            r"'layer\.0\.q'.*disagree.*A \[3, 8\].*B \[6, 4\]",
        ),
        (
            {},
            {Q_A: np.ones((8, 3))},
            r"'layer\.0\.q'.*disagree.*A \[8, 3\].*B \[6, 3\]",
        ),
        ({}, {Q_A: np.ones(3)}, r"'layer\.0\.q'.*A \[3\]"),
        ({}, {Q_B: np.ones((6, 3, 2))}, r"'layer\.0\.q'.*B \[6, 3, 2\]"),
        ({"r": 4}, {}, r"has rank 3, but adapter_config.json says 4.*Correct r"),
        ({"r": 2.5}, {}, r"adapter_config.json says 2.5|r is 2.5"),
        (
            {"rank_pattern": {"q": 2}},
            {},
            r"'layer\.0\.q' has rank 3, but adapter_config.json says 2.*rank_pattern",
        ),
    ],
)
def test_ranks_that_disagree_are_told_with_both_sides(folder, config, tensors, match):
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    refused(write(folder, CONFIG | config, weights() | tensors), match)


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", [Q_A, Q_B])
def test_one_value_that_is_not_finite_is_found(folder, dtype, value, name):
    tensors = weights(dtype)
    tensors[name][2, 1] = value

    message = refused(write(folder, tensors=tensors), r"layer/0/q.*NaN or infinity")
    assert "down" not in message


def test_a_value_that_is_not_finite_passes_where_there_is_nothing_to_cut(folder):
    tensors = weights()
    tensors[f"{PREFIX}classifier.weight"][0, 0] = np.nan

    extra = para.load(write(folder, tensors=tensors)).extra
    np.testing.assert_array_equal(
        *extra.values(), tensors[f"{PREFIX}classifier.weight"]
    )


def test_a_value_that_is_not_finite_is_found_without_a_file():
    adapters = {
        "q": para.Adapter(a=np.ones((8, 3)), b=np.ones((3, 6))),
        "down": para.Adapter(a=np.full((5, 3), np.nan), b=np.ones((3, 9))),
    }
    with pytest.raises(ValueError, match=r"'down'.*NaN or infinity"):
        para.compress(adapters, para.Gamma(0.5))


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8, np.bool_])
def test_integer_tensors_are_named(folder, dtype):
    tensors = weights() | {Q_A: np.ones((3, 8), dtype), Q_B: np.ones((6, 3), dtype)}

    name = np.dtype(dtype).name
    refused(write(folder, tensors=tensors), rf"layer[./]0[./]q.*{name}.*floating point")


def test_factors_of_two_dtypes_are_named(folder):
    tensors = weights() | {Q_A: np.ones((3, 8), np.float16)}

    refused(
        write(folder, tensors=tensors), r"'layer\.0\.q'.*float16.*float32.*one dtype"
    )


# The configuration


@pytest.mark.parametrize("field", ["r", "lora_alpha"])
@pytest.mark.parametrize(
    ("value", "got"),
    [
        (0, "0"),
        (-4, "-4"),
        (..., "missing"),
        (None, "missing"),
        ("16", "'16'"),
        (True, "True"),
        ([3], r"\[3\]"),
        (float("nan"), "nan"),
        (float("inf"), "inf"),
    ],
)
def test_r_and_alpha_are_positive_numbers(folder, field, value, got):
    config = CONFIG | {field: value} if value is not ... else without(CONFIG, field)

    refused(write(folder, config), rf"{field} is {got}: expected a positive number")


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
@pytest.mark.parametrize("value", [0, -1, "3", None, float("inf")])
def test_the_values_of_patterns_are_positive_numbers(folder, field, value):
    refused(
        write(folder, CONFIG | {field: {"q": value}}),
        rf"{field}\['q'\] is .*expected a positive number",
    )


@pytest.mark.parametrize(
    ("field", "value", "match"),
    [
        ("use_dora", True, r"DoRA.*use_dora"),
        ("alora_invocation_tokens", [101, 7], r"aLoRA.*alora_invocation_tokens"),
        ("kasa_config", {"beta": 1e-4}, r"KaSA.*kasa_config"),
        ("use_qalora", True, r"QA-LoRA.*use_qalora"),
        ("use_bdlora", {"nblocks": 2}, r"BD-LoRA.*use_bdlora"),
        ("next_config", {"groups": 4}, r"next_config.*not known"),
        ("enable_lora", [True, False], r"merged.*enable_lora"),
        ("arrow_config", {"top_k": 2}, r"Arrow.*arrow_config"),
        ("use_newest_lora", True, r"use_newest_lora.*not known"),
        ("target_parameters", "experts.down", r"target_parameters is .*a list"),
        ("peft_type", "LOHA", r"peft_type is 'LOHA'.*'LORA'"),
        ("peft_type", "ADALORA", r"peft_type is 'ADALORA'.*'LORA'"),
        ("peft_type", None, r"peft_type is (None|missing).*'LORA'"),
        ("peft_type", 7, r"peft_type is 7.*'LORA'"),
    ],
)
def test_what_is_no_plain_lora_is_refused_by_name(folder, field, value, match):
    refused(write(folder, CONFIG | {field: value}), match)


def test_a_missing_peft_type_is_called_missing(folder):
    refused(write(folder, without(CONFIG, "peft_type")), "peft_type is missing.*'LORA'")


@pytest.mark.parametrize(
    "field",
    ["use_dora", "use_qalora", "use_newest_lora", "next_config", "enable_lora"],
)
def test_a_variant_that_is_off_is_no_variant(folder, field):
    assert para.load(write(folder, CONFIG | {field: False})).adapters


@pytest.mark.parametrize(
    ("suffix", "match"),
    [
        ("lora_magnitude_vector", "DoRA"),
        ("lora_magnitude_vector.weight", "DoRA"),
        ("lora_diag", "lora_diag"),
        ("lora_E", "lora_E"),
    ],
)
def test_the_tensors_of_a_variant_are_named_though_no_flag_is_set(
    folder, suffix, match
):
    name = f"{PREFIX}layer.0.q.{suffix}"
    tensors = weights() | {name: np.ones(6, np.float32)}

    assert name in refused(write(folder, tensors=tensors), match)


@pytest.mark.parametrize("tensors", [{}, {"classifier.weight": np.ones((2, 3))}])
def test_an_adapter_with_no_lora_in_it_is_refused(folder, tensors):
    refused(
        write(folder, tensors=tensors),
        rf"adapter_model\.safetensors holds no LoRA factors \({len(tensors)} tensors",
    )


def test_a_grouped_convolution_is_refused_by_name(folder):
    tensors = weights() | {
        Q_A: np.ones((4, 3, 2, 2), np.float32),
        Q_B: np.ones((6, 2, 1, 1), np.float32),
    }
    refused(write(folder, tensors=tensors), r"'layer\.0\.q' is a grouped convolution")


def test_a_convolution_whose_up_projection_has_a_window_is_refused(folder):
    tensors = weights() | {
        Q_A: np.ones((3, 3, 2, 2), np.float32),
        Q_B: np.ones((6, 3, 2, 1), np.float32),
    }
    refused(write(folder, tensors=tensors), r"'layer\.0\.q'.*\[6, 3, 2, 1\]")


@pytest.mark.parametrize("name", ["PiSSA", "MiLoRA", "OLoRA", "CorDA"])
def test_an_adapter_of_changed_base_weights_is_read_but_not_cut(folder, name):
    parent = para.load(write(folder, CONFIG | {"init_lora_weights": name.lower()}))

    with pytest.raises(ValueError, match=rf"{name}.*changed base weights.*plain"):
        para.compress(parent, para.Gamma(0.5))


# Policies


@pytest.mark.parametrize("policy", [para.Gamma, para.Epsilon])
@pytest.mark.parametrize("value", [0, -0.25, 1.0001, 25, float("nan"), float("inf")])
def test_shares_are_in_zero_to_one(policy, value):
    with pytest.raises(
        ValueError, match=r"(must be|expected) (in \(0, 1\]|a number), got"
    ):
        policy(value)


@pytest.mark.parametrize(
    ("policy", "match"),
    [
        (para.Rank(0.1), r"rank 0\.1: .*0\.2 ranks is below one rank.*at least 1"),
        (para.Rank(3.5), r"rank 3\.5: .*7 ranks is above the parent's 6"),
        (para.Params(13), r"params 13: .*13 params is below one rank.*at least 14"),
        (para.Params(85), r"params 85: .*85 params is above the parent's 84"),
        (para.Bytes(55), r"bytes 55: .*55 bytes is below one rank.*at least 56"),
        (para.Bytes(337), r"bytes 337: .*337 bytes is above the parent's 336"),
    ],
)
def test_a_budget_fits_the_parent(folder, policy, match):
    # 3 ranks of 8 x 6 and 3 of 5 x 9 cost 14 parameters each.
    with pytest.raises(ValueError, match=match):
        para.compress(para.load(write(folder)), policy)


@pytest.mark.parametrize(
    ("policy", "kept"),
    [
        (para.Rank(0.5), 1),
        (para.Rank(3), 6),
        (para.Params(14), 1),
        (para.Params(84), 6),
        (para.Bytes(56), 1),
        (para.Bytes(336), 6),
    ],
)
def test_the_smallest_and_the_largest_budget_are_served(folder, policy, kept):
    child = para.compress(para.load(write(folder)), policy)

    assert child.report.kept_rank == kept


def test_nothing_left_is_no_peft_adapter(folder, tmp_path):
    child = para.compress(para.load(write(folder)), para.Threshold(1e9))
    before = listing(tmp_path)

    with pytest.raises(ValueError, match=r"No module has an adapter left.*one rank"):
        para.save(child, tmp_path / "child")
    assert listing(tmp_path) == before


# Sources


def test_a_place_with_nothing_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere' does not exist"):
        para.load(tmp_path / "nowhere")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(OSError, match=r"notes\.txt' is a file, expected a folder"):
        para.load(tmp_path / "notes.txt")


def test_a_folder_of_other_things_is_named(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")

    refused(tmp_path, "neither a PEFT adapter.*nor an Orbax checkpoint")


@pytest.mark.parametrize("name", [".", "./", "../adapter", "adapter_model.safetensors"])
def test_an_adapter_is_read_from_inside_its_folder(folder, monkeypatch, name):
    monkeypatch.chdir(write(folder))

    assert sorted(para.load(name).adapters) == sorted(PATHS)


def test_a_scale_is_refused_where_the_adapter_has_its_own(folder, tmp_path):
    parent = para.load(write(folder))
    para.save(parent, tmp_path / "orbax", format="orbax")

    for place in (tmp_path / "orbax", folder):
        with pytest.raises(ValueError, match="its own scales: leave out scale=3"):
            para.load(place, scale=3.0)


# Orbax


@pytest.fixture
def orbax(folder, tmp_path):
    para.save(para.load(write(folder)), tmp_path / "orbax", format="orbax")
    return tmp_path / "orbax"


# Orbax leaves the errors of its other threads to the garbage collector.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("cut", ["_CHECKPOINT_METADATA", "state/_METADATA", "state/d"])
def test_a_truncated_orbax_checkpoint_is_named(orbax, cut):
    path = orbax / cut
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    for x in paths:
        x.write_bytes(x.read_bytes()[: x.stat().st_size // 2])

    with pytest.raises(ValueError, match=re.escape(str(orbax))):
        para.load(orbax)
    gc.collect()


def foreign(place, tree, metadata=None):
    from orbax.checkpoint import v1 as ocp

    ocp.save(place, tree, custom_metadata=metadata or {})
    return place


def test_an_orbax_checkpoint_of_another_program_needs_a_scale(tmp_path):
    place = foreign(
        tmp_path / "other", {"q": {"a": np.ones((8, 3)), "b": np.ones((3, 6))}}
    )

    refused(place, r"para_jax did not write.*Give scale=: alpha / r")
    assert para.load(place, scale=2.0).adapters["q"].scale == 2.0


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_is_a_finite_number(tmp_path, scale):
    place = foreign(
        tmp_path / "other", {"q": {"a": np.ones((8, 3)), "b": np.ones((3, 6))}}
    )

    with pytest.raises(ValueError, match="scale"):
        para.load(place, scale=scale)


@pytest.mark.parametrize(
    ("tree", "match"),
    [
        ({"q": {"a": np.ones((8, 3))}}, "'q' has the factor 'a' alone"),
        ({"dense": {"kernel": np.ones((8, 3))}}, "holds no adapters"),
        (
            {"q": {"a": np.full((8, 3), np.inf), "b": np.ones((3, 6))}},
            "'q'.*NaN or infinity",
        ),
        ({"q": {"a": np.ones((8, 3)), "b": np.ones((4, 6))}}, "'q'.*ranks disagree"),
        (
            {"q": {"a": np.ones((8, 3), np.int32), "b": np.ones((3, 6), np.int32)}},
            "'q'.*int32.*floating point",
        ),
    ],
)
def test_an_orbax_tree_that_is_no_adapter_is_named(tmp_path, tree, match):
    place = foreign(tmp_path / "other", tree)

    with pytest.raises(ValueError, match=match) as caught:
        para.load(place, scale=1.0)
    assert str(place) in str(caught.value)


def test_an_orbax_checkpoint_of_a_newer_version_is_refused(orbax):
    path = orbax / "_CHECKPOINT_METADATA"
    path.write_text(path.read_text().replace('"version": 1', '"version": 99'))

    refused(orbax, "newer para_jax: update")


# Targets


@pytest.fixture(params=["peft", "orbax"])
def kind(request):
    return request.param


@pytest.fixture
def parent(folder):
    return para.load(write(folder))


def test_an_adapter_is_not_overwritten_unasked(parent, tmp_path, kind):
    write(tmp_path / "old", CONFIG | {"lora_alpha": 1})
    before = listing(tmp_path)

    with pytest.raises(FileExistsError, match=r"old' exists.*another place.*overwrite"):
        para.save(parent, tmp_path / "old", format=kind)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_other_things_is_never_replaced(parent, tmp_path, kind, overwrite):
    (tmp_path / "photos/2019").mkdir(parents=True)
    (tmp_path / "photos/2019/cat.jpg").write_bytes(b"meow")
    before = listing(tmp_path)

    with pytest.raises(FileExistsError, match=r"photos' (exists|is not an adapter)"):
        para.save(parent, tmp_path / "photos", format=kind, overwrite=overwrite)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_never_replaced(parent, tmp_path, kind, overwrite):
    (tmp_path / "notes").write_text("hello")
    before = listing(tmp_path)

    with pytest.raises(FileExistsError, match="notes' exists and is not a directory"):
        para.save(parent, tmp_path / "notes", format=kind, overwrite=overwrite)
    assert listing(tmp_path) == before


def test_a_parent_that_is_a_file_is_named(parent, tmp_path, kind):
    (tmp_path / "notes").write_text("hello")
    before = listing(tmp_path)

    with pytest.raises(OSError, match=r"(?i)notes.*not a directory"):
        para.save(parent, tmp_path / "notes/child", format=kind)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("place", ["/proc/child", "/sys/child", "/sys/some/child"])
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no /proc")
def test_a_place_that_cannot_be_written_is_named(parent, kind, place):
    # Even root cannot make a folder there.
    with pytest.raises(OSError, match=place):
        para.save(parent, place, format=kind, overwrite=True)


def test_an_empty_folder_is_taken(parent, tmp_path, kind):
    (tmp_path / "child").mkdir()

    para.save(parent, tmp_path / "child", format=kind)
    assert sorted(para.load(tmp_path / "child").adapters) == sorted(PATHS)


def test_missing_parents_are_made(parent, tmp_path, kind):
    para.save(parent, tmp_path / "a/b/child", format=kind)

    assert sorted(para.load(tmp_path / "a/b/child").adapters) == sorted(PATHS)
    assert [x.name for x in (tmp_path / "a/b").iterdir()] == ["child"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_link_leads_to_the_adapter_or_is_refused(parent, tmp_path, kind, overwrite):
    write(tmp_path / "old", CONFIG | {"lora_alpha": 1})
    (tmp_path / "link").symlink_to("old")
    before = listing(tmp_path)

    try:
        para.save(parent, tmp_path / "link", format=kind, overwrite=overwrite)
    except FileExistsError:
        assert listing(tmp_path) == before
    else:
        # Nothing is left over, whether the link or its target was replaced.
        assert overwrite
        for path, adapter in para.load(tmp_path / "link").adapters.items():
            want = parent.adapters[path]
            np.testing.assert_allclose(adapter.b * adapter.scale, want.b * want.scale)
        assert sorted(para.load(tmp_path / "old").adapters) == sorted(PATHS)
    names = {x.name for x in tmp_path.iterdir()}
    assert names == {"adapter", "old", "link"}


def test_a_link_to_nowhere_is_not_followed(parent, tmp_path, kind):
    (tmp_path / "link").symlink_to("nowhere")
    before = listing(tmp_path)

    with pytest.raises(FileExistsError, match="link' exists and is not a directory"):
        para.save(parent, tmp_path / "link", format=kind, overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize("name", [".", ".."])
def test_the_current_folder_is_refused_in_words(parent, tmp_path, monkeypatch, name):
    (tmp_path / "work/here").mkdir(parents=True)
    (tmp_path / "work/here/notes").write_text("hello")
    monkeypatch.chdir(tmp_path / "work/here")
    before = listing(tmp_path)

    with pytest.raises(FileExistsError, match=r"is not an adapter"):
        para.save(parent, name, overwrite=True)
    assert listing(tmp_path) == before


@pytest.mark.parametrize(
    "name",
    ["with some spaces", "Gewichte-für-Ö", "适配器", "quote'\"s", "-dash", "a.b"],
)
def test_any_name_is_a_path(parent, tmp_path, kind, name):
    place = tmp_path / name / name
    for overwrite in (False, True):
        para.save(parent, place, format=kind, overwrite=overwrite)

    assert sorted(para.load(place).adapters) == sorted(PATHS)
    assert [x.name for x in place.parent.iterdir()] == [name]
    (place / "x.safetensors").touch()
    with pytest.raises(FileExistsError, match=re.escape(name)):
        para.save(parent, place, format=kind)


def test_an_unknown_format_or_profile_is_named(parent, tmp_path):
    save = getattr(para.save, "__wrapped__", para.save)  # Past the type checker.
    with pytest.raises(ValueError, match=r"format 'gguf': expected .*'kohya'"):
        save(parent, tmp_path / "child", format="gguf")
    with pytest.raises(ValueError, match=r"profile 'flat': expected .*'ragged'"):
        save(parent, tmp_path / "child", profile="flat")
    assert [x.name for x in tmp_path.iterdir()] == ["adapter"]


FULL = """
import pathlib, resource, signal, sys
import para_jax as para
from para_jax.formats.orbax import checkpoint
from para_jax.formats.peft import folder

parent = para.load(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
for target in sys.argv[2:]:
    try:
        para.save(parent, target, format=target.split("-")[-1], overwrite=True)
    except (OSError, ValueError) as error:
        print(type(error).__name__, " ".join(str(error).split()))
    except Exception as error:
        print("unexpected", type(error).__name__, " ".join(str(error).split()))
    else:
        print("written")
"""


def test_a_full_disk_leaves_what_was_there(folder, tmp_path):
    # No file may grow beyond 400 bytes: the configuration can be written, not the rest.
    place = tmp_path / "place"
    old = para.load(write(folder, CONFIG | {"lora_alpha": 1}))
    for kind in ("peft", "orbax"):
        para.save(old, place / f"old-{kind}", format=kind)
    big = {
        name: x.repeat(40, axis=0 if name.endswith(("B.weight", "r.weight")) else 1)
        for name, x in weights().items()
    }
    write(folder, tensors=big)
    names = ["old-peft", "new-peft", "old-orbax", "new-orbax"]
    before = listing(place)

    run = subprocess.run(
        [sys.executable, "-c", FULL, folder, *(place / name for name in names)],
        capture_output=True,
        text=True,
    )

    told = run.stdout.splitlines()
    assert len(told) == len(names), run.stderr
    assert listing(place) == before
    for name, line in zip(names, told, strict=True):
        assert line.startswith(("OSError", "ValueError")), line
        assert name in line
        assert "too large" in line.lower()
