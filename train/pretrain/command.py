"""The common command line of pretraining programs: one file in, one folder out."""

import argparse
import dataclasses
import json
import pathlib
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from train.pretrain import loop


class Chosen(NamedTuple):
    """The arguments of a pretraining program.

    Attributes:
      data: The file to learn from.
      out: The folder of the model.
      settings: The model and its training.
    """

    data: pathlib.Path
    out: pathlib.Path
    settings: loop.Settings[Any]


def parse(
    arguments: Sequence[str] | None,
    *,
    description: str | None,
    data: str,
    small: loop.Settings[Any],
    tiny: loop.Settings[Any],
) -> Chosen:
    """Parse the arguments of a pretraining program.

    Args:
      arguments: The words; by default those of the process.
      description: The program's help text.
      data: The default of `--data`.
      small: The settings; `--minutes` replaces their budget.
      tiny: The settings with `--tiny`, whose budget is in steps.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=pathlib.Path, default=data)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--minutes", type=float, default=small.budget.minutes)
    parser.add_argument("--tiny", action="store_true", help="the form for a test")
    chosen = parser.parse_args(arguments)
    budget = loop.Budget(minutes=chosen.minutes)
    settings = tiny if chosen.tiny else dataclasses.replace(small, budget=budget)
    return Chosen(chosen.data, chosen.out, settings)


def report(
    out: pathlib.Path, metrics: Mapping[str, float], *, begin: float, steps: int
) -> None:
    """Print the metrics and write them into the model's folder.

    Args:
      out: The model's folder.
      metrics: The metrics of the trained model.
      begin: The start of training, in seconds of `time.monotonic`.
      steps: The number of steps taken.
    """
    spent = {"minutes": (time.monotonic() - begin) / 60, "steps": steps}
    text = json.dumps({**metrics, **spent}, indent=2)
    (out / "metrics.json").write_text(text + "\n")
    print(text)
