"""Run llama.cpp's two conversion scripts, and then its server, in this process.

The scripts are those of the source distribution of llama-cpp-python; the server is
xllamacpp's. It is asked for all log-probabilities, and reports those of the whole
vocabulary for each new token.
"""

import importlib.metadata
import json
import os
import pathlib
import runpy
import sys

import numpy as np
import sentencepiece
import xllamacpp


def tokenizer(folder: pathlib.Path, size: int) -> None:
    """Write a tokenizer of `size` pieces, needed to convert a model."""
    text = folder / "text.txt"
    random = np.random.default_rng(0)
    words = ["".join(random.choice(list("abcdefghij"), 5)) for _ in range(400)]
    text.write_text("\n".join(" ".join(random.choice(words, 8)) for _ in range(400)))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=size,
        model_type="bpe",
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        minloglevel=2,
    )
    text.unlink()


def scripts() -> pathlib.Path:
    (found,) = pathlib.Path(os.environ["ENGINES_SOURCES"]).glob("llama_cpp_python-*/")
    return found / "vendor" / "llama.cpp"


def convert(script: str, *words: str) -> str:
    """Run one of the scripts in this process, and return its error if it fails.

    A process of its own would import PyTorch and transformers again.
    """
    path = scripts() / script
    sys.argv = [str(path), *words]
    sys.path.insert(0, str(path.parent))
    try:
        runpy.run_path(str(path), run_name="__main__")
    except SystemExit as stop:
        return str(stop.code or "")
    except Exception as error:  # What it says is what is wanted.
        return f"{type(error).__name__}: {error}"
    finally:
        sys.path.remove(str(path.parent))
    return ""


def server(model: pathlib.Path, adapter: pathlib.Path | None) -> xllamacpp.Server:
    params = xllamacpp.CommonParams()
    params.model.path = str(model)
    params.n_ctx = 256
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.warmup = False
    params.cache_prompt = False
    params.verbosity = 0
    params.flash_attn_type = (
        xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    )
    params.cache_type_k = xllamacpp.ggml_type.GGML_TYPE_F32
    params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(str(adapter), 1.0)]
    return xllamacpp.Server(params)


def computed(running, prompts, new: int, size: int) -> dict[str, np.ndarray]:
    steps, tokens = [], []
    for prompt in prompts:
        answer = running.handle_completions(
            {
                "prompt": prompt,
                "max_tokens": new,
                "temperature": 0.0,
                "logprobs": size,
            }
        )
        chosen = answer["choices"][0]["logprobs"]["content"]
        rows = np.full((new, size), np.nan, np.float32)
        for row, step in zip(rows, chosen, strict=True):
            for entry in step["top_logprobs"]:
                row[entry["id"]] = entry["logprob"]
        steps.append(rows)
        tokens.append([x["id"] for x in chosen])
    return {"steps": np.stack(steps), "tokens": np.array(tokens)}


def main() -> None:
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    out, base = pathlib.Path(job["out"]), pathlib.Path(job["model"])
    size = json.loads((base / "config.json").read_text())["vocab_size"]
    tokenizer(base, size)
    version = importlib.metadata.version("xllamacpp")
    facts, arrays = {"version": version, "refused": {}}, {}
    gguf = out / "base.gguf"
    words = ("--outtype", "f32", "--outfile")
    if failed := convert("convert_hf_to_gguf.py", *words, str(gguf), str(base)):
        raise RuntimeError(failed)
    for number, (label, path) in enumerate([("base", ""), *job["adapters"].items()]):
        adapter = out / f"{number}.gguf" if path else None
        if adapter:
            options = ("--base", str(base), *words, str(adapter), path)
            if failed := convert("convert_lora_to_gguf.py", *options):
                facts["refused"][label] = failed
                continue
        found = computed(server(gguf, adapter), job["tokens"], job["new"], size)
        arrays |= {f"{label}/{name}": x for name, x in found.items()}
    np.savez(out / "arrays.npz", **arrays)
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
