"""Experts of a mixture that have one module each, and are read as one. Host.

transformers 5 holds the experts of a layer in two parameters, `gate_up_proj` and
`down_proj`. Adapters of earlier releases have a pair of factors for each expert's
projection, and PEFT stacks these on loading: so their ranks have to agree, gate's and
up's too, and none may be missing. vLLM and llama.cpp stack them likewise.

From `conversion_mapping.py` (transformers 5.24) and `transformers_weight_conversion.py`
(PEFT 0.21). Experts that are one parameter in the file are another kind of layer: see
`peft_experts`.
"""

import re
import warnings
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from para_jax._adapters.adapter import ordered

Shape = tuple[int, int, int]
"""Inputs, rank and outputs of one kernel."""

GATED: tuple[tuple[str, str, str], ...] = (
    ("w1", "w3", "w2"),  # Mixtral, Phi-3.5-MoE, MiniMax, LFM2-MoE, ...
    ("gate_proj", "up_proj", "down_proj"),  # Qwen-MoE, DeepSeek, OLMoE, Jamba, ...
    ("fc1", "fc3", "fc2"),  # The vision encoder of Dots 3.
)
"""The projections of an expert: gate and up, which become one parameter, and down."""

UNGATED = ("up_proj", "down_proj")
"""Those of Nemotron-H, whose layers call the mixture `mixer`."""

_PATH = re.compile(r"(?P<owner>(?:.*/)?experts)/(?P<number>\d+)/(?P<name>[^/]+)")


class Expert(NamedTuple):
    """One projection of one expert.

    Attributes:
      owner: The path of all experts of the layer.
      number: Which of them.
      name: The projection.
      names: All projections that an expert of this model has; down is the last.
    """

    owner: str
    number: str
    name: str
    names: tuple[str, ...]


def expert(path: str) -> Expert | None:
    """Return what a path says of an expert's projection, if it is one."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    mixer = match["owner"].endswith("mixer/experts")
    known: tuple[tuple[str, ...], ...] = (UNGATED,) if mixer else GATED
    names = next((names for names in known if match["name"] in names), None)
    if names is None:
        return None
    return Expert(match["owner"], match["number"], match["name"], names)


def group(path: str) -> str:
    """Return what has to have one rank with a module: the parameter it is part of.

    Example:
      >>> from para_jax.formats import expert_modules
      >>> expert_modules.group("layers/0/mlp/experts/3/gate_proj")
      'layers/0/mlp/experts/gate_up_proj'
      >>> expert_modules.group("layers/0/self_attn/q_proj")
      'layers/0/self_attn/q_proj'
    """
    one = expert(path)
    return path if one is None else f"{one.owner}/{_parameter(one)}"


def _parameter(one: Expert) -> str:
    if one.name == one.names[-1]:
        return "down_proj"
    return "gate_up_proj" if len(one.names) == 3 else "up_proj"


def missing(shapes: Mapping[str, Shape], *, every: bool = False) -> dict[str, Shape]:
    """Return the shapes, at rank 0, of projections that some expert lacks.

    PEFT reads gate and up together, and neither without down; down it reads alone. An
    expert that lacks a projection has it of the shape of any other expert's.

    Args:
      shapes: Those of all modules that are known.
      every: Whether down needs gate and up as well, as in llama.cpp.
    """
    layers: dict[str, dict[str, dict[str, Shape]]] = {}
    for path, shape in shapes.items():
        if one := expert(path):
            numbers = layers.setdefault(one.owner, {})
            numbers.setdefault(one.number, {})[one.name] = shape
    result = {}
    for owner, numbers in layers.items():
        names = _needed(f"{owner}/{next(iter(numbers))}", numbers.values(), every=every)
        for number, found in numbers.items():
            for name in names:
                if name not in found:
                    like = _like(name, names, found)
                    result[f"{owner}/{number}/{name}"] = like
    return result


def _needed(
    path: str, found: Iterable[Mapping[str, Shape]], *, every: bool
) -> tuple[str, ...]:
    there = {name for shapes in found for name in shapes}
    one = expert(f"{path}/{min(there)}")
    if one is None:
        return ()
    only_down = there == {one.names[-1]}
    return one.names[-1:] if only_down and not every else one.names


def _like(name: str, names: tuple[str, ...], found: Mapping[str, Shape]) -> Shape:
    other = min(found)
    m, _, n = found[other]
    alike = (name == names[-1]) == (other == names[-1])
    return (m, 0, n) if alike else (n, 0, m)


def stacked_ranks(ranks: Mapping[str, int], most: int) -> dict[str, int]:
    """Return the ranks of the parameters that PEFT makes of these modules.

    Gate's and up's factors follow each other, so their parameter has twice the rank;
    a router has its own. By PEFT's names in transformers 5, and where PEFT would not
    take `most`, or twice that, by itself.

    Args:
      ranks: The rank of each module by PEFT's name.
      most: The largest of all.
    """
    result = {}
    for name in ordered(ranks):
        path, r = name.replace(".", "/"), ranks[name]
        one = expert(path)
        if r == most or (one is None and not path.endswith(("mlp/gate", "moe/gate"))):
            continue
        twice = one is not None and _parameter(one) == "gate_up_proj"
        new = group(path) if one else f"{path}/weight"
        new = new.replace("/block_sparse_moe/", "/mlp/").replace("/", ".")
        result[new] = 2 * r if twice else r
    return result


def warn(paths: Iterable[str]) -> None:
    """Warn of what PEFT leaves out of a file of such experts, if it has any."""
    paths = ordered(list(paths))
    experts = [one for one in map(expert, paths) if one]
    if not experts:
        return
    names = {name for one in experts for name in one.names}
    dense = [x for x in paths if x.rpartition("/")[2] in names and not expert(x)]
    beside = f", and of every model '{dense[0]}' and its like" if dense else ""
    warnings.warn(
        f"'{experts[0].owner}' has one module for each expert, and transformers 5 has "
        "one parameter for all. PEFT 0.21 stacks these factors for Mixtral, Qwen3-MoE "
        "and models like them; of Qwen2-MoE, Phi-3.5-MoE and others it leaves the "
        f"experts out without a word{beside}. Compare its outputs with those you "
        "expect.",
        stacklevel=3,
    )
