"""Test files other than adapters: each message names the finding and the remedy.

Every command runs on every row and must exit with status 2, print one sentence without
a Python error, and write nothing.
"""

import json
import re

import numpy as np
import pytest
import safetensors.numpy

import para_jax as para
from para_jax import cli

pytestmark = pytest.mark.user_defaults

POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 12345\n"
)
LORA = {"peft_type": "LORA", "r": 3, "lora_alpha": 6}
MLX = {"num_layers": 2, "lora_parameters": {"rank": 3, "scale": 2.0}}
Q = "base_model.model.model.layers.0.q_proj.lora_"


def tensors(*names, shape=(3, 4), dtype=np.float32):
    found = {name: np.ones(shape, dtype) for name in names}
    return safetensors.numpy.save(found)


def factors(rank=3):
    found = {f"{Q}A.weight": np.ones((rank, 5)), f"{Q}B.weight": np.ones((4, rank))}
    return safetensors.numpy.save({k: x.astype(np.float32) for k, x in found.items()})


WHOLE = tensors("model.layers.0.self_attn.q_proj.weight", "model.norm.weight")
# Each row: the files, the path to name ("." is the folder), the message.
FOUND = {
    "nothing": ({}, "nowhere", "nowhere' does not exist"),
    "another name": (
        {"a.safetensors": factors()},
        "b.safetensors",
        r"b\.safetensors' does not exist.*'a\.safetensors'",
    ),
    "empty": ({}, ".", "is empty"),
    "notes": ({"notes.txt": b"hello"}, ".", "holds neither a PEFT adapter"),
    "a note": ({"notes.txt": b"hello"}, "notes.txt", "is a file, expected a folder"),
    # Git LFS.
    "pointer": (
        {"x.safetensors": POINTER},
        "x.safetensors",
        r"x\.safetensors' is a Git LFS pointer.*git lfs pull",
    ),
    "pointer of weights": (
        {"adapter_config.json": LORA, "adapter_model.safetensors": POINTER},
        ".",
        r"adapter_model\.safetensors' is a Git LFS pointer.*git lfs pull",
    ),
    "pointer of a configuration": (
        {"adapter_config.json": POINTER, "adapter_model.safetensors": factors()},
        ".",
        r"adapter_config\.json' is a Git LFS pointer.*git lfs pull",
    ),
    "pointer of mlx": (
        {"adapter_config.json": MLX, "adapters.safetensors": POINTER},
        ".",
        r"adapters\.safetensors' is a Git LFS pointer",
    ),
    "pointer of a pickle": (
        {"adapter_model.bin": POINTER},
        "adapter_model.bin",
        "is a Git LFS pointer",
    ),
    "pointer of Orbax": (
        {"_METADATA": POINTER, "_CHECKPOINT_METADATA": POINTER, "d/1": POINTER},
        ".",
        "is a Git LFS pointer",
    ),
    # Folders whose weights go by another name.
    "diffusers": (
        {"pytorch_lora_weights.safetensors": factors()},
        ".",
        r"holds one file: name it, '.*pytorch_lora_weights\.safetensors'",
    ),
    "kohya": ({"my.safetensors": factors()}, ".", r"name it, '.*my\.safetensors'"),
    "two files": (
        {"a.safetensors": factors(), "b.safetensors": factors()},
        ".",
        r"holds 'a\.safetensors', 'b\.safetensors': name one",
    ),
    "steps of mlx": (
        {"adapter_config.json": MLX, "0000100_adapters.safetensors": factors()},
        ".",
        r"'0000100_adapters\.safetensors'.*mlx-lm.*copy one to adapters\.safetensors",
    ),
    "shards": (
        {
            "adapter_config.json": LORA,
            "adapter_model.safetensors.index.json": {},
            "adapter_model-00001-of-00002.safetensors": factors(),
        },
        ".",
        "saved in shards.*save_pretrained",
    ),
    "an index": (
        {"adapter_model.safetensors.index.json": {}},
        "adapter_model.safetensors.index.json",
        "saved in shards",
    ),
    "a configuration": (
        {"adapter_config.json": LORA, "adapter_model.safetensors": factors()},
        "adapter_config.json",
        "configuration alone: name its folder",
    ),
    "no configuration": (
        {"adapters.safetensors": factors()},
        "adapters.safetensors",
        r"adapter_config\.json' is missing",
    ),
    "no weights": (
        {"adapter_config.json": LORA},
        ".",
        r"adapter_model\.safetensors' is missing",
    ),
    # Folders of folders.
    "checkpoints": (
        {
            "checkpoint-1000/adapter_config.json": LORA,
            "checkpoint-200/adapter_config.json": LORA,
            "trainer_state.json": {},
        },
        ".",
        "name one of them, 'checkpoint-200', 'checkpoint-1000'",
    ),
    "adapters of PEFT by name": (
        {"ranking/adapter_config.json": LORA, "ranking/adapter_model.safetensors": b""},
        ".",
        "name one of them, 'ranking'",
    ),
    "steps": (
        {"100/x": b"", "200/x": b""},
        ".",
        "one of the steps in it, such as '200'",
    ),
    # Whole models.
    "model": (
        {"model.safetensors": WHOLE, "config.json": {}},
        ".",
        r"model\.safetensors' holds a whole model's weights.*para_jax\.extract",
    ),
    "one shard": (
        {
            "adapter_model-00001-of-00002.safetensors": factors(),
            "adapter_model-00002-of-00002.safetensors": factors(),
        },
        "adapter_model-00001-of-00002.safetensors",
        r"00001-of-00002\.safetensors' is part of an adapter that was saved in shards",
    ),
    "sharded model": (
        {
            "model-00001-of-00002.safetensors": WHOLE,
            "model.safetensors.index.json": {},
        },
        ".",
        "a whole model's weights",
    ),
    "a model's file": (
        {"model.safetensors": WHOLE},
        "model.safetensors",
        r"no LoRA factors \(2 tensors: 'model.*norm.*\)\. It looks like a whole model",
    ),
    "DeepSpeed": (
        {"zero_to_fp32.py": b"", "global_step10/x.pt": b""},
        ".",
        "DeepSpeed checkpoint",
    ),
    # Files of others.
    **{
        f"a file {end}": ({f"x{end}": b"??"}, f"x{end}", what)
        for end, what in {
            ".bin": "is a pickle.*never opened",
            ".pt": "is a pickle.*never opened",
            ".pth": "is a pickle",
            ".ckpt": "is a pickle",
            ".PT": "is a pickle",
            ".npz": "NumPy archive.*mlx-examples.*num_layers",
            ".npy": "single NumPy array",
            ".lora.h5": "is not a whole HDF5 file",
            ".weights.h5": r"HDF5 file, as Keras writes a whole model.*keras_tree",
            ".keras": "as Keras writes",
            ".gguf": "GGUF file, llama.cpp",
            ".msgpack": "Flax serialised",
            ".distcp": "torch.distributed.checkpoint",
            ".zip": "archive: unpack",
            ".nemo": "archive: unpack",
        }.items()
    },
    **{
        f"a folder with {name}": (
            {"adapter_config.json": LORA, name: b"??"},
            ".",
            what,
        )
        for name, what in {
            "adapter_model.bin": r"adapter_model\.bin' is a pickle",
            "adapters.npz": r"adapters\.npz' is a NumPy archive",
            "x.lora.h5": r"x\.lora\.h5' is an HDF5 file",
            "adapter.gguf": r"adapter\.gguf' is a GGUF file",
        }.items()
    },
    # Tensors of others.
    "another's tensors": (
        {
            "adapter_config.json": LORA,
            "adapter_model.safetensors": tensors("a", "b", "c", "d"),
        },
        ".",
        r"no LoRA factors \(4 tensors: 'a', 'b', 'c' and 1 more\)",
    ),
    "mlx's factors": (
        {"x.safetensors": tensors("q.lora_a", "q.lora_b")},
        "x.safetensors",
        r"'q\.lora_a'",
    ),
    "ZeRO-3": (
        {
            "adapter_config.json": LORA,
            "adapter_model.safetensors": tensors(
                f"{Q}A.weight", f"{Q}B.weight", shape=(0,)
            ),
        },
        ".",
        r"q_proj' has empty factors: A \[0\], B \[0\].*ZeRO-3.*zero_to_fp32",
    ),
    "ZeRO-3 in one file": (
        {
            "x.safetensors": tensors(
                "q.lora_down.weight", "q.lora_up.weight", shape=(0,)
            )
        },
        "x.safetensors",
        r"'q\.lora_\w+\.weight' is empty.*ZeRO-3",
    ),
    "quantised": (
        {
            "adapter_config.json": LORA,
            "adapter_model.safetensors": tensors(f"{Q}A.weight", dtype=np.int8),
        },
        ".",
        r"q_proj\.lora_A\.weight'.*int8.*bitsandbytes",
    ),
}


