"""Mixture experts with one module each, stacked by their readers.

transformers 5 holds the experts of a layer in two parameters, `gate_up_proj` and
`down_proj`. Adapters of earlier releases have a pair of factors for each expert's
projection, which PEFT, vLLM and llama.cpp stack on loading. Their ranks must therefore
agree, those of gate and up too, and none may be missing.

From `conversion_mapping.py` (transformers 5.24) and `transformers_weight_conversion.py`
(PEFT 0.21). Experts that are one parameter in the file are another kind of layer, see
`para_jax/formats/peft/experts.py`. Runs on the host.
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
"""The projections of Nemotron-H, where the mixture of a layer is called `mixer`."""

_PATH = re.compile(r"(?P<owner>(?:.*/)?experts)/(?P<number>\d+)/(?P<name>[^/]+)")


class Expert(NamedTuple):
    """One projection of one expert.

    Attributes:
      owner: The path of all experts of the layer.
      number: The expert's number in the layer.
      name: The projection's name.
      names: The projections of every expert of this model; down is the last.
    """

    owner: str
    number: str
    name: str
    names: tuple[str, ...]


def expert(path: str) -> Expert | None:
    """Parse a path as an expert's projection; return None if it is not one."""
    match = _PATH.fullmatch(path)
    if match is None:
        return None
    # `up_proj` alone would not tell a gated expert from one without a gate.
    mixer = match["owner"].endswith("mixer/experts")
    known: tuple[tuple[str, ...], ...] = (UNGATED,) if mixer else GATED
    names = next((names for names in known if match["name"] in names), None)
    if names is None:
        return None
    return Expert(match["owner"], match["number"], match["name"], names)


def group(path: str) -> str:
    """Return the parameter of a module, by path. All its modules share one rank.

    Example:
      >>> from para_jax._engines import experts
      >>> experts.group("layers/0/mlp/experts/3/gate_proj")
      'layers/0/mlp/experts/gate_up_proj'
      >>> experts.group("layers/0/self_attn/q_proj")
      'layers/0/self_attn/q_proj'
    """
    one = expert(path)
    return path if one is None else f"{one.owner}/{_parameter(one)}"


def _parameter(one: Expert) -> str:
    if one.name == one.names[-1]:
        return "down_proj"
    return "gate_up_proj" if len(one.names) == 3 else "up_proj"


def missing(shapes: Mapping[str, Shape], *, every: bool = False) -> dict[str, Shape]:
    """Return the shapes, at rank 0, of projections missing from some expert.

    PEFT reads gate and up together, and neither without down; it reads down by itself.
    All experts of a layer have equal shapes, so any of them tells the missing ones.

    Args:
      shapes: The shapes of all known modules.
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
    # Down maps back from the hidden width of gate and up: its shape is theirs, turned.
    alike = (name == names[-1]) == (other == names[-1])
    return (m, 0, n) if alike else (n, 0, m)


def stacked_ranks(ranks: Mapping[str, int], most: int) -> dict[str, int]:
    """Return the ranks of PEFT's stacked parameters of these modules.

    PEFT concatenates the factors of gate and up, so their parameter has twice the
    rank. A router has its own. Only ranks other than PEFT's default, `most` or twice
    that, are returned, under the names of transformers 5.

    Args:
      ranks: The rank of each module by PEFT's name.
      most: The largest rank.
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
    """Warn of factors of experts, and of modules like them, ignored by PEFT."""
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
