"""What each serving engine takes: the form of the file, its ranks, its modules. Host.

From the engines' sources, named below. `consumers.py` has their rules of scaling, and
`serving.py` makes what they take.
"""

import dataclasses
from typing import Literal

from para_jax.formats.profiles import Profile

Format = Literal["peft", "orbax", "kohya", "mlx"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What an engine takes.

    Attributes:
      form: The format of the file, see `para_jax.save`.
      profile: The form of the ranks and alphas.
      kinds: The kinds of layers that it serves.
      biases: Whether it adds the bias of an update.
      plain: Whether it refuses, or passes over, tensors that are no factors.
      ranks: The ranks that its buffers can have; any if empty.
      exact: Whether the file has to have one of these ranks.
      buffers: Whether it holds every module at the rank of its buffers.
      fused: Whether q, k and v, and gate and up, have to be there together.
      even: Whether the experts of one layer have to have one rank.
      every: Whether a type of module has to be there in all layers.
      unseen: Modules that it leaves out without a word.
      hugging_face: Whether it finds modules by Hugging Face's names alone.
      layouts: The layouts whose trees it runs, where its format is a tree.
      note: What else to know.
    """

    form: Format = "peft"
    profile: Profile = "ragged"
    kinds: tuple[str, ...] = ("linear",)
    biases: bool = False
    plain: bool = True
    ranks: tuple[int, ...] = ()
    exact: bool = False
    buffers: bool = False
    fused: bool = False
    even: bool = False
    every: bool = False
    unseen: tuple[str, ...] = ()
    hugging_face: bool = True
    layouts: tuple[str, ...] = ()
    note: str = ""


ENGINES: dict[str, Engine] = {
    "peft": Engine(
        kinds=("linear", "embedding", "conv", "experts"),
        biases=True,
        plain=False,
        hugging_face=False,
        note="Reads all that is written.",
    ),
    "vllm": Engine(  # vllm/lora/peft_helper.py, vllm/config/lora.py
        ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
        buffers=True,
        even=True,
        note="Start it with --max-lora-rank set to the allocated rank.",
    ),
    "sglang": Engine(  # srt/lora/lora.py, srt/lora/mem_pool.py
        profile="padded",
        buffers=True,
        fused=True,
        note="All tensors have the shape of its buffers.",
    ),
    "lorax": Engine(  # server/lorax_server/adapters/lora.py, utils/sgmv.py
        profile="padded",
        ranks=(8, 16, 32, 64, 128),
        exact=True,
        buffers=True,
        every=True,
        note=(
            "Pads other ranks itself, and then scales the next modules by that; of n "
            "devices, it takes 8 n for 8."
        ),
    ),
    "llamacpp": Engine(  # convert_lora_to_gguf.py, src/llama-adapter.h
        profile="per-tensor-alpha",
        kinds=("linear", "embedding"),
        even=True,
        note="Convert with convert_lora_to_gguf.py.",
    ),
    "tensorrt-llm": Engine(  # tensorrt_llm/lora_manager.py
        profile="per-tensor-alpha",
        even=True,
        unseen=("lm_head", "embed_tokens"),
        note="Build it with max_lora_rank of at least the rank.",
    ),
    "diffusers": Engine(  # src/diffusers/utils/peft_utils.py
        kinds=("linear", "conv"),
        note=(
            "load_lora_adapter(folder, weight_name='adapter_model.safetensors', "
            "prefix='base_model.model'); before #14409 it scales unequal ranks wrongly."
        ),
    ),
    "comfyui": Engine(  # comfy/weight_adapter/lora.py
        form="kohya", kinds=("linear", "conv"), note="One file, an alpha a module."
    ),
    "mlx": Engine(  # mlx_lm/tuner/utils.py, tuner/lora.py
        form="mlx",
        profile="padded",
        kinds=("linear", "embedding", "experts"),
        buffers=True,
        note="mlx_lm.generate --adapter-path with the folder.",
    ),
    "gemma": Engine(  # gemma/gm/nn/_lora.py: one `rank`, and no alpha
        form="orbax",
        profile="padded",
        plain=False,
        layouts=("gemma",),
        note="gm.nn.LoRA(rank=the rank).",
    ),
    "tunix": Engine(  # qwix.LoraProvider(rank=, alpha=): one of each
        form="orbax",
        profile="padded",
        plain=False,
        layouts=("tunix", "qwix"),
        note="rank and alpha: the rank.",
    ),
}


def known(name: str) -> Engine:
    """Returns what an engine takes.

    Example:
      >>> from para_jax.formats import engines
      >>> engines.known("sglang").profile, engines.known("comfyui").form
      ('padded', 'kohya')

    Raises:
      ValueError: if it is none of `ENGINES`.
    """
    if name not in ENGINES:
        raise ValueError(f"Unknown engine '{name}': expected one of {list(ENGINES)}.")
    return ENGINES[name]
