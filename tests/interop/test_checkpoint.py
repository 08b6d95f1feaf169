"""Test reading of sharded transformers files, no further than needed."""

import json
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers

from para_jax._adapters.params import unnest
from train.models import checkpoint, roberta

_STATUS = pathlib.Path("/proc/self/status")
_MEGABYTE = 2**20

# In a process of its own: earlier tests have already raised this one's peak memory.
_MEASURE = """
import json, pathlib, sys
import jax
from train.models import roberta

def memory(key):
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(x.split()[1]) * 1024 for x in lines if x.startswith(key))

folder = pathlib.Path(sys.argv[1])
config = roberta.read_config(folder)
leaves = roberta.leaves(config)
before = memory("VmRSS")
pathlib.Path("/proc/self/clear_refs").write_text("5")  # The peak is counted anew.
params = roberta.load(folder, config, sys.argv[2])
size = sum(x.nbytes for x in jax.tree.leaves(params))
print(json.dumps({"size": size, "peak": memory("VmHWM") - before}))
"""


@pytest.fixture(scope="module")
def model():
    config = transformers.RobertaConfig(
        vocab_size=20000,
        hidden_size=384,
        num_hidden_layers=5,
        num_attention_heads=3,
        intermediate_size=1536,
        max_position_embeddings=19,
    )
    torch.manual_seed(0)
    return transformers.RobertaForMaskedLM(config)


@pytest.fixture(scope="module")
def folder(model, tmp_path_factory):
    path = tmp_path_factory.mktemp("shards")
    model.save_pretrained(path, max_shard_size="20MB")
    return path


def test_shards_of_transformers_hold_the_tensors_of_the_model(model, folder):
    index = json.loads((folder / checkpoint.INDEX).read_text())
    assert len(set(index["weight_map"].values())) > 2
    config = roberta.read_config(folder)

    got = unnest(roberta.load(folder, config))

    state = model.roberta.state_dict()
    for path, leaf in roberta.leaves(config).items():
        parts = [state[name].numpy() for name in leaf.names]
        parts = [x.T if path.endswith("kernel") else x for x in parts]
        want = np.stack(parts) if leaf.stacked else parts[0]
        np.testing.assert_array_equal(got[path], want, err_msg=path)
    assert state.keys() == {x for y in roberta.leaves(config).values() for x in y.names}


@pytest.mark.skipif(not _STATUS.exists(), reason="Linux counts a process's peak memory")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.slow
def test_peak_memory_is_that_of_the_params_and_one_tensor(model, folder, dtype):
    command = [sys.executable, "-c", _MEASURE, str(folder), dtype]
    root = pathlib.Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    got = json.loads(done.stdout)

    largest = max(x.nbytes for x in model.state_dict().values())
    assert largest > 20 * _MEGABYTE
    assert got["size"] / 2 < got["peak"] < got["size"] + largest + 4 * _MEGABYTE
