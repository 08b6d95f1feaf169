"""Measure time and peak memory of `para` on a large model's adapter, beside PEFT.

    python -m tests.benchmarks.scale
    python -m tests.benchmarks.scale --layers 80 --hidden 8192 --ffn 28672 --shrink 8

The first is shaped like an adapter of Llama-3-8B, the second of Llama-3-70B, both of
rank 64 on all seven projections. Every row is a process of its own, and its memory is
the peak of the whole process, Python and JAX included.

PEFT's `convert_to_lora` forms each update and decomposes it at full size, so it runs on
one layer with widths divided by `--shrink`. Its time for the whole model is scaled up,
by `m n min(m, n)` of each module, and marked by `~`.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

ALPHA_BY_RANK = 2.0  # A common value; it is not 1, so it has to be folded in.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Model:
    """The sizes of a Llama-like model and of its adapter."""

    layers: int
    hidden: int
    kv: int
    ffn: int
    rank: int

    @property
    def projections(self) -> dict[str, tuple[int, int]]:
        """`(m, n)` of the seven projections of a layer."""
        return {
            "self_attn.q_proj": (self.hidden, self.hidden),
            "self_attn.k_proj": (self.hidden, self.kv),
            "self_attn.v_proj": (self.hidden, self.kv),
            "self_attn.o_proj": (self.hidden, self.hidden),
            "mlp.gate_proj": (self.hidden, self.ffn),
            "mlp.up_proj": (self.hidden, self.ffn),
            "mlp.down_proj": (self.ffn, self.hidden),
        }

    @property
    def bytes(self) -> int:
        """The size of the adapter in float32."""
        ends = sum(m + n for m, n in self.projections.values())
        return 4 * self.layers * self.rank * ends

    @property
    def full_svds(self) -> int:
        """The cost of full-size SVDs of all updates, up to a constant factor."""
        return self.layers * sum(
            m * n * min(m, n) for m, n in self.projections.values()
        )

    def shrunk(self, by: int) -> "Model":
        return Model(
            layers=1,
            hidden=self.hidden // by,
            kv=self.kv // by,
            ffn=self.ffn // by,
            rank=self.rank,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """One process: its name, its seconds, and its peak memory in bytes.

    `factor` scales a part up to the whole model; it is 1 for a complete run.
    """

    name: str
    seconds: float
    peak: int
    factor: float = 1.0


def make(folder: pathlib.Path, model: Model) -> None:
    """Write a random adapter with modules of different spectral decay."""
    import safetensors.numpy

    rng = np.random.default_rng(0)
    tensors = {}
    for layer in range(model.layers):
        for name, (m, n) in model.projections.items():
            fall = np.exp(-np.arange(model.rank) * rng.uniform(0.01, 0.2))
            a = rng.standard_normal((model.rank, m), np.float32)
            b = rng.standard_normal((n, model.rank), np.float32) * fall
            path = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{path}.lora_A.weight"] = a
            tensors[f"{path}.lora_B.weight"] = b.astype(np.float32) / m
    folder.mkdir()
    safetensors.numpy.save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": model.rank,
        "lora_alpha": ALPHA_BY_RANK * model.rank,
        "target_modules": [x.rpartition(".")[2] for x in model.projections],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))


def peft_conversion(model: Model) -> float:
    """Return the seconds that PEFT's `convert_to_lora` takes on one model."""
    import warnings

    import peft
    import torch

    shapes = model.projections
    layers = {x.replace(".", "_"): torch.nn.Linear(*mn) for x, mn in shapes.items()}
    base = torch.nn.ModuleDict(layers)
    config = peft.LoraConfig(
        r=model.rank, target_modules=list(layers), init_lora_weights=False
    )
    adapted = peft.get_peft_model(base, config)
    start = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns: a LoRA needs no conversion.
        peft.convert_to_lora(adapted, rank=model.rank // 4)
    return time.perf_counter() - start


def run(name: str, *words: str) -> Row:
    """Run a program to its end."""
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *words], stdout=subprocess.DEVNULL)
    # `getrusage` would return the maximum over all children.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{name} failed: {' '.join(words)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return Row(
        name=name, seconds=time.perf_counter() - start, peak=usage.ru_maxrss * unit
    )


def measured(model: Model, folder: pathlib.Path, shrink: int) -> list[Row]:
    """Measure all rows, with the adapters written below `folder`."""
    sizes = [f"--{x}={y}" for x, y in dataclasses.asdict(model).items()]
    parent, para = str(folder / "parent"), ("-m", "para_jax.cli")
    run("make", "-m", __spec__.name, *sizes, "--make", parent)
    child, orbax, peft = (str(folder / x) for x in ("child", "orbax", "peft"))
    commands = {
        "para compress --gamma 0.25": ("compress", parent, child, "--gamma=0.25"),
        "para convert, PEFT to PEFT": ("convert", parent, peft),
        "para convert, PEFT to Orbax": ("convert", parent, orbax, "--format=orbax"),
        "para convert, Orbax to PEFT": ("convert", orbax, f"{peft}-2", "--format=peft"),
    }
    rows = [run("import jax, for comparison", "-c", "import jax; jax.devices()")]
    rows += [run(name, *para, *words) for name, words in commands.items()]
    if shrink:
        small = model.shrunk(shrink)
        sizes = [f"--{x}={y}" for x, y in dataclasses.asdict(small).items()]
        row = run(
            "PEFT", "-m", __spec__.name, *sizes, "--peft", str(folder / "seconds")
        )
        seconds = float((folder / "seconds").read_text())
        name = f"PEFT convert_to_lora, 1 layer, 1/{shrink}"
        factor = model.full_svds / small.full_svds
        rows.append(Row(name=name, seconds=seconds, peak=row.peak, factor=factor))
    return rows


def show(model: Model, rows: list[Row]) -> None:
    import rich.box
    import rich.console
    import rich.table

    table = rich.table.Table(
        title=f"{7 * model.layers} modules, rank {model.rank}, "
        f"{model.bytes / 1e6:,.0f} MB in float32",
        box=rich.box.SIMPLE_HEAD,
        title_justify="left",
    )
    for i, name in enumerate(("process", "seconds", "whole model", "peak MB", "peak")):
        table.add_column(name, justify="right" if i else "left", no_wrap=True)
    for row in rows:
        whole = f"~{row.seconds * row.factor:,.0f}" if row.factor > 1 else ""
        relative = "" if row.factor > 1 else f"{row.peak / model.bytes:.2f}"
        peak = f"{row.peak / 1e6:,.0f}"
        table.add_row(row.name, f"{row.seconds:,.1f}", whole, peak, relative)
    rich.console.Console(width=80).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--kv", type=int, default=1024)
    parser.add_argument("--ffn", type=int, default=14336)
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument(
        "--shrink", type=int, default=4, help="PEFT's model; 0 leaves PEFT out"
    )
    parser.add_argument("--folder", help="where to put the adapters, for a while")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--make", type=pathlib.Path, help=argparse.SUPPRESS)
    parser.add_argument("--peft", type=pathlib.Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    sizes = (x.name for x in dataclasses.fields(Model))
    model = Model(**{name: getattr(given, name) for name in sizes})
    if given.make:
        make(given.make, model)
    elif given.peft:
        given.peft.write_text(str(peft_conversion(model)))
    else:
        with tempfile.TemporaryDirectory(dir=given.folder) as folder:
            rows = measured(model, pathlib.Path(folder), given.shrink)
        if given.json:
            print(json.dumps([dataclasses.asdict(x) for x in rows], indent=1))
        else:
            show(model, rows)


if __name__ == "__main__":
    main()
