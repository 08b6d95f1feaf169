"""Compare our backbones' logits with those of transformers and PEFT, in float32.

    python -m tests.benchmarks.parity --json tests/benchmarks/results/parity.json

Each model has the shape of the named published one, and random weights. It is saved by
transformers, in shards, and loaded by `train.models`. There are three comparisons: the
model alone; with a LoRA adapter of rank 16 on all linear layers of its blocks, saved by
PEFT; and with the adapter's ragged child of a quarter of the ranks (`Gamma(0.25)`). The
child runs layer by layer here, and PEFT loads it from the files of `para.save`. Each
entry is the largest absolute difference; the last column is the largest logit, for
scale.
"""

import argparse
import contextlib
import dataclasses
import json
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import peft
import torch
import transformers

import para_jax as para
from tests.benchmarks import torch_backbones
from tests.benchmarks.torch_backbones import Family
from train.models import layers

RANK, GAMMA = 16, 0.25
COLUMNS = ("model", "shape", "base", "adapter", "ragged child", "largest logit")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Row:
    """The largest differences of one model's logits."""

    model: str
    shape: str
    base: float
    adapter: float
    child: float
    largest: float


def measured(family: Family) -> Row:
    """Measure the differences of one model, with and without adapters."""
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        torch.manual_seed(0)
        theirs = family.build().eval()
        family.save(theirs, folder / "base")
        ours, params = family.load(theirs, folder / "base")
        apply, x = jax.jit(ours.apply), family.inputs()

        def difference(lora: Mapping[str, para.Adapter]) -> float:
            got = apply({"params": params, "lora": para.to_params(lora)}, x)
            return float(np.abs(got - _logits(theirs, family, x)).max())

        base, largest = difference({}), np.abs(_logits(theirs, family, x)).max()
        with _adapted(theirs, family, folder / "adapter"):
            parent = dict(para.load(folder / "adapter").adapters)
            adapter = difference(_stacked(parent, family))
        child = para.compress(para.Checkpoint(adapters=parent), para.Gamma(GAMMA))
        para.save(child, folder / "child", format="peft")
        with _loaded(theirs, folder / "child"):
            ragged = difference(child.adapters)
    return Row(
        model=family.name,
        shape=family.shape,
        base=base,
        adapter=adapter,
        child=ragged,
        largest=float(largest),
    )


def _logits(model: torch.nn.Module, family: Family, x: Any) -> np.ndarray:
    with torch.no_grad():
        return family.call(model, x).numpy()


@contextlib.contextmanager
def _adapted(model: Any, family: Family, folder: pathlib.Path) -> Any:
    """Add a random adapter to the model, and save it in the folder."""
    config = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=family.targets)
    wrapped = peft.get_peft_model(model, config)
    for name, x in wrapped.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(x, std=0.5 / np.sqrt(x.shape[1]))
    wrapped.save_pretrained(folder)
    yield
    wrapped.unload()


@contextlib.contextmanager
def _loaded(model: Any, folder: pathlib.Path) -> Any:
    wrapped = peft.PeftModel.from_pretrained(model, folder)
    yield
    wrapped.unload()


def _stacked(
    adapters: Mapping[str, para.Adapter], family: Family
) -> Mapping[str, para.Adapter]:
    if not family.stack:
        return adapters
    return layers.stacked(adapters, family.layers, path=family.stack)


def markdown(rows: Sequence[Row]) -> str:
    """Format the rows as a table."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "| --- | --- " + "| ---: " * 4 + "|"]
    for row in rows:
        errors = (f"{x:.1e}" for x in (row.base, row.adapter, row.child))
        cells = (row.model, row.shape, *errors, f"{row.largest:.2f}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def saved(path: pathlib.Path) -> dict[str, Row]:
    """Read the rows of a file, by model; none if there is no file."""
    if not path.is_file():
        return {}
    return {x["model"]: Row(**x) for x in json.loads(path.read_text())}


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    families = {x.name: x for x in torch_backbones.FAMILIES}
    parser.add_argument("--models", default=",".join(families), help="of: %(default)s")
    parser.add_argument("--json", type=pathlib.Path, help="rows to put these among")
    given = parser.parse_args(words)
    transformers.utils.logging.disable_progress_bar()
    rows = saved(given.json) if given.json else {}
    for name in filter(None, given.models.split(",")):
        rows[name] = measured(families[name])
    ordered = [rows[name] for name in families if name in rows]
    if given.json:
        text = json.dumps([dataclasses.asdict(row) for row in ordered], indent=1)
        given.json.write_text(text + "\n")
    print(markdown(ordered))


if __name__ == "__main__":
    main()
