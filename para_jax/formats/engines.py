"""What each serving engine takes: the form of the file, its ranks, its modules. Host.

From running the engines, or from their sources: each row says which, and the version.
`consumers.py` has their rules of scaling, and `serving.py` makes what they take.
"""

import dataclasses
from typing import Literal, NamedTuple

from para_jax.diffusion import Scheme, Target
from para_jax.formats.profiles import Profile

Format = Literal["peft", "orbax", "kohya"]


class Evidence(NamedTuple):
    """How a row is known.

    Attributes:
      how: `run`: the engine loaded our files and its outputs were compared; `in part`:
        its own code that loads adapters was run, and what it loaded compared; `read`.
      version: The release or commit.
      date: When, as year and month.
      source: The files of the engine that decide, or the tests that run it.
    """

    how: Literal["run", "in part", "read"]
    version: str
    date: str
    source: str


class OneFile(NamedTuple):
    """How an engine of PEFT folders reads a single file too.

    Attributes:
      names: The scheme of the names in it.
      note: How to load it.
    """

    names: Target
    note: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Engine:
    """What an engine takes.

    Attributes:
      form: The format of the file, see `para_jax.save`.
      profile: The form of the ranks and alphas.
      reads: The schemes of names that it finds modules by, see
        `para_jax/diffusion/schemes.py`; `jax` are the paths of a JAX tree.
      names: The scheme that other names are converted to, if they are.
      one_file: Its single file, if it reads one besides `form`.
      kinds: The kinds of layers that it serves.
      only: The last names of all modules that it serves; any if empty.
      biases: Whether it adds the bias of an update.
      plain: Whether it refuses, or passes over, tensors that are no factors.
      skips: The ends of names of such tensors that it rightly passes over.
      ranks: The ranks that its buffers can have; any if empty.
      exact: Whether the file has to have one of these ranks.
      buffers: Whether it holds every module at the rank of its buffers.
      fused: Whether q, k and v, and gate and up, have to be there together.
      even: Whether the experts of one layer have to have one rank.
      whole: Whether a layer has to have all modules of all its experts, or none.
      every: Whether a type of module has to be there in all layers.
      short: Whether it compares `target_modules` with names of types of modules.
      unseen: Modules that it leaves out without a word.
      layouts: The layouts whose trees it runs, where its format is a tree.
      known: How the row is known.
      note: What else to know.
    """

    form: Format = "peft"
    profile: Profile = "ragged"
    reads: tuple[Scheme | Literal["jax"], ...] = ("hf",)
    names: Target | None = None
    one_file: OneFile | None = None
    kinds: tuple[str, ...] = ("linear",)
    only: tuple[str, ...] = ()
    biases: bool = False
    plain: bool = True
    skips: tuple[str, ...] = ()
    ranks: tuple[int, ...] = ()
    exact: bool = False
    buffers: bool = False
    fused: bool = False
    even: bool = False
    whole: bool = False
    every: bool = False
    short: bool = False
    unseen: tuple[str, ...] = ()
    layouts: tuple[str, ...] = ()
    known: Evidence
    note: str = ""


# A copy of the base's own tensor, which PEFT saves beside an adapted embedding.
_BASE_EMBEDDINGS = ("embed_tokens.base_layer.weight", "lm_head.base_layer.weight")
_VLLM = Engine(
    ranks=(1, 8, 16, 32, 64, 128, 256, 320, 512),
    kinds=("linear", "embedding"),
    skips=_BASE_EMBEDDINGS,
    buffers=True,
    even=True,
    known=Evidence(
        "run",
        "0.32.0 on CPU",
        "2026-11",
        "lora/peft_helper.py, lora/lora_model.py, lora/utils.py, config/lora.py",
    ),
    note="Start it with --max-lora-rank set to the allocated rank.",
)

ENGINES: dict[str, Engine] = {
    "peft": Engine(
        reads=("hf", "module", "original", "jax"),
        names="module",
        kinds=("linear", "embedding", "conv", "experts"),
        biases=True,
        plain=False,
        known=Evidence("run", "0.21.2", "2026-11", "tests/interop"),
        note="Reads all that is written. To hot-swap adapters, write them padded.",
    ),
    "vllm": _VLLM,
    "tpu-inference": dataclasses.replace(
        _VLLM,
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
            "in part", "0.5.23", "2026-11", "srt/lora/lora.py, srt/lora/mem_pool.py"
        ),
        note="All tensors have the shape of its buffers.",
    ),
    "sglang-jax": Engine(
        profile="padded",
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
        short=True,
        known=Evidence(
            "in part",
            "cddbf6f",
            "2026-11",
            "sgl_jax/srt/lora/lora_config.py, lora_memory_pool.py, utils.py",
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
            "2026-11",
            "lorax_server/adapters/lora.py, utils/sgmv.py",
        ),
        note=(
            "Pads other ranks itself, and then scales the next modules by that; of n "
            "devices, it takes 8 n for 8."
        ),
    ),
    "llamacpp": Engine(
        profile="per-tensor-alpha",
        kinds=("linear", "embedding"),
        skips=(".base_layer.weight",),
        even=True,
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
        even=True,
        unseen=("lm_head", "embed_tokens"),
        known=Evidence("read", "037d4ba", "2026-11", "tensorrt_llm/lora_manager.py"),
        note="Build it with max_lora_rank of at least the rank.",
    ),
    "diffusers": Engine(
        reads=(),
        names="module",
        one_file=OneFile(
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
        known=Evidence(
            "in part",
            "a125cd8",
            "2026-11",
            "comfy/lora.py, comfy/weight_adapter/lora.py",
        ),
        note="Put the file into models/loras.",
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
            "run", "3.3.0", "2026-11", "gm/nn/_lora.py; tests/interop/layouts"
        ),
        note="gm.nn.LoRA(rank=the rank).",
    ),
    "tunix": Engine(
        form="orbax",
        profile="padded",
        plain=False,
        layouts=("tunix", "qwix"),
        known=Evidence(
            "run", "0.1.7", "2026-11", "qwix.LoraProvider; tests/interop/layouts"
        ),
        note="rank and alpha: the rank.",
    ),
}


def known(name: str) -> Engine:
    """Look an engine up.

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


def form(engine: Engine, *, one_file: bool) -> Format:
    """Choose the format of what is written for an engine.

    Args:
      engine: A value of `ENGINES`.
      one_file: Whether the target is a single file.
    """
    return "kohya" if one_file and engine.one_file else engine.form


def target(engine: Engine, format: Format) -> Target | None:  # noqa: A002
    """Name the scheme that names are converted to, if they are."""
    single = engine.one_file
    return single.names if single and format != engine.form else engine.names


def note(engine: Engine, format: Format) -> str:  # noqa: A002
    """Say how to load what was written."""
    single = engine.one_file
    return single.note if single and format != engine.form else engine.note