def place(folder, files):
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


@pytest.fixture
def source(request, tmp_path):
    files, name, match = FOUND[request.param]
    (tmp_path / "src").mkdir()
    place(tmp_path / "src", files)
    return tmp_path / "src" / name, match


every_row = pytest.mark.parametrize("source", FOUND, indirect=True)
COMMANDS = {
    "inspect": [],
    "convert": ["DST"],
    "compress": ["DST", "--gamma", "0.5"],
    "sweep": ["DST", "--gamma", "0.5", "0.25"],
}


@every_row
def test_loading_says_what_was_found(source):
    path, match = source

    with pytest.raises((ValueError, FileNotFoundError), match=match) as caught:
        para.load(path)
    assert not re.search(r"\w+Error\b", str(caught.value))


@pytest.mark.parametrize("command", COMMANDS)
@every_row
def test_every_command_ends_with_2_and_one_sentence(source, command, tmp_path, capsys):
    path, match = source
    words = [str(tmp_path / "dst") if x == "DST" else x for x in COMMANDS[command]]
    one_file = path.suffix == ".safetensors" and path.name != "adapters.safetensors"
    if command in ("convert", "compress"):
        words[0] += ".safetensors" * one_file
        words[0] += ".lora.h5" * path.name.endswith(".lora.h5")

    status = cli.main([command, str(path), *words])

    out, err = capsys.readouterr()
    assert (status, out) == (2, ""), err
    assert err.startswith("para: ")
    assert err.count("\n") == 1
    assert re.search(match, err)
    assert not re.search(r"Traceback|\w+Error\b", err)
    assert {x.name for x in tmp_path.iterdir()} == {"src"}


