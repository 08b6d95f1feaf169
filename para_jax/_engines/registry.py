"""The table of serving engines: file format, ranks and modules of each.

Each row is known from running the engine or from reading its sources, and says which
and the version. `para_jax/formats/verify.py` has the rules of scaling, `prepare.py`
converts a checkpoint by a row.
"""

import dataclasses

from para_jax._engines.rules import Engine, Evidence, OneFile

# PEFT saves a copy of the base's own tensor beside an adapted embedding.
_BASE_EMBEDDINGS = ("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")
_VLLM = Engine(
    ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
    kinds=("linear", "embedding", "experts"),
    heads=("score", "classifier"),
    skips=_BASE_EMBEDDINGS,
    buffers=True,
    paired=True,
    known=Evidence(
        "run",
        "0.32.0 on CPU; 0.33.0 read",
        "2026-12",
        "lora/peft_helper.py, lora/lora_model.py, lora/model_manager.py, "
        "lora/utils.py, config/lora.py",
    ),
    note="Start it with --max-lora-rank set to the allocated rank.",
)

ENGINES: dict[str, Engine] = {
    "peft": Engine(
        reads=("hf", "module", "original", "jax"),
        names="module",
        kinds=("linear", "embedding", "conv", "experts"),
        biases=True,
        replicates=True,
        plain=False,
        known=Evidence("run", "0.21.2", "2026-11", "tests/interop"),
        note="Reads all that is written. To hot-swap adapters, write them padded.",
    ),
    "vllm": _VLLM,
    "tpu-inference": dataclasses.replace(
        _VLLM,
        # The pipelines of a TPU for the others were not looked at.
        kinds=("linear", "embedding"),
        heads=(),
        paired=False,
        known=Evidence(
            "in part",
            "0.32.0",
            "2026-11",
            "its bgmv in JAX; vLLM loads the adapters",
        ),
    ),
    "sglang": Engine(
        profile="padded",
        kinds=("linear", "embedding"),
        skips=_BASE_EMBEDDINGS,
        buffers=True,
        fused=True,
        known=Evidence(
            "in part", "0.5.23", "2026-12", "srt/lora/lora.py, srt/lora/mem_pool.py"
        ),
        note="All tensors have the shape of its buffers.",
    ),
    "sglang-jax": Engine(
        only=(
            "q_proj",
            "k_proj",
            "v_proj",
            "o_proj",
            "gate_proj",
            "up_proj",
            "down_proj",
        ),
        buffers=True,
        known=Evidence(
            "in part",
            "cddbf6f",
            "2026-12",
            "sgl_jax/srt/lora/lora_config.py, lora_memory_pool.py, lora_manager.py",
        ),
        note="Start it with --max-lora-rank of at least the rank.",
    ),
    "lorax": Engine(
        profile="padded",
        ranks=(8, 16, 32, 64, 128),
        exact=True,
        buffers=True,
        every=True,
        known=Evidence(
            "in part",
            "a7394ba",
            "2026-12",
            "lorax_server/adapters/lora.py, utils/punica.py",
        ),
        note=(
            "Pads other ranks itself, and then scales the next modules by that; of n "
            "devices, it takes 8 n for 8."
        ),
    ),
    "lmdeploy": Engine(
        profile="padded",
        # Its kernel is compiled for these: a rank above 16 must be a power of two.
        ranks=(*range(1, 17), 32, 64, 128, 256),
        exact=True,
        buffers=True,
        every=True,
        short=True,
        known=Evidence(
            "in part",
            "0.18.0",
            "2026-12",
            "lmdeploy/pytorch/models/patch.py, adapter/adapter.py, nn/linear/lora.py, "
            "kernels/cuda/fused_lora.py",
        ),
        note=(
            "PytorchEngineConfig(adapters={NAME: FOLDER}); a layer that lacks a module "
            "computes with memory that nothing was written to."
        ),
    ),
    "llamacpp": Engine(
        profile="per-tensor-alpha",
        kinds=("linear", "embedding"),
        skips=(".base_layer.weight",),
        whole=True,
        known=Evidence(
            "run",
            "b11549, script 0c1e570",
            "2026-11",
            "convert_lora_to_gguf.py, src/llama-adapter.h",
        ),
        note="Convert with convert_lora_to_gguf.py; --outtype auto fails there.",
    ),
    "tensorrt-llm": Engine(
        profile="per-tensor-alpha",
        unseen=("lm_head", "embed_tokens"),
        known=Evidence("read", "037d4ba", "2026-11", "tensorrt_llm/lora_manager.py"),
        note="Build it with max_lora_rank of at least the rank.",
    ),
    "diffusers": Engine(
        reads=(),
        names="module",
        one_file=OneFile(
            "kohya",
            "diffusers",
            "pipe.load_lora_weights(file); right since 0.40.0.",
        ),
        kinds=("linear", "conv"),
        known=Evidence(
            "run",
            "0.42.1",
            "2026-11",
            "loaders/peft.py, loaders/lora_base.py, utils/peft_utils.py",
        ),
        note=(
            "model.load_lora_adapter(folder, weight_name='adapter_model.safetensors', "
            "prefix='base_model.model'); before 0.40.0 it scales unequal ranks wrongly."
        ),
    ),
    "comfyui": Engine(
        form="kohya",
        reads=("kohya", "comfyui"),
        names="comfyui",
        kinds=("linear", "conv"),
        adds=(
            *(".diff", ".diff_b", ".w_norm", ".b_norm"),
            *(".set_weight", ".reshape_weight"),
        ),
        known=Evidence(
            "in part",
            "a125cd8",
            "2026-11",
            "comfy/lora.py, comfy/weight_adapter/lora.py",
        ),
        note="Put the file into models/loras.",
    ),
    "mlx": Engine(
        form="mlx",
        profile="padded",
        kinds=("linear", "embedding", "experts"),
        buffers=True,
        known=Evidence(
            "run",
            "0.32.2 on CPU",
            "2026-12",
            "tuner/utils.py, tuner/lora.py; tests/engines/test_mlx.py",
        ),
        note="mlx_lm.generate --adapter-path with the folder.",
    ),
    "sd-scripts": Engine(
        form="kohya",
        reads=("kohya",),
        names="kohya",
        kinds=("linear", "conv"),
        known=Evidence("in part", "48d368f", "2026-11", "networks/lora.py"),
        note="--network_weights FILE; Wan is musubi-tuner's.",
    ),
    "gemma": Engine(
        form="orbax",
        profile="padded",
        plain=False,
        layouts=("gemma",),
        known=Evidence(
            "run", "3.3.0; 4.0.1", "2026-12", "gm/nn/_lora.py; tests/interop/layouts"
        ),
        note="gm.nn.LoRA(rank=the rank).",
    ),
    "tunix": Engine(
        form="orbax",
        profile="padded",
        plain=False,
        layouts=("tunix", "qwix"),
        known=Evidence(
            "run", "0.1.7", "2026-12", "qwix.LoraProvider; tests/interop/layouts"
        ),
        note="rank and alpha: the rank.",
    ),
}


def known(name: str) -> Engine:
    """Look an engine up by name.

    Example:
      >>> from para_jax.formats import known
      >>> known("sglang").profile, known("comfyui").form
      ('padded', 'kohya')

    Raises:
      ValueError: if it is none of `ENGINES`.
    """
    if name not in ENGINES:
        raise ValueError(f"Unknown engine '{name}': expected one of {list(ENGINES)}.")
    return ENGINES[name]
