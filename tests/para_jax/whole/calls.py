"""Define the golden run's calls of the command line, one or several in a row.

They run in a folder of their own; `in/NAME` stands for an input of `inputs.py`. The
calls of the Python interface are in `api.py`.
"""

COMMANDS: dict[str, str | tuple[str, ...]] = {
    "help": "--help",
    "help compress": "compress --help",
    "version": "--version",
    # The policies, each with another limit.
    "gamma": "compress in/minilm out --gamma 0.25",
    "gamma local": "compress in/glyphs out --gamma 0.125 --scope local --json",
    "rank": "compress in/llama out --rank 2 --multiple-of 2 --report report.json",
    "epsilon": "compress in/glyphs out --epsilon 0.95 --max-rank 8",
    "threshold": "compress in/llama out --threshold 4.5 --min-rank 1",
    "params": "compress in/mixed out --params 60 --json",
    "bytes": "compress in/half out --bytes 0.5kB --method qr",
    "gram": "compress in/llama out --gamma 0.5 --method gram",
    # Contents of PEFT folders, and target forms.
    "mixed": "compress in/mixed out --gamma 0.5",
    "layers": "compress in/layers out --rank 2 --profile padded",
    "tied": "compress in/tied out --gamma 0.25",
    "nothing left of a module": "compress in/mixed out --rank 0.5",
    "padded": "compress in/half out --gamma 0.5 --profile padded",
    "by type": "compress in/llama out --rank 2 --profile uniform-by-type",
    "alpha 1": "compress in/llama out --gamma 0.5 --profile per-tensor-alpha",
    "float8": "compress in/llama out --gamma 0.5 --dtype float8_e4m3fn",
    "bfloat16": "compress in/minilm out --gamma 0.0625 --dtype bfloat16",
    "adapters only": "compress in/mixed out --gamma 0.5 --adapters-only",
    "picture": "compress in/llama out --gamma 0.5 --plot ranks.png",
    # Engines.
    "vllm": "compress in/llama out --gamma 0.5 --for vllm",
    "sglang": "compress in/llama out --gamma 0.5 --for sglang",
    "llamacpp": "compress in/llama out --gamma 0.5 --for llamacpp",
    "for mlx": "compress in/llama out --gamma 0.5 --for mlx",
    "comfyui": "compress in/kohya.safetensors out.safetensors --rank 2 --for comfyui",
    "for tunix": "compress in/tunix out --alpha 6 --gamma 0.5 --for tunix",
    "for gemma": "compress in/gemma out --gamma 0.5 --for gemma",
    "engines": "inspect in/llama --engines",
    "engines json": "inspect in/minilm --engines --adapters-only --json",
    # One format to another.
    "peft to mlx": "convert in/llama out --format mlx",
    "peft to orbax": "convert in/mixed out --format orbax",
    "peft to kohya": "convert in/llama out.safetensors --format kohya --json",
    "mlx to peft": "convert in/mlx out --format peft",
    "mlx": "compress in/mlx out --gamma 0.5",
    "kohya": "compress in/kohya.safetensors out.safetensors --gamma 0.5",
    "kohya to peft": "convert in/kohya.safetensors out --format peft",
    "kohya without alphas": (
        "convert in/bare.safetensors out.safetensors --alpha 2 --json"
    ),
    "peft to tunix": (
        "convert in/llama out --format orbax --model llama3 --ecosystem tunix"
    ),
    "peft to maxtext": (
        "convert in/llama out --format orbax --model llama3 "
        "--ecosystem maxtext --head-dim 4 --layers 2"
    ),
    "tunix to peft": (
        "convert in/tunix out --format peft --model llama3 --alpha 6 --head-dim 4"
    ),
    "own names": "convert in/nnx out --format peft --model in/table.toml",
    "names that do not fit": (
        "convert in/mixed out --format orbax --model in/table.toml"
    ),
    "there and back": (
        "compress in/mixed small --gamma 0.75",
        "convert small tree --format orbax",
        "compress tree smaller --gamma 0.5 --format peft",
        "inspect smaller",
    ),
    # Trees.
    "nnx": "compress in/nnx out --gamma 0.5",
    "qwix": "compress in/qwix out --gamma 0.5 --scale 2",
    "maxtext": "compress in/maxtext out --gamma 0.5 --stack-axis 1",
    "linen": "compress in/linen out --gamma 0.5 --layout linen --format peft --scale 1",
    # Looking, and many at once.
    "inspect": "inspect in/mixed",
    "inspect json": "inspect in/minilm --json",
    "inspect a tree": "inspect in/tunix --alpha 6 --plot spectrum.png",
    "sweep": "sweep in/minilm out --gamma 0.5 0.25 --epsilon 0.9",
    "sweep of files": "sweep in/kohya.safetensors out --rank 1 2 --bytes 200 --json",
    "fleet": "fleet in/tenants/*/adapter out --gamma 0.25 --jobs 1",
    "fleet json": "fleet in/tenants/*/adapter in/half out --rank 1 --jobs 1 --json",
    "fleet with a broken one": (
        "fleet in/tenants/*/adapter in/cut-short out --gamma 0.5 --jobs 1"
    ),
    "fleet again": (
        "fleet in/tenants/*/adapter out --gamma 0.25 --jobs 1",
        "fleet in/tenants/*/adapter out --gamma 0.25 --jobs 1 --json",
        "fleet in/tenants/*/adapter out --gamma 0.5 --jobs 1",
    ),
    "overwrite": (
        "compress in/llama out --gamma 0.5",
        "compress in/llama out --gamma 0.25",
        "compress in/llama out --gamma 0.25 --overwrite",
    ),
    # Refusals.
    "nothing there": "compress in/no-such out --gamma 0.5",
    "an empty folder": "inspect in/empty",
    "cut short": "inspect in/cut-short",
    "no tensors": "inspect in/text.safetensors",
    "dora": "compress in/dora out --gamma 0.5",
    "pissa": "compress in/pissa out --gamma 0.5",
    "nan": "compress in/nan out --gamma 0.5",
    "half gone": "inspect in/half-gone",
    "no alpha": "compress in/qwix out --gamma 0.5",
    "an alpha too many": "compress in/llama out --gamma 0.5 --alpha 8",
    "a budget above one": "compress in/llama out --gamma 1.5",
    "no number": "compress in/llama out --gamma lots",
    "no budget": "compress in/llama out",
    "two budgets": "compress in/llama out --gamma 0.5 --rank 2",
    "a budget too small": "compress in/llama out --params 1 --min-rank 1",
    "a target that exists": "compress in/llama . --gamma 0.5",
    "an engine that cannot": "compress in/layers out --gamma 0.5 --for sglang-jax",
    "words that disagree": "compress in/llama out --rank 1 --for vllm --format mlx",
    "a profile of another format": "convert in/llama out --format mlx --profile padded",
    "no such model": "convert in/llama out --format orbax --model gpt",
    "no such command": "squash in/llama out",
}