@every_row
def test_a_fleet_says_it_too(source, tmp_path, capsys):
    """Exit with 2 if no input is an adapter, and with 1 if every adapter fails."""
    path, match = source

    status = cli.main(["fleet", str(path), str(tmp_path / "dst"), "--gamma", "0.5"])

    out, err = capsys.readouterr()
    assert status in (1, 2)
    said = " ".join((out + err).split())
    missing = path.name == "nowhere" or "does not exist" in match
    assert re.search("matches no adapter" if missing else match, said)
    assert not re.search(r"Traceback|\w+Error\b", said)


def test_a_folder_that_is_named_like_a_file_is_read_as_a_folder(tmp_path):
    adapters = {"q": para.Adapter(np.ones((5, 2)), np.ones((2, 3)))}
    para.save(adapters, tmp_path / "x.safetensors")

    assert (tmp_path / "x.safetensors").is_dir()
    assert para.load(tmp_path / "x.safetensors").adapters.keys() == {"q"}


def test_a_broken_tenant_does_not_stop_the_others(tmp_path, capsys):
    adapters = {"q": para.Adapter(np.ones((5, 2)), np.ones((2, 3)))}
    para.save(adapters, tmp_path / "in/a")
    place(
        tmp_path / "in/b",
        {"adapter_config.json": LORA, "adapter_model.safetensors": POINTER},
    )

    words = ["fleet", str(tmp_path / "in/*"), str(tmp_path / "out"), "--gamma", "1"]
    assert cli.main(words) == 1

    assert (tmp_path / "out/a/adapter_model.safetensors").exists()
    assert "git lfs pull" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("name", ["x.sft", "x.SAFETENSORS"])
def test_a_single_file_is_known_by_its_other_endings(name, tmp_path):
    (tmp_path / name).write_bytes(
        tensors("q.lora_down.weight", "q.lora_up.weight", shape=(1, 1))
    )

    assert para.load(tmp_path / name).adapters.keys() == {"q"}


def test_a_file_that_is_all_shards_is_read(tmp_path):
    name = "x-00001-of-00001.safetensors"
    (tmp_path / name).write_bytes(
        tensors("q.lora_down.weight", "q.lora_up.weight", shape=(1, 1))
    )

    assert para.load(tmp_path / name).adapters.keys() == {"q"}


def test_adapters_in_a_folder_are_listed_by_their_names(tmp_path):
    files = ("adapter_config.json", LORA), ("adapter_model.safetensors", factors())
    names = ["step-10", "b", "step-9", "a"]
    place(tmp_path, {f"{name}/{x}": data for name in names for x, data in files})

    with pytest.raises(ValueError, match="name one of them, 'a', 'b', 'step-9' and 1"):
        para.load(tmp_path)


@pytest.mark.parametrize("name", ["non_lora_trainables.bin", "value_head.safetensors"])
def test_what_was_trained_beside_an_adapter_is_told(name, tmp_path, capsys):
    """A child's reward model, or projector, would belong to another adapter."""
    files = {"adapter_config.json": LORA, "adapter_model.safetensors": factors()}
    place(tmp_path / "src", files | {name: b"x"})

    with pytest.warns(UserWarning, match=rf"{name}' was trained with this adapter"):
        para.load(tmp_path / "src")

    status = cli.main(["convert", str(tmp_path / "src"), str(tmp_path / "dst")])
    assert status == 0
    assert capsys.readouterr().err.count("Copy it beside every child") == 1
