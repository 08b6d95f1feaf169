"""The names that the words of a command may be, in the order of the help.

The tables of the library hold the code behind them, and import JAX: that takes longer
than all else in a process that prints its help or a mistake.
"""

ENGINES = (
    *("peft", "vllm", "tpu-inference", "sglang", "sglang-jax", "lorax", "lmdeploy"),
    *("llamacpp", "tensorrt-llm", "diffusers", "comfyui", "mlx", "sd-scripts"),
    *("gemma", "tunix"),
)
"""The keys of `para_jax.formats.ENGINES`."""

LAYOUTS = (
    *("nnx", "qwix", "tunix", "gemma", "maxtext", "maxtext-qwix", "lorax"),
    *("keras", "levanter", "tx", "linen"),
)
"""The keys of `para_jax.layouts.LAYOUTS`."""

MODELS = (
    *("gemma", "llama3", "llama3.1", "mistral", "qwen2.5", "qwen3", "gemma2", "gemma3"),
    *("mixtral", "qwen3-moe", "deepseek-v3", "gpt-oss", "llama4", "llama4-multimodal"),
    *("qwen3-next", "gemma4", "gemma4-multimodal"),
    *("bert", "roberta", "vit", "siglip", "siglip2", "dinov3", "gemma3-multimodal"),
)
"""The keys of `para_jax.names.MODELS`."""

BUDGETS = {
    "gamma": "keep this share of all ranks, in (0, 1]",
    "rank": "keep this many ranks per module, on average",
    "epsilon": "keep this share of the energy, in (0, 1]",
    "threshold": "keep singular values at or above this one",
    "params": "keep at most this many parameters, such as 100k",
    "bytes": "keep at most this many bytes of factors, such as 1.5MB",
}
"""The kinds of the policies, and the help of the flag of each."""
