"""Run LMDeploy's own loading of adapters into modules of a Llama's shapes.

Its packages are imported one by one, since the root would import the whole server. Its
kernel is compiled for a GPU, which may be absent, and is not run. `torch.empty` is
filled with NaN, which exposes entries without loaded values.
"""

import importlib.metadata
import importlib.util
import pathlib
import sys

import numpy as np
import torch
import triton
from triton.backends.compiler import GPUTarget

sys.path.append(str(pathlib.Path(__file__).parent))

import answers
import stand_ins

(ROOT,) = importlib.util.find_spec("lmdeploy").submodule_search_locations
stand_ins.without_init("lmdeploy", pathlib.Path(ROOT))

from lmdeploy.pytorch.kernels.cuda import fused_lora
from lmdeploy.pytorch.models.patch import add_adapters
from lmdeploy.pytorch.nn.linear import lora as lora_layer


class NoKernels:
    """Stand in for the backend: the real kernels are Triton's, for GPUs."""

    def build_op(self, *_, **__) -> None:
        return None


lora_layer.get_backend = NoKernels

PACKED = {
    "qkv_proj": ["q_proj", "k_proj", "v_proj"],
    "gate_up_proj": ["gate_proj", "up_proj"],
}


class Linear(torch.nn.Module):
    """Provide the parts of a linear layer that `add_adapters` uses, for one device."""

    def __init__(self, inputs: int, outputs: list[int]):
        super().__init__()
        self.in_features, self.out_features = inputs, sum(outputs)
        self.all_out_features = outputs
        self.colwise, self.is_tp = True, False
        self.lora_adapters = torch.nn.ModuleDict()


def model(config) -> torch.nn.Module:
    hidden, wide = config.hidden_size, config.intermediate_size
    heads = config.num_attention_heads * config.head_dim
    kv = config.num_key_value_heads * config.head_dim
    layers = []
    for _ in range(config.num_hidden_layers):
        attention, mlp = torch.nn.Module(), torch.nn.Module()
        attention.qkv_proj = Linear(hidden, [heads, kv, kv])
        attention.o_proj = Linear(heads, [hidden])
        mlp.gate_up_proj = Linear(hidden, [wide, wide])
        mlp.down_proj = Linear(wide, [hidden])
        layer = torch.nn.Module()
        layer.self_attn, layer.mlp = attention, mlp
        layers.append(layer)
    whole = torch.nn.Module()
    whole.model = torch.nn.Module()
    whole.model.layers = torch.nn.ModuleList(layers)
    whole.packed_modules_mapping, whole.ctx_mgr = PACKED, None
    return whole


def loaded(path: str, config, _: int) -> dict[str, np.ndarray]:
    """Return `s B A` of each module with an adapter."""
    whole = model(config)
    add_adapters(whole, {"one": path}, dtype=torch.float32, device=torch.device("cpu"))
    found = {}
    for name, module in whole.named_modules():
        for target, lora in getattr(module, "lora_adapters", {}).items():
            scale = lora.adapter_info.scalings[1].item()
            product = lora.lora_B.double().T @ lora.lora_A.double()
            owner = name.rpartition(".")[0]
            found[f"{owner}.{target}"] = scale * product.numpy()
    return found


POINTERS = {
    "scaling_ptr": "*fp32",
    **dict.fromkeys(("a_ptr", "lora_a_ptr", "lora_b_ptr", "c_ptr"), "*fp16"),
    **dict.fromkeys(("rank_start_ptr", "ranks_ptr", "adapter_ids_ptr"), "*i64"),
    **dict.fromkeys(("seq_start_ptr", "seq_lens_ptr"), "*i64"),
}
WIDTH = 4096


def refusal(rank: int) -> str:
    """Compile the kernel for a rank as `fused_lora` does, and return any error."""
    kernel = fused_lora._fused_lora_kernel.fn
    given = fused_lora.get_autotune_config()[0]
    values = {
        **dict.fromkeys(("stride_ak", "stride_lak", "stride_lbn", "stride_cn"), 1),
        **dict.fromkeys(("N", "K", "stride_lar", "stride_lbr"), WIDTH),
        **given.kwargs,
        "BLOCK_SIZE_R": max(16, rank),
        "CUM": True,
    }
    types = POINTERS | {"stride_am": "i32", "stride_cm": "i32"}
    source = triton.compiler.ASTSource(
        fn=kernel,
        signature={x: types.get(x, "constexpr") for x in kernel.arg_names},
        constexprs={(kernel.arg_names.index(x),): y for x, y in values.items()},
    )
    options = {"num_warps": given.num_warps, "num_stages": given.num_stages}
    try:
        triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    except triton.CompilationError as error:
        return str(error.__cause__)
    return ""


if __name__ == "__main__":
    torch.use_deterministic_algorithms(True)
    refused = {rank: refusal(rank) for rank in (8, 16, 17, 24, 32, 256)}
    answers.write(loaded, importlib.metadata.version("lmdeploy"), ranks=refused)
