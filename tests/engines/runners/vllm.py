"""Run vLLM on the CPU: log-probabilities over the vocabulary, and greedy tokens.

Refusals are collected adapter by adapter with `add_lora`, before anything is generated.
With `buffers` in the job, nothing is generated: the runner reports the updates in the
modules' buffers. `classifier` asks for a classifier's scores instead of tokens, and
`fused` says that the files hold the experts of a layer in one parameter.
"""

import json
import os
import pathlib
import sys

os.environ |= {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    # Of `apply_model`, whose function is this file's.
    "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "WARNING",
}

import numpy as np
import vllm
from vllm.lora.request import LoRARequest


def computed(llm, prompts, request, new: int) -> dict[str, np.ndarray]:
    """Compute the same arrays as the tests' `models`: prompt, steps, tokens."""
    wanted = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=new,
        prompt_logprobs=-1,
        logprobs=-1,
        ignore_eos=True,
    )
    prompt, steps, tokens = [], [], []
    for ids in prompts:
        # One by one: those of two prompts fail where an adapter is there, since
        # add_lora_logits has an index for each prompt, not for each of their tokens.
        given = {"prompt_token_ids": ids}
        (output,) = llm.generate(given, wanted, lora_request=request, use_tqdm=False)
        answer = output.outputs[0]
        # After each token of the prompt: the last one's are those of the first answer.
        prompt += [over_vocabulary(x) for x in output.prompt_logprobs[1:]]
        steps.append([over_vocabulary(x) for x in answer.logprobs])
        prompt.append(steps[-1][0])
        tokens.append(list(answer.token_ids))
    return {
        "prompt": np.array(prompt, np.float32),
        "steps": np.array(steps, np.float32),
        "tokens": np.array(tokens),
    }


def classified(llm, prompts, request) -> dict[str, np.ndarray]:
    """Compute the scores of each prompt, `[prompts, classes]`, before any softmax."""
    wanted = vllm.PoolingParams(use_activation=False)
    options = {"pooling_task": "classify", "lora_request": request, "use_tqdm": False}
    found = [llm.encode({"prompt_token_ids": x}, wanted, **options) for x in prompts]
    return {"scores": np.array([x.outputs.data.tolist() for (x,) in found], np.float32)}


def over_vocabulary(found: dict) -> list[float]:
    return [found[token].logprob for token in sorted(found)]


QKV = ("q_proj", "k_proj", "v_proj")
EXPERT = {"mixtral": ("w1", "w2", "w3"), "": ("gate_proj", "down_proj", "up_proj")}


def held(model) -> dict[str, np.ndarray]:
    """Return the `s B A` in a model's buffers, by PEFT's module names."""
    names = EXPERT.get(model.config.model_type, EXPERT[""])
    found = {}
    for path, module in model.named_modules():
        if hasattr(module, "w13_lora_a_stacked"):
            first, last = 0, -1  # Of gate and up.
            a, b = module.w13_lora_a_stacked, module.w13_lora_b_stacked
            pairs = (
                (a[first], b[first]),
                (module.w2_lora_a_stacked[0], module.w2_lora_b_stacked[0]),
                (a[last], b[last]),
            )
            owner = path.partition(".experts")[0]
            for name, (down, up) in zip(names, pairs, strict=True):
                for expert in range(down.shape[1]):
                    product = up[0, expert].double() @ down[0, expert].double()
                    found[f"{owner}.experts.{expert}.{name}"] = product.numpy()
        elif path.endswith(("qkv_proj", "o_proj")) and hasattr(
            module, "lora_a_stacked"
        ):
            owner, _, last = path.rpartition(".")
            for i, name in enumerate(QKV if last == "qkv_proj" else (last,)):
                down, up = module.lora_a_stacked[i], module.lora_b_stacked[i]
                product = up[0, 0].double() @ down[0, 0].double()
                found[f"{owner}.{name}"] = product.numpy()
    return found


def main() -> None:
    job = json.loads(pathlib.Path(sys.argv[1]).read_text())
    out, facts, arrays = pathlib.Path(job["out"]), {"refused": {}}, {}
    facts["version"] = vllm.__version__
    llm = vllm.LLM(
        model=job["model"],
        skip_tokenizer_init=True,
        dtype="float32",
        enforce_eager=True,
        enable_lora=True,
        max_loras=1,
        max_lora_rank=job["max_lora_rank"],
        max_model_len=64,
        max_num_seqs=4,
        max_logprobs=-1,
        **job.get("options", {}),
    )

    def results_of(request):
        if job.get("buffers"):
            return llm.apply_model(held)[0]
        if job.get("classifier"):
            return classified(llm, job["tokens"], request)
        return computed(llm, job["tokens"], request, job["new"])

    results = {} if job.get("buffers") else {"base": results_of(None)}
    for number, (label, path) in enumerate(job["adapters"].items(), start=1):
        fused = job.get("fused", False)
        request = LoRARequest(label, number, path, is_3d_lora_weight=fused)
        try:
            llm.llm_engine.add_lora(request)
        except Exception as error:  # What it says is what is wanted.
            facts["refused"][label] = f"{type(error).__name__}: {error}"
            continue
        results[label] = results_of(request)
        llm.llm_engine.remove_lora(number)
    for label, found in results.items():
        arrays |= {f"{label}/{name}": x for name, x in found.items()}
    np.savez(out / "arrays.npz", **arrays)
    (out / "facts.json").write_text(json.dumps(facts))


if __name__ == "__main__":
    main()
