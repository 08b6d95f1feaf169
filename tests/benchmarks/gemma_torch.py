"""Run training steps of transformers' Gemma 3 with PEFT, as its users do."""

import contextlib
import dataclasses
import importlib.metadata
import statistics
import time
from collections.abc import Iterator
from typing import Any

import peft
import torch
import transformers

from tests.benchmarks import gemma_rows
from tests.benchmarks.gemma_rows import RANK, Job, Row
from train.models import gemma3
from train.models.gemma3 import Config

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def rows(name: str, job: Job, config: Config, length: int) -> Iterator[Row]:
    """Yield one row per batch; a row with a reason ends the job."""
    libraries = ("torch", "transformers", "peft")
    versions = [f"{x} {importlib.metadata.version(x)}" for x in libraries]
    row = gemma_rows.blank(
        name,
        job,
        length,
        device=torch.cuda.get_device_name() if DEVICE == "cuda" else "cpu",
        versions=", ".join(versions),
    )
    try:
        model = _model(job, config)
        optimizer = _optimizer(model)
        for batch in job.batches:
            row = dataclasses.replace(row, batch=batch)
            yield _timed(row, job, config, model, optimizer)
    except Exception as error:  # Any error belongs in the table.
        text = " ".join(f"{type(error).__name__}: {error}".split())
        reason = "out of memory" if "out of memory" in text else text[:300]
        yield dataclasses.replace(row, reason=reason)


def _timed(row: Row, job: Job, config: Config, model: Any, optimizer: Any) -> Row:
    shape = (row.batch, row.length)
    ids = torch.randint(1, config.vocab_size, shape, device=DEVICE)
    if DEVICE == "cuda":
        torch.cuda.reset_peak_memory_stats()
    wide = job.form == "float32"
    autocast = torch.autocast(DEVICE, torch.bfloat16) if wide else None

    def step() -> tuple[float, float]:
        begin = time.perf_counter()
        with autocast or contextlib.nullcontext():
            value = model(input_ids=ids, labels=ids, use_cache=False).loss
        value.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(value.detach()), time.perf_counter() - begin  # `float` waits.

    step()
    once = step()[1]
    results = [step() for _ in range(int(min(max(3.0 / once, 3), 20)))]
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return gemma_rows.measured(
        row,
        statistics.median(seconds for _, seconds in results),
        config,
        torch.cuda.max_memory_allocated() if DEVICE == "cuda" else None,
        loss=results[-1][0],
    )


def _optimizer(model: Any) -> torch.optim.Optimizer:
    trained = [x for x in model.parameters() if x.requires_grad]
    return torch.optim.AdamW(trained, lr=1e-4, fused=True)


def _model(job: Job, config: Config) -> Any:
    torch.backends.cuda.matmul.allow_tf32 = True
    model = random(config, job.attention)
    if job.recompute == "full":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    settings = peft.LoraConfig(
        r=RANK,
        lora_alpha=RANK,
        lora_dropout=0.0,
        target_modules=[x.rpartition("/")[2] for x in gemma3.ADAPTED],
        task_type="CAUSAL_LM",
    )
    model = peft.get_peft_model(
        model, settings, autocast_adapter_dtype=job.form == "float32"
    ).train()
    return torch.compile(model) if job.form == "compile" else model


def random(config: Config, attention: str = "sdpa") -> Any:
    """Build transformers' model with random weights, in bfloat16."""
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(DEVICE):
        model = transformers.Gemma3ForCausalLM(_hugging_face(config, attention))
    torch.set_default_dtype(torch.float32)
    return model


def _hugging_face(config: Config, attention: str) -> Any:
    values = dataclasses.asdict(config)
    whole = {"rope_type": "linear", "rope_theta": values.pop("rope_theta")}
    whole["factor"] = values.pop("rope_factor")
    local = {"rope_type": "default", "rope_theta": values.pop("rope_local_base_freq")}
    full = values.pop("global_layers")
    return transformers.Gemma3TextConfig(
        **values,
        layer_types=[
            "full_attention" if i in full else "sliding_attention"
            for i in range(config.num_hidden_layers)
        ],
        rope_parameters={"full_attention": whole, "sliding_attention": local},
        attn_implementation=attention,
    )
